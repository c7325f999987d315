"""One class for each text or text pair."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.kinds import Kind, Targets
from prompt_tuning.messages import show
from prompt_tuning.tasks.labels import label_name, near_equal, one_spelling
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.arrays import Values
from prompt_tuning.tokens.cloze import encode_gaps
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import own_rows
from prompt_tuning.tokens.tokenise import class_labels, encode_texts

logger = logging.getLogger(__name__)


def encode(recipe: Recipe, rows: list[LocatedRow]) -> Features:
    """Texts or pairs; ``notes`` holds what the task remembers of each row."""
    task, encoding, labels = recipe.task, recipe.encoding, recipe.labels
    notes = Values.of(task.remember(row) for _, row in rows) if task.remember else None
    indices = class_labels(task, rows, labels)
    if encoding.template in task.cloze:
        tokens, types, offsets, per_example, wanted, remarks = encode_gaps(recipe, rows)
        return Features(tokens, types, offsets, per_example, indices, wanted, notes, remarks)
    tokens, types, offsets, per_example, remarks = encode_texts(recipe, rows)
    return Features(tokens, types, offsets, per_example, indices, None, notes, remarks)


def collect_labels(task: Task, rows: Iterable[LocatedRow]) -> tuple[str, ...]:
    """The labels that occur, sorted as numbers if all are, else as names; says how they are read."""
    counts: Counter[str] = Counter()
    spellings: dict[str, set[str]] = {}
    has_text = False
    for where, row in own_rows(task, rows, labelled=True):
        value = row[task.label_column]
        if not isinstance(value, (str, int, float)) or (isinstance(value, float) and not value.is_integer()):
            raise UserError(f"{where}: label {show(value)} is neither a text nor a whole number")
        name = label_name(value)
        if name is None or name == "-1":
            hint = "" if name is None else "; to use -1 as a label, list all labels in the task's `labels`"
            raise UserError(f"{where}: no label in column `{task.label_column}`{hint}")
        has_text |= isinstance(value, (str, bool))
        counts[name] += 1
        spellings.setdefault(name, set()).add(str(value))
    labels = tuple(sorted(counts, key=None if has_text else int))
    if len(labels) < 2:
        raise UserError(
            f"task {task.name!r}: column `{task.label_column}` of the training split has {len(labels)} label(s)"
            f" ({', '.join(labels)}); at least two are needed"
        )
    logger.info("task %r: labels %s", task.name, ", ".join(f"{name} ({counts[name]})" for name in labels[:20]))
    for sentence in one_spelling(spellings):
        logger.info("task %r: %s", task.name, sentence)
    for sentence in near_equal(counts):
        logger.warning("task %r: labels %s; correct the data if they are one", task.name, sentence)
    return labels


def loss(logits: Tensor, targets: Targets) -> Tensor:
    """Cross entropy."""
    losses = F.cross_entropy(logits, targets.labels.long(), reduction="none")
    return (losses * targets.weights.to(logits.dtype)).sum()


def answers(task: Task, features: Features, outputs: np.ndarray, labels: tuple[str, ...]) -> tuple[Any, Any]:
    """Class indices [E], or what the task makes of rows that belong together."""
    if task.regroup is not None:
        return task.regroup(features.notes, features.labels, outputs)
    return features.labels, outputs.argmax(axis=1)


def mean_loss(features: Features, outputs: np.ndarray) -> float:
    """Mean cross entropy of logits [E, C]."""
    shifted = outputs - outputs.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return float(-log_probabilities[np.arange(len(features)), features.labels].mean())


def constant(train: Features, features: Features, num_labels: int) -> np.ndarray:
    """Always the most frequent class of the training split."""
    outputs = np.zeros((len(features), num_labels))
    outputs[:, np.bincount(train.labels).argmax()] = 1
    return outputs


def count(task: Task, features: Features) -> int:
    """Rows, or the groups of them where a task makes one example of several."""
    if task.example is None or task.regroup is None:
        return len(features)
    return len(task.regroup(features.notes, features.labels, np.zeros((len(features), 2)))[0])


def describe(task: Task, features: Features, outputs: np.ndarray, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Label and probabilities of each example."""
    powers = np.exp(outputs - outputs.max(axis=1, keepdims=True))
    found = []
    for row, absent in zip(powers / powers.sum(axis=1, keepdims=True), np.isneginf(outputs), strict=True):
        chances = {name: chance for name, chance, none in zip(labels, row.tolist(), absent, strict=True) if not none}
        found.append({"label": labels[int(row.argmax())], "probabilities": chances})
    return found


KIND = Kind(
    encode=encode,
    collect_labels=collect_labels,
    num_outputs=lambda num_labels: num_labels,
    loss=loss,
    answers=answers,
    mean_loss=mean_loss,
    constant=constant,
    describe=describe,
    asks_classes=True,
    notes=Values,
    count=count,
)
