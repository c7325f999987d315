"""SST-2: sentiment of a sentence of a film review (Socher et al. 2013; GLUE)."""

from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task, named

TASK = Task(
    name="sst2",
    kind="classification",
    labels=("negative", "positive"),
    metrics={"accuracy": accuracy},
    columns=("sentence",),
    templates={"text": lambda row: ((row["sentence"], None),)},
    hub=("nyu-mll/glue", "sst2"),
    files=Files(folders=("SST-2", "sst2")),
    expand=named(),
)
