"""A text that the language model writes behind another: nothing but the prompt is trained, by the target's tokens alone.

The loss of a member is the mean over all target tokens of its step, so that a long target counts more than a short one, as
language models are trained. Where a row has several targets the first is trained on, and all count for the metrics.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.kinds import Kind, Targets
from prompt_tuning.messages import show
from prompt_tuning.metrics.generation import Written, check_packages, mean_loss
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.arrays import Values
from prompt_tuning.tokens.continuation import encode_continuations
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import checked_text, sequences, template_of


@dataclass(frozen=True)
class Passages:
    """What writing and scoring need of each row."""

    targets: Values
    """All acceptable texts; none where there is no target."""
    num_source: np.ndarray
    """[rows] Tokens behind which the text is written."""
    num_labels: np.ndarray
    """[rows] Tokens of the target, each a term of the loss."""
    num_encoded: np.ndarray
    """[rows] Tokens of the source where an encoder reads it, else 0."""


def encode(recipe: Recipe, rows: list[LocatedRow]) -> Features:
    """Sources, each with its first target behind it."""
    task, build = recipe.task, template_of(recipe.task, recipe.encoding.template)
    sources, targets = [], []
    for where, row in rows:
        ((source, _),) = sequences(task, where, build, row)
        sources.append(checked_text(where, source))
        targets.append(_targets(where, task, row))
    found = encode_continuations(recipe, sources, [own[0] if own else None for own in targets])
    labels = np.where(found.num_target > 0, 0, -1)
    notes = Passages(Values.of(targets), found.num_source, found.num_target, found.num_source * recipe.has_encoder)
    return Features(found.tokens, None, found.offsets, 1, labels, found.wanted, notes, found.remarks)


def _targets(where: str, task: Task, row: dict[str, Any]) -> list[str]:
    value = row.get(task.label_column)
    if value is None:
        return []
    texts = value if isinstance(value, list) else [value]
    if not texts or not all(isinstance(text, str) for text in texts):
        raise UserError(f"{where}: column `{task.label_column}` is {show(value)}, neither a text nor a list of texts")
    return [checked_text(where, text) for text in texts]


def collect_labels(task: Task, rows: Iterable[LocatedRow]) -> tuple[str, ...]:
    """One name, for there are no classes; says early that a metric's package is missing."""
    check_packages(list(task.metrics))
    return ("text",)


def loss(logits: Tensor, targets: Targets) -> Tensor:
    """Cross entropy, from the log probabilities of whole targets [E, 1]."""
    return -(logits[:, 0] * targets.weights.to(logits.dtype)).sum()


def written(features: Features, log_probabilities: np.ndarray, texts: Sequence[str | None]) -> list[Written]:
    """What a split's examples were answered: log probabilities [E, 1] of their targets, and texts."""
    counts = features.notes.num_labels.tolist()
    return [Written(*own) for own in zip(texts, log_probabilities[:, 0].tolist(), counts, strict=True)]


def answers(task: Task, features: Features, outputs: Any, labels: tuple[str, ...]) -> tuple[Any, Any]:
    """All targets, and what was written."""
    return [list(texts) for texts in features.notes.targets], list(outputs)


def constant(train: Features, features: Features, num_labels: int) -> Any:
    """Always the most frequent target of the training split; nothing is known of its likelihood."""
    counts = Counter(texts[0] for texts in train.notes.targets if texts)
    text = counts.most_common(1)[0][0] if counts else ""
    return written(features, np.full((len(features), 1), np.nan), [text] * len(features))


def describe(task: Task, features: Features, outputs: Any, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """The text of each example."""
    return [{"text": own.text} for own in outputs]


KIND = Kind(
    encode=encode,
    collect_labels=collect_labels,
    num_outputs=lambda num_labels: 1,
    loss=loss,
    answers=answers,
    mean_loss=lambda features, outputs: mean_loss(outputs),
    constant=constant,
    describe=describe,
    notes=Passages,
    writes=True,
    drops_hidden=False,
)
