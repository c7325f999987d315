"""The rows that packed tokens belong to, and the prefix that each row sees.

Shape letters: R rows, n rows of a group, P prompt tokens, G key/value heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor

from model_parallel import rng

Table = tuple[Tensor | None, ...]
"""A prefix as attention takes it: keys and values [P, 2, G, D] for each layer; None where it does not reach."""


@dataclass(frozen=True)
class Group:
    """Neighbouring rows of one member: of equal length, or (:attr:`PackedRows.by_member`) all that it has."""

    rows: slice
    """In the order in which their tokens stand."""
    tokens: slice
    member: int
    """Whose they are: its place in the batch."""
    encoded: int = 0
    """Tokens with which each row begins that an encoder reads; 0: there is none."""

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return int(self.rows.stop - self.rows.start)

    @property
    def num_tokens(self) -> int:
        """Tokens of all its rows."""
        return int(self.tokens.stop - self.tokens.start)

    @property
    def length(self) -> int:
        """Tokens of each row, where they are equally long."""
        return self.num_tokens // self.num_rows

    @staticmethod
    def neighbours(rows: Iterable[tuple[int, ...]]) -> tuple[Group, ...]:
        """Of rows, given as (member, tokens) or (member, tokens, encoded tokens) in the order in which they stand."""
        groups, row, token = [], 0, 0
        for (member, length, *encoded), some in groupby(rows):
            row_end = row + sum(1 for _ in some)
            token_end = token + (row_end - row) * length
            groups.append(Group(slice(row, row_end), slice(token, token_end), member, *encoded))
            row, token = row_end, token_end
        return tuple(groups)


@dataclass
class PackedRows:
    """What the attention function needs to know of the tokens that it sees: their rows, and each row's prefix."""

    groups: tuple[Group, ...]
    """Of all rows, in the order in which their tokens stand: member after member."""
    read: Tensor | None = None
    """Places of the tokens of which some head sees the last hidden states; None: of all."""
    tables: tuple[Table | None, ...] = ()
    """By a member's place in the batch; None: it has no prefix. Empty: nobody has."""
    row_keys: Tensor | None = None
    """[R] From which alone dropout follows, hence the same when checkpointing recomputes; None: none."""
    dropout: Tensor | None = None
    """[R] Dropout rate of each row's prefix."""
    heads: slice = field(default_factory=lambda: slice(None))
    """Which of ``all_heads`` key/value heads the tables hold."""
    all_heads: int = 0
    deltas: tuple[Mapping[str, Tensor] | None, ...] = ()
    """By a member's place in the batch: what is added to the backbone's vectors of these names; empty: nothing to any."""
    encoder: PackedRows | None = None
    """The same rows in an encoder, at whose tokens these look too; None: there is none."""
    looks_at: PackedRows | None = None
    """The rows to whose tokens all of these attend; None: to their own."""
    _kept: dict[Any, Any] = field(default_factory=dict)

    @functools.cached_property
    def by_member(self) -> tuple[Group, ...]:
        """The rows of each member."""
        found = []
        for member, some in groupby(self.groups, key=lambda group: group.member):
            first, *others = some
            last = others[-1] if others else first
            rows, tokens = (slice(a.start, b.stop) for a, b in ((first.rows, last.rows), (first.tokens, last.tokens)))
            found.append(Group(rows, tokens, member))
        return tuple(found)

    @property
    def drops(self) -> bool:
        """Whether rows of one member see different prefixes, because each drops some of its own."""
        return self.dropout is not None and self.row_keys is not None

    def table(self, layer: int, member: int) -> Tensor | None:
        """Keys and values [P, 2, G, D] of a member in a layer; None: there are none."""
        table = self.tables[member] if self.tables else None
        return None if table is None else table[layer]

    def prefix(self, layer: int, group: Group, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the rows of a group in one layer, two tensors [n, G, P, D]; None: there are none.

        Rows share a view of their member's table, and nothing is copied, unless something drops.
        """
        table = self.table(layer, group.member)
        if table is None:
            return None
        found = table.expand(group.num_rows, *table.shape)
        if self.dropout is not None and self.row_keys is not None:
            # Drawn for all heads and then cut, so that the same numbers fall whatever share this rank has.
            keys, rates = self.row_keys[group.rows], self.dropout[group.rows]
            size = (group.num_rows, *table.shape[:2], self.all_heads, table.shape[-1])
            keep = rng.keep_mask(rng.fold(keys, layer), size[1] * size[2] * size[3] * size[4], rates).view(size)
            scale = (1 / (1 - rates)).to(found.dtype)
            found = found * (keep[:, :, :, self.heads] * scale.view(-1, 1, 1, 1, 1))
        keys_, values = found.to(dtype).unbind(2)
        return keys_.transpose(1, 2), values.transpose(1, 2)

    def over(self, lengths: Iterable[int]) -> PackedRows:
        """The same rows, each group's of another length, for attention to other tokens than these."""
        groups, token = [], 0
        for group, length in zip(self.groups, lengths, strict=True):
            end = token + length * group.num_rows
            groups.append(Group(group.rows, slice(token, end), group.member))
            token = end
        return replace(self, groups=tuple(groups), read=None, _kept={})

    @property
    def across(self) -> PackedRows:
        """These rows as they look at the encoder's."""
        found: PackedRows = self.keep("across", lambda: replace(self, looks_at=self.encoder, _kept={}))
        return found

    def keep(self, name: Any, make: Callable[[], Any]) -> Any:
        """What all layers share: made once."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]
