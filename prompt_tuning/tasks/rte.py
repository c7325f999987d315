"""Recognising textual entailment, two classes (Dagan et al. 2006 and successors; SuperGLUE)."""

from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks import Files, Task, named

TASK = Task(
    name="rte",
    kind="classification",
    labels=("entailment", "not_entailment"),
    metrics={"accuracy": accuracy},
    columns=("premise", "hypothesis"),
    templates={"pair": lambda row: ((row["premise"], row["hypothesis"]),)},
    expand=named({"sentence1": "premise", "sentence2": "hypothesis"}),
    hub=("aps/super_glue", "rte"),
    files=Files(folders=("RTE", "superglue/RTE")),
)
