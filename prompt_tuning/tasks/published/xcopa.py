"""XCOPA: COPA in English for training, its test questions translated (Ponti et al. 2020); a test split a language."""

from dataclasses import replace

from prompt_tuning.formats import STEMS
from prompt_tuning.tasks.published.copa import TASK as COPA
from prompt_tuning.tasks.types import Files

_LANGUAGES = ("et", "ht", "id", "it", "qu", "sw", "ta", "th", "tr", "vi", "zh")

TASK = replace(
    COPA,
    name="xcopa",
    files=Files(
        folders=("COPA", "superglue/COPA"),
        patterns={
            "train": STEMS["train"],
            "dev": STEMS["dev"],
            "test/{name}": ("xcopa/{name}/test.{name}", "{name}/test.{name}", "test.{name}"),
        },
    ),
    hub_splits={f"test/{name}": ("cambridgeltl/xcopa", name, "test") for name in _LANGUAGES},
)
