"""CoLA: is a sentence acceptable English (Warstadt et al. 2019; GLUE)."""

from prompt_tuning.metrics.classes import accuracy, matthews
from prompt_tuning.tasks import Files, Task, named

TASK = Task(
    name="cola",
    kind="classification",
    labels=("unacceptable", "acceptable"),
    metrics={"matthews": matthews, "accuracy": accuracy},
    columns=("sentence",),
    templates={"text": lambda row: ((row["sentence"], None),)},
    hub=("nyu-mll/glue", "cola"),
    files=Files(folders=("CoLA", "cola")),
    expand=named(),
)
