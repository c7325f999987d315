"""CNN/DailyMail: the highlights of a news article (Hermann et al. 2015, See et al. 2017); ROUGE-L is of the text as a whole."""

from prompt_tuning.metrics.generation import perplexity, rouge1, rouge2, rouge_l
from prompt_tuning.tasks.types import Files, Task

TASK = Task(
    name="cnn_dailymail",
    kind="generation",
    labels=None,
    metrics={"rouge_l": rouge_l, "rouge1": rouge1, "rouge2": rouge2, "perplexity": perplexity},
    columns=("article",),
    templates={"plain": lambda row: ((row["article"], None),)},
    hub=("abisee/cnn_dailymail", "3.0.0"),
    files=Files(folders=("cnn_dailymail", "cnn_dm")),
    label_column="highlights",
)
