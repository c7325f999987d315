"""QNLI: does a sentence answer a question (Rajpurkar et al. 2016; GLUE)."""

from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task, named

TASK = Task(
    name="qnli",
    kind="classification",
    labels=("entailment", "not_entailment"),
    metrics={"accuracy": accuracy},
    columns=("question", "sentence"),
    templates={"pair": lambda row: ((row["question"], row["sentence"]),)},
    hub=("nyu-mll/glue", "qnli"),
    files=Files(folders=("QNLI", "qnli")),
    expand=named(),
)
