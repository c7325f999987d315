"""MNLI: does a premise entail a hypothesis (Williams et al. 2018; GLUE). ``dev`` is matched, ``test/mismatched`` is not."""

from prompt_tuning.formats import STEMS
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task, named

TASK = Task(
    name="mnli",
    kind="classification",
    labels=("entailment", "neutral", "contradiction"),
    metrics={"accuracy": accuracy},
    columns=("premise", "hypothesis"),
    templates={"pair": lambda row: ((row["premise"], row["hypothesis"]),)},
    hub=("nyu-mll/glue", "mnli"),
    files=Files(
        folders=("MNLI", "mnli"),
        patterns={
            "train": STEMS["train"],
            "dev": (*STEMS["dev"], "dev_matched", "validation_matched"),
            "test": STEMS["test"],
            "test/mismatched": ("dev_mismatched", "validation_mismatched"),
        },
    ),
    expand=named({"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"}),
    hub_splits={
        "dev": ("nyu-mll/glue", "mnli", "validation_matched"),
        "test/mismatched": ("nyu-mll/glue", "mnli", "validation_mismatched"),
    },
)
