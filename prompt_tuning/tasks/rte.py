"""Recognising textual entailment, two classes (Dagan et al. 2006 and successors; SuperGLUE)."""

from prompt_tuning.tasks import Task

TASK = Task(
    name="rte",
    kind="classification",
    labels=("entailment", "not_entailment"),
    metrics=("accuracy",),
    columns=("premise", "hypothesis"),
    templates={"pair": lambda row: ((row["premise"], row["hypothesis"]),)},
    hub=("aps/super_glue", "rte"),
    folder="RTE",
)
