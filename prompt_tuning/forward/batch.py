"""Rows of several members as arrays: the pool they come from, items to run, and the batch that runs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from prompt_tuning.backbone.rows import Group
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.packed import MemberRows, Teacher


def moved(tensor: Tensor, device: torch.device) -> Tensor:
    """A tensor on a device; a copy from the CPU to a GPU does not wait for it."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


@dataclass(frozen=True)
class Span:
    """A member's part of a batch."""

    examples: slice
    rows: slice
    tokens: slice
    asked: slice
    """Its tokens that have a label, among those of all members."""
    longest: int
    """Text tokens of its longest row."""
    is_taught: bool
    """Whether its rows have teachers (:class:`Teacher`)."""


@dataclass(frozen=True)
class Fronts:
    """The F tokens that are no text: trained vectors stand there (input prompts)."""

    places: Tensor
    """[F] Where they stand."""
    vectors: Tensor
    """[F] Which of the vectors of all the batch's members, one member's behind another's."""
    rows: Tensor
    """[F] Their rows."""
    columns: Tensor
    """[F] Which of its member's vectors each is."""


@dataclass(frozen=True)
class Batch:
    """Rows of several members, sorted by member: R rows, E examples, and T tokens that stand end to end.

    Rows stand in another order than they are counted: those of equal length side by side, so that they can run together.
    ``members`` are the fleet indices of the members in the batch and ``member_of_row`` [R] counts them.
    """

    input_ids: Tensor
    """[1, T]"""
    token_type_ids: Tensor | None
    positions: Tensor
    """[1, T] Place of each token behind its row's first, and behind the prefix where the member counts it."""
    groups: tuple[Group, ...]
    read: Tensor | None
    """Places of the tokens of which some head sees the last hidden states; None: of all."""
    standing: Tensor
    """[R] The rows in the order in which they stand."""
    rates: Tensor | None
    """[R] float64: dropout of each row's prompt; None: nothing drops."""
    members: tuple[int, ...]
    member_of_row: Tensor
    spans: tuple[Span, ...]
    """What is whose, for each of ``members``."""
    first: Tensor
    """[R] Place of each row's first text token."""
    lengths: Tensor
    """[R] Text tokens."""
    tokens: Tensor
    """[t] Places of all text tokens, row after row."""
    row_of_token: Tensor
    """[t] The row of each, counted from its member's first one."""
    tags: Tensor | None
    """[t] Labels of the tokens, negative where they have none; None where no member asks tokens."""
    asked: Tensor | None
    """[a] The tokens that have a label, counted from their member's first one; None as ``tags``."""
    teacher: Teacher | None
    """Of all [a] asked places; None where no row has one."""
    fronts: Fronts | None
    labels: Tensor
    """[E] class index or value; 0 where every token is asked."""
    weights: Tensor
    """[E] float64: 1 / (terms of the member's loss in the whole step), 0 for a dummy."""
    examples: Tensor
    """[E] index of each example in its member's split."""
    row_examples: Tensor
    """[R] the same for each row, choices told apart: example * rows_per_example + choice."""
    layer: int = 0
    """Where the forward begins."""
    states: Tensor | None = None
    """[1, T, H] Hidden states that enter that layer; None: it begins at the embeddings."""

    def rows_of(self, place: int) -> MemberRows:
        """The rows of the member at a place of ``members``."""
        span = self.spans[place]
        tags = None if self.tags is None else self.tags[span.tokens]
        asked = None if self.asked is None else self.asked[span.asked]
        return MemberRows(
            self.first[span.rows],
            self.lengths[span.rows],
            self.tokens[span.tokens],
            self.row_of_token[span.tokens],
            tags,
            asked,
            span.longest,
            _each(self.teacher, lambda tensor: tensor[span.asked]) if span.is_taught else None,
        )

    def to(self, device: torch.device) -> Batch:
        """The batch on a device; see :func:`moved`."""
        fronts = _each(self.fronts, lambda own: moved(own, device))
        teacher = _each(self.teacher, lambda own: moved(own, device))
        tensors = {name: value for name, value in vars(self).items() if isinstance(value, Tensor)}
        there: dict[str, Any] = {name: moved(tensor, device) for name, tensor in tensors.items()}
        return replace(self, fronts=fronts, teacher=teacher, **there)


_Record = TypeVar("_Record", Fronts, Teacher)


def _each(record: _Record | None, change: Callable[[Tensor], Tensor]) -> _Record | None:
    """A record of tensors with each of them changed."""
    return None if record is None else type(record)(*map(change, vars(record).values()))


FIRST, LAST, ALL = range(3)
_READS = {"first": FIRST, "pooler": FIRST, "context": FIRST, "last": LAST}


@dataclass(frozen=True)
class PromptShapes:
    """What the prompts of a pool's members do to the layout of their rows; int64 arrays [members]."""

    lengths: np.ndarray
    """Prompt tokens."""
    fronts: np.ndarray
    """Vectors in front of the text's own (input prompts)."""
    starts: np.ndarray
    """Position of the first text token behind a prefix."""
    rates: np.ndarray
    """float64: dropout of prompts."""
    reads: np.ndarray
    """Which tokens of a row the head sees: :data:`FIRST`, :data:`LAST` or :data:`ALL`."""

    @staticmethod
    def none(members: int) -> PromptShapes:
        """Of members without prompts."""
        zero = np.zeros(members, np.int64)
        return PromptShapes(zero, zero, zero, zero.astype(np.float64), zero + ALL)

    @staticmethod
    def of(prompts: Sequence[Prompt]) -> PromptShapes:
        """Of some prompts."""

        def whole(values: Iterable[int]) -> np.ndarray:
            return np.array(list(values), np.int64)

        return PromptShapes(
            lengths=whole(prompt.length for prompt in prompts),
            fronts=whole(0 if prompt.inputs is None else prompt.length for prompt in prompts),
            starts=whole(prompt.text_start for prompt in prompts),
            rates=np.array([prompt.dropout for prompt in prompts]),
            reads=whole(_READS.get(prompt.head.pooling, ALL) for prompt in prompts),
        )


class Pool:
    """The features of several members, each data set once, from which a batch is gathered in a few vectorised reads.

    Nothing is copied: arrays that are mapped from files stay there until a batch asks for some of their rows.
    """

    def __init__(self, features: list[Features], shapes: PromptShapes | None = None) -> None:
        self.shapes = shapes or PromptShapes.none(len(features))
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

    def num_tokens(self, members: np.ndarray, examples: np.ndarray) -> np.ndarray:
        """Tokens of all rows of each example, and of the prompt in front of each of them."""
        found = np.empty(len(examples), np.int64)
        for source, places in self.by_source(members):
            found[places] = source.lengths_of(examples[places])
        return np.asarray(found + self.rows_per_example[members] * self.shapes.lengths[members])


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
