"""Which examples run together, on which rank, and how their tokens are laid out.

Every rank computes the same plan from lengths that all know, so no counts are exchanged and every rank runs the same
number of forwards; a rank with nothing left runs a dummy example of weight 0. Padding is this file's way to lay rows
out; another way replaces :func:`lay_out` alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_tuning.features import NO_TAG, Features


def default_budget(device: torch.device, gathers: bool = False) -> int:
    """Tokens of one forward: few keep a CPU's caches warm and padding low; many fill a GPU, or pay for the weights that
    every forward ``gathers`` (ZeRO-3)."""
    return 1024 if device.type == "cpu" and not gathers else 16384


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


def plan(pool: Pool, items: Items, prompt_lengths: np.ndarray, budget: int, rank: int, ranks: int) -> Iterator[Items]:
    """This rank's micro-batches of at most ``budget`` padded tokens, longest first, equally many on every rank.

    ``prompt_lengths`` [members] are the prompt tokens that each row of a member brings; a batch pads texts and prompts to
    its longest of each. An example longer than the budget runs alone.
    """
    texts = np.empty(len(items), np.int64)
    for member in np.unique(items.members):
        mine = items.members == member
        texts[mine] = pool.example_lengths[member][items.examples[mine]]
    prompts, rows = prompt_lengths[items.members], pool.rows_per_example[items.members]
    order = np.argsort(-(texts + prompts), kind="stable")
    shares = [order[other::ranks] for other in range(ranks)]
    cuts = [_cut(texts[share], prompts[share], rows[share], budget) for share in shares]
    yield from (items.take(shares[rank][start:end]) for start, end in cuts[rank])
    dummy = items.take(order[-1:])
    for _ in range(max(map(len, cuts)) - len(cuts[rank])):
        yield Items(dummy.members, dummy.examples, np.zeros(1))


def _cut(texts: np.ndarray, prompts: np.ndarray, rows: np.ndarray, budget: int) -> list[tuple[int, int]]:
    """Starts and ends of batches of examples, given each one's longest text, prompt length and rows; longest sum first."""
    cut, start = [], 0
    while start < len(texts):
        # No later row is wider by itself than the first, so at most this many come into question.
        window = slice(start, start + max(1, int(budget // (texts[start] + prompts[start]))))
        widths = np.maximum.accumulate(texts[window]) + np.maximum.accumulate(prompts[window])
        tokens = widths * np.cumsum(rows[window])
        end = start + max(1, int(np.searchsorted(tokens, budget, side="right")))
        cut.append((start, end))
        start = end
    return cut


def lay_out(pool: Pool, items: Items, pad_token: int, device: torch.device) -> Batch:
    """Gather the items' tokens into right-padded rows on the device."""
    items = items.take(np.argsort(items.members, kind="stable"))
    members, member_of_example = np.unique(items.members, return_inverse=True)
    per_example = pool.rows_per_example[items.members]
    row_examples = np.repeat(items.examples * per_example, per_example)
    row_ends = np.cumsum(per_example)
    row_examples += np.arange(row_ends[-1]) - np.repeat(row_ends - per_example, per_example)
    rows = np.repeat(pool.first_row[items.members], per_example) + row_examples
    lengths = pool.lengths[rows]
    column = np.arange(lengths.max())
    real = column < lengths[:, None]
    index = np.where(real, pool.starts[rows][:, None] + column, 0)
    input_ids = np.where(real, pool.tokens[index], pad_token).astype(np.int64)
    token_types = None if pool.token_types is None else np.where(real, pool.token_types[index], 0).astype(np.int64)
    tags = None if pool.tags is None else np.where(real, pool.tags[index], NO_TAG).astype(np.int64)
    example_ends = np.searchsorted(member_of_example, np.arange(len(members)), side="right")
    spans, example_start, row_start = [], 0, 0
    for end in example_ends.tolist():
        row_end = int(row_ends[end - 1])
        spans.append((slice(example_start, end), slice(row_start, row_end)))
        example_start, row_start = end, row_end
    labels = pool.labels[pool.first_example[items.members] + items.examples]

    return Batch(
        input_ids=torch.from_numpy(input_ids),
        token_type_ids=None if token_types is None else torch.from_numpy(token_types),
        lengths=torch.from_numpy(lengths),
        members=tuple(members.tolist()),
        member_of_row=torch.from_numpy(np.repeat(member_of_example, per_example)),
        spans=tuple(spans),
        labels=torch.from_numpy(labels),
        tags=None if tags is None else torch.from_numpy(tags),
        weights=torch.from_numpy(items.weights),
        examples=torch.from_numpy(items.examples),
        row_examples=torch.from_numpy(row_examples),
    ).to(device)
