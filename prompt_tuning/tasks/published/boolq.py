"""BoolQ: yes/no questions about a passage (Clark et al. 2019; SuperGLUE)."""

from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task, yes_or_no

TASK = Task(
    name="boolq",
    kind="classification",
    labels=("False", "True"),
    metrics={"accuracy": accuracy},
    columns=("question", "passage"),
    templates={"pair": lambda row: ((row["question"], row["passage"]),)},
    cloze={"cloze": lambda row: yes_or_no(row["passage"], f"Question: {row['question']}? Answer:")},
    hub=("aps/super_glue", "boolq"),
    files=Files(folders=("BoolQ", "superglue/BoolQ")),
)
