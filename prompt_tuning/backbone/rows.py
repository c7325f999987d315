"""The rows that packed tokens belong to, and the prefix that each row sees.

Shape letters: R rows, n rows of a group, P prompt tokens, G key/value heads, D head size, M members of one form.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from model_parallel import rng


@dataclass(frozen=True)
class Group:
    """Neighbouring rows of equal length whose prefixes are of one form: one call of a kernel attends for all of them."""

    rows: slice
    """In the order in which their tokens stand."""
    length: int
    """Tokens of each."""
    form: int
    """Number of their prefixes' form; -1: they have none."""
    member: int | None
    """Whose they are, where they are all one member's: its place in the batch."""

    @property
    def num_rows(self) -> int:
        """How many rows."""
        return int(self.rows.stop - self.rows.start)

    @property
    def num_tokens(self) -> int:
        """Tokens of all its rows."""
        return self.num_rows * self.length


@dataclass(frozen=True)
class PrefixTables:
    """The prefixes of one form of a batch's members, one above the other."""

    layers: tuple[Tensor | None, ...]
    """[M, P, 2, G, D] for each layer; None where these prefixes do not reach."""
    places: dict[int, int]
    """Where the table of a member (place in the batch) stands among the M."""


@dataclass
class PackedRows:
    """What the attention function needs to know of the tokens that it sees: their rows, and each row's prefix."""

    groups: tuple[Group, ...]
    """Of all rows, in the order in which their tokens stand."""
    read: Tensor | None = None
    """Places of the tokens of which some head sees the last hidden states; None: of all."""
    tables: dict[int, PrefixTables] = field(default_factory=dict)
    """By the number of a form."""
    table_rows: Tensor | None = None
    """[R] Row of each row's own table among those of its form."""
    row_keys: Tensor | None = None
    """[R] From which alone dropout follows, hence the same when checkpointing recomputes; None: none."""
    dropout: Tensor | None = None
    """[R] Dropout rate of each row's prefix."""
    heads: slice = field(default_factory=lambda: slice(None))
    """Which of ``all_heads`` key/value heads the tables hold."""
    all_heads: int = 0
    _kept: dict[Any, Any] = field(default_factory=dict)

    @functools.cached_property
    def sizes(self) -> list[int]:
        """Tokens of each group."""
        return [group.num_tokens for group in self.groups]

    def prefix(self, layer: int, group: Group, dtype: torch.dtype) -> tuple[Tensor, Tensor] | None:
        """Keys and values of the rows of a group in one layer, two tensors [n, G, P, D]; None: there are none."""
        table = self.tables[group.form].layers[layer] if group.form in self.tables else None
        if table is None:
            return None
        if group.member is not None:
            # Rows of one member share a view of its table, and nothing is copied.
            place = self.tables[group.form].places[group.member]
            found = table[place].expand(group.num_rows, *table.shape[1:])
        else:
            assert self.table_rows is not None
            found = table.index_select(0, self.table_rows[group.rows])
        if self.dropout is not None and self.row_keys is not None:
            # Drawn for all heads and then cut, so that the same numbers fall whatever share this rank has.
            keys, rates = self.row_keys[group.rows], self.dropout[group.rows]
            size = (group.num_rows, *table.shape[1:3], self.all_heads, table.shape[-1])
            keep = rng.keep_mask(rng.fold(keys, layer), size[1] * size[2] * size[3] * size[4], rates).view(size)
            scale = (1 / (1 - rates)).to(found.dtype)
            found = found * (keep[:, :, :, self.heads] * scale.view(-1, 1, 1, 1, 1))
        keys_, values = found.to(dtype).unbind(2)
        return keys_.transpose(1, 2), values.transpose(1, 2)

    def keep(self, name: Any, make: Callable[[], Any]) -> Any:
        """What all layers share: made once."""
        if name not in self._kept:
            self._kept[name] = make()
        return self._kept[name]
