"""XSum: one sentence about a news article (Narayan et al. 2018)."""

from prompt_tuning.metrics.generation import perplexity, rouge1, rouge2, rouge_l
from prompt_tuning.tasks.types import Files, Task

TASK = Task(
    name="xsum",
    kind="generation",
    labels=None,
    metrics={"rouge_l": rouge_l, "rouge1": rouge1, "rouge2": rouge2, "perplexity": perplexity},
    columns=("document",),
    templates={"plain": lambda row: ((row["document"], None),)},
    hub=("EdinburghNLP/xsum", None),
    files=Files(folders=("xsum",)),
    label_column="summary",
)
