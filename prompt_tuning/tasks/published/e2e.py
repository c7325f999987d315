"""E2E: sentences about restaurants given as `name[The Mill], food[French]` (Novikova et al. 2017).

The hub's rows have all references of an input. The challenge's own CSV files (`mr`, `ref`) have one a row, each an example of its own.
"""

from prompt_tuning.metrics.generation import bleu, chrf, perplexity, rouge_l
from prompt_tuning.tasks.types import Files, Task, named, with_references

TASK = Task(
    name="e2e",
    kind="generation",
    labels=None,
    metrics={"bleu": bleu, "chrf": chrf, "rouge_l": rouge_l, "perplexity": perplexity},
    columns=("meaning_representation",),
    templates={"plain": lambda row: ((row["meaning_representation"], None),)},
    hub=("GEM/e2e_nlg", None),
    files=Files(folders=("e2e", "e2e_nlg")),
    label_column="target",
    expand=with_references("target", named({"mr": "meaning_representation", "ref": "target"})),
)
