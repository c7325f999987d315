"""Where a prefix enters: one attention function for all families that dispatch through transformers' interface.

Tokens come end to end, ``[1, T]``, without padding. ``model(..., rows=PackedRows)`` carries where each row begins, and
the prefix of each, as a forward argument down to :func:`prefix_attention`, which lets every token attend to its own row's
prefix and text and to nothing else. No model is patched, and activation checkpointing recomputes the same thing.

Shape letters: T tokens, R rows, n rows of a group, l tokens of each of them, P prompt tokens, G key/value heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

from model_parallel import rng


@dataclass(frozen=True)
class PrefixShape:
    """Sizes that a backbone dictates: layers N, key/value heads G, head size D, hidden size H."""

    num_layers: int
    key_value_heads: int
    head_size: int
    hidden_size: int

    @property
    def layer_width(self) -> int:
        """Numbers of one prompt token in one layer: key and value over all heads."""
        return 2 * self.key_value_heads * self.head_size


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


INDEX = "prefix_layer_index"
"""Attribute of an attention module: which layer of the prefix is its own."""

TENSOR_RANK = "prefix_tensor_rank"
"""Attribute of an attention module: which share of the heads it has; None: all."""


def prefix_attention(
    kernel: Callable[..., Tensor],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    rows: PackedRows | None = None,
    captured: dict[int, Tensor] | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of every token over [prefix ; text] of its row, [1, T, heads, D].

    From query [1, heads, T, D] and key and value [1, G, T, D]. ``kernel`` is what attends; ``captured`` collects every
    layer's own keys and values [2, 1, G, T, D], from which prefixes may start.
    """
    layer = getattr(module, INDEX)
    if captured is not None:
        captured[layer] = torch.stack([key, value])
    assert rows is not None and attention_mask is None, "tokens come packed, and rows say which belong together"
    look = Look(bool(getattr(module, "is_causal", False)), sliding_window)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    with own_dropout(getattr(module, TENSOR_RANK), dropout, query.device):
        return kernel(query, key, value, rows, layer, look, scale, dropout), None


@contextmanager
def own_dropout(tensor_rank: int | None, rate: float, device: torch.device) -> Iterator[None]:
    """Let tensor ranks, which share one random state, drop different attention weights: their heads are different ones.

    The state moves on by one draw on every rank, so that hidden dropout stays equal, and recomputation sees the same.
    """
    if tensor_rank is None or rate == 0:
        yield
        return
    seed = torch.randint(2**62, ())
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(int(rng.fold(seed, tensor_rank)))
        yield


@dataclass(frozen=True)
class Look:
    """Which text a token sees: all of its row, or what is not behind it, and of that the nearest ``window`` tokens."""

    is_causal: bool
    window: int | None = None

    def limits(self, length: int) -> bool:
        """Whether tokens of a row so long do not see all of it."""
        return self.is_causal or (self.window is not None and length > self.window)

    def mask(self, length: int, device: torch.device, front: int = 0) -> Tensor:
        """True where a token of a row [l, 1] sees another [1, front + l]; all see the ``front`` prompt tokens."""
        place = torch.arange(length, device=device)
        distance = place[:, None] - place
        seen = distance >= 0 if self.is_causal else torch.ones_like(distance, dtype=torch.bool)
        if self.window is not None:
            seen &= distance.abs() < self.window
        return nn.functional.pad(seen, (front, 0), value=True)


def grouped(
    query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, layer: int, look: Look, scale: float, dropout: float
) -> Tensor:
    """One call of torch's fused attention for each group of rows of equal length; no row is padded or masked for another."""
    outputs = []
    parts = zip(rows.groups, *(tensor[0].split(rows.sizes, 1) for tensor in (query, key, value)), strict=True)
    for group, *own in parts:
        q, k, v = (part.unflatten(1, (group.num_rows, group.length)).transpose(0, 1) for part in own)
        prefix = rows.prefix(layer, group, k.dtype)
        if prefix is not None:
            k, v = torch.cat([prefix[0], k], 2), torch.cat([prefix[1], v], 2)
        mask = None
        if look.limits(group.length):
            # Torch's own causal rule counts from the first key, which is the prefix's.
            front = k.shape[2] - group.length
            make = functools.partial(look.mask, group.length, query.device, front)
            mask = rows.keep((look, group.length, front), make)
        found = _attend(q, k, v, mask, scale, dropout)
        outputs.append(found.transpose(1, 2).flatten(0, 1))
    return (outputs[0] if len(outputs) == 1 else torch.cat(outputs))[None]


