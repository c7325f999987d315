"""CommitmentBank: entailment of an embedded clause, three classes (de Marneffe et al. 2019; SuperGLUE)."""

from prompt_tuning.metrics.classes import accuracy, macro_f1
from prompt_tuning.tasks.types import Files, Task, yes_or_no

TASK = Task(
    name="cb",
    kind="classification",
    labels=("entailment", "contradiction", "neutral"),
    metrics={"accuracy": accuracy, "macro_f1": macro_f1},
    columns=("premise", "hypothesis"),
    templates={"pair": lambda row: ((row["premise"], row["hypothesis"]),)},
    cloze={
        "cloze": lambda row: yes_or_no(row["premise"], f"Is it true that {row['hypothesis']}?", ("yes", "no", "maybe"))
    },
    hub=("aps/super_glue", "cb"),
    files=Files(folders=("CB", "superglue/CB")),
)
