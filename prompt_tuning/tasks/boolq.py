"""BoolQ: yes/no questions about a passage (Clark et al. 2019; SuperGLUE)."""

from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks import Files, Task

TASK = Task(
    name="boolq",
    kind="classification",
    labels=("False", "True"),
    metrics={"accuracy": accuracy},
    columns=("question", "passage"),
    templates={"pair": lambda row: ((row["question"], row["passage"]),)},
    hub=("aps/super_glue", "boolq"),
    files=Files(folders=("BoolQ", "superglue/BoolQ")),
)