def _attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Torch's fused attention. Of half types in float32: its own half kernels for processors are several times slower backward."""
    dtype = torch.promote_types(q.dtype, torch.float32)
    gqa = q.shape[1] != k.shape[1]
    found = scaled_dot_product_attention(
        q.to(dtype), k.to(dtype), v.to(dtype), mask, dropout, scale=scale, enable_gqa=gqa
    )
    return found.to(q.dtype)


def padded(
    attend: Callable[[Tensor, Tensor, Tensor, Tensor, float, float], Tensor],
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: PackedRows,
    layer: int,
    look: Look,
    scale: float,
    dropout: float,
) -> Tensor:
    """All rows at once, padded to the longest and masked: one call for devices that want few large ones.

    ``attend`` takes query, key and value [R, heads, ...], the mask [R, 1, L, P + L], scale and dropout rate.
    """
    device = query.device
    lengths = [group.length for group in rows.groups for _ in range(group.num_rows)]
    place, real = rows.keep("places", lambda: _places(lengths, device))
    fronts = [rows.prefix(layer, group, key.dtype) for group in rows.groups]
    widths = [0 if front is None else front[0].shape[2] for front in fronts]
    # Padding may hold anything, NaN included, which no weight of 0 takes away.
    q, k, v = (
        tensor[0][:, place].transpose(0, 1).masked_fill(~real[:, None, :, None], 0) for tensor in (query, key, value)
    )
    front = max(widths)
    if front:
        sides = []
        for side in (0, 1):
            pieces = [
                key.new_zeros(group.num_rows, key.shape[1], front, key.shape[3])
                if own is None
                else nn.functional.pad(own[side], (0, 0, 0, front - own[side].shape[2]))
                for group, own in zip(rows.groups, fronts, strict=True)
            ]
            sides.append(torch.cat(pieces))
        k, v = torch.cat([sides[0], k], 2), torch.cat([sides[1], v], 2)

    def mask() -> Tensor:
        counts = torch.tensor([w for group, w in zip(rows.groups, widths, strict=True) for _ in range(group.num_rows)])
        prompt = torch.arange(front, device=device) < counts.to(device)[:, None]
        # A query of the padding sees something, be it nothing of its own: else it was NaN, and so its gradient.
        text = real[:, None] & (look.mask(real.shape[1], device) | ~real[:, :, None])
        return torch.cat([prompt[:, None].expand(-1, real.shape[1], -1), text], 2)[:, None]

    found = attend(q, k, v, rows.keep((look, tuple(widths)), mask), scale, dropout)
    return found.transpose(1, 2)[real][None]


def _places(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Where the tokens of padded rows are [R, L], and which of them are real."""
    sizes = np.array(lengths)
    column = np.arange(sizes.max())
    real = column < sizes[:, None]
    place = np.where(real, np.cumsum(sizes)[:, None] - sizes[:, None] + column, 0)
    return torch.from_numpy(place).to(device), torch.from_numpy(real).to(device)


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    """Torch's fused attention."""
    return scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def written_out(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, dropout: float) -> Tensor:
    """Softmax attention written out, never rounded below the type of its inputs, and the softmax of half types in float32."""
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = (q @ k.transpose(2, 3) * scale).masked_fill(~mask, -torch.inf)
    weights = nn.functional.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
    return nn.functional.dropout(weights, dropout) @ v


def by_device(query: Tensor, *arguments: Any) -> Tensor:
    """What is fastest where the tokens are: groups on a processor; few large calls elsewhere."""
    if query.device.type == "cpu":
        return grouped(query, *arguments)
    return padded(fused, query, *arguments)


KERNELS: dict[str, Callable[..., Tensor]] = {
    "sdpa": by_device,
    "eager": functools.partial(padded, written_out),
}
"""What attends, by the names of ``backbone.attention``."""


def attention_name(kernel: str) -> str:
    """Name under which the prefix version of a kernel is registered."""
    return f"promptfleet_{kernel}"


for _name, _kernel in KERNELS.items():
    # Without a mask function of the same name transformers builds no mask, and none is needed.
    AttentionInterface.register(attention_name(_name), functools.partial(prefix_attention, _kernel))


def open_door(
    model: PreTrainedModel, attention_modules: Iterable[nn.Module], kernel: str, tensor_rank: int | None = None
) -> None:
    """Let prefixes into ``model``: number its attention modules and select our attention function."""
    for index, module in enumerate(attention_modules):
        setattr(module, INDEX, index)
        setattr(module, TENSOR_RANK, tensor_rank)
    model.set_attn_implementation(attention_name(kernel))
