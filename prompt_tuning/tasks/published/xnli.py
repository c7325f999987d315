"""XNLI: natural language inference in 15 languages, trained on English (Conneau et al. 2018); a test split a language."""

from prompt_tuning.formats import STEMS
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task, named

_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")

TASK = Task(
    name="xnli",
    kind="classification",
    labels=("entailment", "neutral", "contradiction"),
    metrics={"accuracy": accuracy},
    columns=("premise", "hypothesis"),
    templates={"pair": lambda row: ((row["premise"], row["hypothesis"]),)},
    hub=("facebook/xnli", "en"),
    files=Files(
        folders=("XNLI", "xnli"),
        patterns={
            "train": STEMS["train"],
            "dev": STEMS["dev"],
            "test/{name}": ("test.{name}", "test-{name}", "{name}/test"),
        },
    ),
    expand=named({"sentence1": "premise", "sentence2": "hypothesis", "gold_label": "label"}),
    hub_splits={f"test/{name}": ("facebook/xnli", name, "test") for name in _LANGUAGES},
)
