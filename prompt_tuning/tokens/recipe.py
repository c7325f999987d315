"""How rows become tokens: everything but the rows, as one object."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from transformers import PreTrainedTokenizerBase

from prompt_tuning.tasks.types import Task


@dataclass(frozen=True)
class Encoding:
    """What a run file and an exported prompt say of it: most tokens of a sequence, name of a template, tokens that
    neighbouring windows share, and most tokens of a target that stands behind its source."""

    max_length: int
    template: str | None = None
    stride: int = 128
    max_target_length: int = 128


class Recipe(NamedTuple):
    """All of it: the task, the backbone's tokenizer, the settings, and the labels in the order of the logits."""

    task: Task
    tokenizer: PreTrainedTokenizerBase
    encoding: Encoding
    labels: tuple[str, ...]
    has_encoder: bool = False
    """Whether the backbone's encoder reads sources and its decoder targets."""
