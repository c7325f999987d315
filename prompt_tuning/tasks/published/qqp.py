"""QQP: do two questions ask the same (Quora; GLUE)."""

from prompt_tuning.metrics.classes import accuracy, positive_f1
from prompt_tuning.tasks.types import Files, Task, named

TASK = Task(
    name="qqp",
    kind="classification",
    labels=("not_duplicate", "duplicate"),
    metrics={"accuracy": accuracy, "f1": positive_f1},
    columns=("question1", "question2"),
    templates={"pair": lambda row: ((row["question1"], row["question2"]),)},
    hub=("nyu-mll/glue", "qqp"),
    files=Files(folders=("QQP", "qqp")),
    expand=named({"is_duplicate": "label"}),
)
