"""Kinds of task: what the head sees, how its logits become a loss, and how they become answers. One file each.

A file named ``<kind>.py`` holds ``KIND``; the trainer never asks which one it has. Shape letters: E examples, R rows,
t text tokens end to end, C outputs of the head. A pooled kind has one vector a row and logits [E, C]; where ``per_token``
is set, the head sees every token, an example is one row, and logits are [t, C].
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from prompt_tuning.formats import LocatedRow
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.packed import MemberRows
from prompt_tuning.tokens.recipe import Recipe


@dataclass(frozen=True)
class Targets:
    """What a member's part of a batch should have answered: ``labels`` and ``weights`` [E], and its rows with their tags."""

    labels: Tensor
    weights: Tensor
    rows: MemberRows | None = None
    """None where texts are all that is known, which pooled kinds without tags need no more of."""

    @property
    def tokens(self) -> tuple[MemberRows, Tensor]:
        """The rows and the tags [t] of their tokens, where tokens are asked."""
        assert self.rows is not None and self.rows.tags is not None
        return self.rows, self.rows.tags


@dataclass(frozen=True)
class Kind:
    """The mechanism of a kind of task. ``outputs`` in numpy are float64, [E, C] or, per token, [tokens of the split, k]."""

    encode: Callable[[Recipe, list[LocatedRow]], Features]
    """Tokens, labels and notes of some of the task's own rows."""
    collect_labels: Callable[[Task, Iterable[LocatedRow]], tuple[str, ...]]
    """Labels in the order of the logits, from the training split."""
    num_outputs: Callable[[int], int]
    """Outputs of the head for so many labels."""
    loss: Callable[[Tensor, Targets], Tensor]
    """Weighted sum over examples (or labelled tokens) of their losses."""
    answers: Callable[[Task, Features, np.ndarray, tuple[str, ...]], tuple[Any, Any]]
    """Gold and predicted answers of a whole split, as the task's metrics take them."""
    mean_loss: Callable[[Features, Any], float]
    constant: Callable[[Features, Features, int], np.ndarray]
    """Outputs of the best answer that looks at no text, from the training split's labels: the majority class."""
    describe: Callable[[Task, Features, np.ndarray, tuple[str, ...]], list[dict[str, Any]]]
    """Predictions of rows for people."""
    keep: Callable[[Tensor, Targets], Tensor] = lambda logits, targets: logits
    """What an evaluation keeps of the logits of a batch: [E, C], or [t, k] per token."""
    count: Callable[[Task, Features], int] = lambda task, features: len(features)
    """How many examples, as the task counts them, a split holds."""
    notes: type[Any] | None = None
    """Record of what scoring needs beside the arrays of :class:`Features`; None: nothing."""
    per_token: bool = False
    asks_classes: bool = False
    """Whether an example's label is one of the task's labels."""
    drops_hidden: bool = True
    """Whether prompt dropout also falls on what the head sees."""
    trains_bias: bool = True
    writes: bool = False
    """Whether the language model writes the answers. What ``answers``, ``describe``, ``mean_loss`` and ``constant`` call outputs
    is then a list of :class:`prompt_tuning.metrics.generation.Written`."""


def find_kind(name: str) -> Kind:
    """The kind of a task's ``kind``."""
    kind: Kind = importlib.import_module(f"{__name__}.{name}").KIND
    return kind
