"""XNLI: natural language inference in 15 languages, trained on English (Conneau et al. 2018); a test split a language."""

from collections.abc import Iterator

from prompt_tuning.formats import STEMS, Row
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task, named

_LANGUAGES = ("ar", "bg", "de", "el", "en", "es", "fr", "hi", "ru", "sw", "th", "tr", "ur", "vi", "zh")

_rename = named({"sentence1": "premise", "sentence2": "hypothesis", "hypo": "hypothesis", "gold_label": "label"})


def _with_our_names(row: Row) -> Iterator[Row]:
    """XNLI's own files call two columns otherwise in training, and a label."""
    for own in _rename(row):
        yield {**own, "label": "contradiction"} if own.get("label") == "contradictory" else own


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
            "train": (*STEMS["train"], "multinli.train.en", "*/multinli.train.en"),
            "dev": (*STEMS["dev"], "xnli.dev"),
            "test": ("xnli.test",),
            "test/{name}": ("test.{name}", "test-{name}", "{name}/test"),
        },
        parted_by=("language", "en"),
    ),
    expand=_with_our_names,
    hub_splits={f"test/{name}": ("facebook/xnli", name, "test") for name in _LANGUAGES},
)
