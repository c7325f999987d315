"""PAWS-X: paraphrases with much word overlap in 7 languages, trained on English (Yang et al. 2019); a test split a language."""

from prompt_tuning.formats import STEMS
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.tasks.types import Files, Task

_LANGUAGES = ("de", "en", "es", "fr", "ja", "ko", "zh")
_HUB = "google-research-datasets/paws-x"

TASK = Task(
    name="pawsx",
    kind="classification",
    labels=("0", "1"),
    metrics={"accuracy": accuracy},
    columns=("sentence1", "sentence2"),
    templates={"pair": lambda row: ((row["sentence1"], row["sentence2"]),)},
    hub=(_HUB, "en"),
    files=Files(
        folders=("PAWS-X", "x-final"),
        patterns={
            "train": (*STEMS["train"], "en/train"),
            "dev": (*STEMS["dev"], "en/dev_2k"),
            "test/{name}": ("test.{name}", "test-{name}", "{name}/test_2k"),
        },
    ),
    hub_splits={f"test/{name}": (_HUB, name, "test") for name in _LANGUAGES},
)
