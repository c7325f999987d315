"""WebNLG 2020 in English: sentences about facts given as triples `subject | property | object` (Castro Ferreira et al. 2020)."""

from prompt_tuning.metrics.generation import bleu, chrf, perplexity, rouge_l
from prompt_tuning.tasks.types import Files, Task, with_references

TASK = Task(
    name="webnlg",
    kind="generation",
    labels=None,
    metrics={"bleu": bleu, "chrf": chrf, "rouge_l": rouge_l, "perplexity": perplexity},
    columns=("input",),
    # The layout of prefix tuning (Li and Liang 2021).
    templates={"triples": lambda row: (("".join(f" | {fact.replace(' | ', ' : ')}" for fact in row["input"]), None),)},
    hub=("GEM/web_nlg", "en"),
    files=Files(folders=("webnlg", "web_nlg")),
    label_column="target",
    word_columns=("input",),
    expand=with_references("target"),
)
