"""BoolQ: yes/no questions about a passage (Clark et al. 2019; SuperGLUE)."""

from prompt_tuning.tasks import Task

TASK = Task(
    name="boolq",
    kind="classification",
    labels=("False", "True"),
    metrics=("accuracy",),
    columns=("question", "passage"),
    templates={"pair": lambda row: ((row["question"], row["passage"]),)},
    hub=("aps/super_glue", "boolq"),
    folder="BoolQ",
)
