"""Rows of several members as arrays: the pool they come from, items to run, and the batch that runs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_tuning.tokens.features import Features


@dataclass(frozen=True)
class Batch:
    """Rows of several members, sorted by member; R rows, L padded length, E examples.

    ``members`` are the fleet indices of the members in the batch and ``member_of_row`` [R] counts them.
    ``spans`` has, for each of ``members``, its examples and its rows as slices.
    """

    input_ids: Tensor
    token_type_ids: Tensor | None
    lengths: Tensor
    members: tuple[int, ...]
    member_of_row: Tensor
    spans: tuple[tuple[slice, slice], ...]
    labels: Tensor
    """[E] class index or value; 0 where every token is asked."""
    tags: Tensor | None
    """[R, L] labels of the tokens, negative where they have none; None where no member asks tokens."""
    weights: Tensor
    """[E] float64: 1 / (terms of the member's loss in the whole step), 0 for a dummy."""
    examples: Tensor
    """[E] index of each example in its member's split."""
    row_examples: Tensor
    """[R] the same for each row, choices told apart: example * rows_per_example + choice."""

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; copies to a GPU do not wait for it."""

        def move(tensor: Tensor) -> Tensor:
            if device.type == "cuda" and tensor.device.type == "cpu":
                return tensor.pin_memory().to(device, non_blocking=True)
            return tensor.to(device)

        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        moved: dict[str, Any] = {name: move(tensor) for name, tensor in tensors.items()}
        return replace(self, **moved)


class Pool:
    """The features of several members, each data set once, from which a batch is gathered in a few vectorised reads.

    Nothing is copied: arrays that are mapped from files stay there until a batch asks for some of their rows.
    """

    def __init__(self, features: list[Features]) -> None:
        self.sources = list(dict.fromkeys(features))
        place = {id(source): i for i, source in enumerate(self.sources)}
        self.source_of = np.array([place[id(own)] for own in features])
        """[members] Which of the sources a member reads."""
        self.rows_per_example = np.array([own.rows_per_example for own in features])
        self.has_types = all(source.token_types is not None for source in self.sources)
        self.has_tags = any(source.tags is not None for source in self.sources)

    def by_source(self, members: np.ndarray) -> Iterator[tuple[Features, np.ndarray]]:
        """Each source that some members read, and the places [some] of those in ``members``."""
        sources = self.source_of[members]
        for number in np.unique(sources):
            yield self.sources[number], np.flatnonzero(sources == number)

    def longest(self, members: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Tokens of the longest row of each example."""
        found = np.empty(len(examples), np.int64)
        for source, places in self.by_source(members):
            found[places] = source.longest(examples[places])
        return found


@dataclass(frozen=True)
class Items:
    """Examples to run: member (fleet index), index within the member's split, and loss weight; arrays of one length."""

    members: np.ndarray
    examples: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.members)

    def take(self, index: np.ndarray) -> Items:
        """Some of the items."""
        return Items(self.members[index], self.examples[index], self.weights[index])

    @staticmethod
    def of(parts: list[tuple[int, np.ndarray, float]]) -> Items:
        """From (member, examples, weight) triples."""
        return Items(
            np.concatenate([np.full(len(examples), member) for member, examples, _ in parts]),
            np.concatenate([examples for _, examples, _ in parts]),
            np.concatenate([np.full(len(examples), weight) for _, examples, weight in parts]),
        )
