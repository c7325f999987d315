"""WNLI: does a sentence entail one with its pronoun resolved (Levesque et al. 2012; GLUE)."""

from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task, named

TASK = Task(
    name="wnli",
    kind="classification",
    labels=("not_entailment", "entailment"),
    metrics={"accuracy": accuracy},
    columns=("sentence1", "sentence2"),
    templates={"pair": lambda row: ((row["sentence1"], row["sentence2"]),)},
    hub=("nyu-mll/glue", "wnli"),
    files=Files(folders=("WNLI", "wnli")),
    expand=named(),
)
