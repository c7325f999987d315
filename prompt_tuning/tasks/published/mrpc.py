"""MRPC: do two sentences mean the same (Dolan and Brockett 2005; GLUE)."""

from prompt_tuning.metrics.classes import accuracy, positive_f1
from prompt_tuning.tasks.types import Files, Task, named

TASK = Task(
    name="mrpc",
    kind="classification",
    labels=("not_equivalent", "equivalent"),
    metrics={"accuracy": accuracy, "f1": positive_f1},
    columns=("sentence1", "sentence2"),
    templates={"pair": lambda row: ((row["sentence1"], row["sentence2"]),)},
    hub=("nyu-mll/glue", "mrpc"),
    files=Files(folders=("MRPC", "mrpc")),
    expand=named({"#1 String": "sentence1", "#2 String": "sentence2", "Quality": "label"}),
)
