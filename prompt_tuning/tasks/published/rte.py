"""Recognising textual entailment, two classes (Dagan et al. 2006 and successors; SuperGLUE)."""

from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task, named, yes_or_no

TASK = Task(
    name="rte",
    kind="classification",
    labels=("entailment", "not_entailment"),
    metrics={"accuracy": accuracy},
    columns=("premise", "hypothesis"),
    templates={"pair": lambda row: ((row["premise"], row["hypothesis"]),)},
    cloze={"cloze": lambda row: yes_or_no(row["premise"], f"Is it true that {row['hypothesis']}?", ("yes", "no"))},
    expand=named({"sentence1": "premise", "sentence2": "hypothesis"}),
    hub=("aps/super_glue", "rte"),
    files=Files(folders=("RTE", "superglue/RTE")),
)
