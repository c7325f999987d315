"""Rows of several members as arrays: the pool they come from, items to run, and the batch that runs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_tuning.tokens.features import NO_TAG, Features


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
    """The features of several members in one set of arrays, so that a batch is gathered in a few vectorised reads."""

    def __init__(self, features: list[Features]) -> None:
        distinct = list(dict.fromkeys(features))
        row_base = np.cumsum([0, *[len(f.offsets) - 1 for f in distinct]])
        token_base = np.cumsum([0, *[len(f.tokens) for f in distinct]])
        self.tokens = np.concatenate([f.tokens for f in distinct])
        self.token_types = (
            np.concatenate([f.token_types for f in distinct if f.token_types is not None])
            if all(f.token_types is not None for f in distinct)
            else None
        )
        self.starts = np.concatenate([f.offsets[:-1] + base for f, base in zip(distinct, token_base, strict=False)])
        self.lengths = np.concatenate([np.diff(f.offsets) for f in distinct])
        place = {id(f): i for i, f in enumerate(distinct)}
        self.first_row = np.array([row_base[place[id(f)]] for f in features])
        example_base = np.cumsum([0, *[len(f) for f in distinct]])
        self.first_example = np.array([example_base[place[id(f)]] for f in features])
        self.labels = np.concatenate([f.labels for f in distinct])
        self.tags = None
        if any(f.tags is not None for f in distinct):
            none = [np.full(len(f.tokens), NO_TAG, np.int32) if f.tags is None else f.tags for f in distinct]
            self.tags = np.concatenate(none)
        self.rows_per_example = np.array([f.rows_per_example for f in features])
        self.example_lengths = [np.diff(f.offsets).reshape(-1, f.rows_per_example).max(1) for f in features]


@dataclass(frozen=True)
class Items:
    """Examples to run: member (fleet index), index within the member's split, and loss weight; arrays of one length."""

    members: np.ndarray
    examples: np.ndarray
    weights: np.ndarray

    def __len__(self) -> int:
        return len(self.members)

    def take(self, index: np.ndarray) -> Items:
        return Items(self.members[index], self.examples[index], self.weights[index])

    @staticmethod
    def of(parts: list[tuple[int, np.ndarray, float]]) -> Items:
        """From (member, examples, weight) triples."""
        return Items(
            np.concatenate([np.full(len(examples), member) for member, examples, _ in parts]),
            np.concatenate([examples for _, examples, _ in parts]),
            np.concatenate([np.full(len(examples), weight) for _, examples, weight in parts]),
        )
