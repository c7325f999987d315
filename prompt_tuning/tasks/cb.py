"""CommitmentBank: entailment of an embedded clause, three classes (de Marneffe et al. 2019; SuperGLUE)."""

from prompt_tuning.tasks import Task

TASK = Task(
    name="cb",
    kind="classification",
    labels=("entailment", "contradiction", "neutral"),
    metrics=("accuracy", "macro_f1"),
    columns=("premise", "hypothesis"),
    templates={"pair": lambda row: ((row["premise"], row["hypothesis"]),)},
    hub=("aps/super_glue", "cb"),
    folder="CB",
)
