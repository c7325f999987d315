"""XQuAD: SQuAD 1.1 in English for training, its test questions translated (Artetxe et al. 2020); a test split a language."""

from dataclasses import replace

from prompt_tuning.formats.squad import questions
from prompt_tuning.tasks.published.squad import FILES
from prompt_tuning.tasks.published.squad import TASK as SQUAD
from prompt_tuning.tasks.types import Files

_LANGUAGES = ("ar", "de", "el", "en", "es", "hi", "ro", "ru", "th", "tr", "vi", "zh")

TASK = replace(
    SQUAD,
    name="xquad",
    files=Files(
        folders=("squad",),
        patterns={**FILES, "test/{name}": ("xquad/xquad.{name}.json", "xquad.{name}.json")},
        read=questions,
    ),
    hub_splits={f"test/{name}": ("google/xquad", f"xquad.{name}", "validation") for name in _LANGUAGES},
)
