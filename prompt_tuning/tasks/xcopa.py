"""XCOPA: COPA in English for training, its test questions translated (Ponti et al. 2020); a test split a language."""

from dataclasses import replace

from prompt_tuning.tasks import STEMS, Files
from prompt_tuning.tasks.copa import TASK as COPA

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
