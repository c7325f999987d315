"""STS-B: how alike are two sentences, from 0 to 5 (Cer et al. 2017; GLUE)."""

from prompt_tuning.metrics.values import pearson, spearman
from prompt_tuning.tasks.types import Files, Task, named

TASK = Task(
    name="stsb",
    kind="regression",
    labels=None,
    metrics={"pearson": pearson, "spearman": spearman},
    columns=("sentence1", "sentence2"),
    templates={"pair": lambda row: ((row["sentence1"], row["sentence2"]),)},
    hub=("nyu-mll/glue", "stsb"),
    files=Files(folders=("STS-B", "stsb")),
    expand=named({"score": "label"}),
)
