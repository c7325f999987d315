"""What attends: one function a device, over packed tokens [1, heads, T, D] whose rows know their prefixes.

Shape letters: T tokens, R rows, L tokens of the longest, n rows of a group, l tokens of each of them, P prompt tokens, G
key/value heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from prompt_tuning.backbone.apart import Prompt, Text, attend_apart
from prompt_tuning.backbone.rows import PackedRows


@dataclass(frozen=True)
class Look:
    """Which text a token sees: all of its row, or what is not behind it, and of that the nearest ``window`` tokens.

    ``reads_only``: what the tokens see that no head reads does not count.
    """

    is_causal: bool
    window: int | None = None
    reads_only: bool = False

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


def apart(
    query: Tensor, key: Tensor, value: Tensor, rows: PackedRows, layer: int, look: Look, scale: float, dropout: float
) -> Tensor:
    """Each row's text and its member's prefix attended to apart and merged; half types in float32, see :func:`_attend`.

    Where anything drops, prefixes and texts are put together instead: :func:`grouped`.
    """
    if dropout or rows.drops or rows.looks_at is not None:
        return grouped(fused, query, key, value, rows, layer, look, scale, dropout)
    read = _read(rows, look)
    q, k, v = query[0] if read is None else query[0].index_select(1, read), key[0], value[0]
    dtype = torch.promote_types(q.dtype, torch.float32)
    texts = rows.keep(("texts", look, read is None), lambda: _texts(rows, look, read is None, dtype, q.device))
    prompts: list[Prompt] = []
    tables: list[Tensor] = []
    for group in rows.by_member:
        table = rows.table(layer, group.member)
        if table is not None:
            prompts.append(Prompt(group.tokens if read is None else group.rows, len(tables)))
            tables.append(table.to(key.dtype).to(dtype))
    found = attend_apart(q.to(dtype), k.to(dtype), v.to(dtype), texts, prompts, tables, scale).to(q.dtype)
    return _spread(found, read, query.shape[2])


def _texts(rows: PackedRows, look: Look, all_read: bool, dtype: torch.dtype, device: torch.device) -> list[Text]:
    """How each group of rows attends to itself."""
    texts = []
    for group in rows.groups:
        is_cut = look.window is not None and group.length > look.window
        mask = torch.where(look.mask(group.length, device), 0.0, -torch.inf).to(dtype) if is_cut else None
        is_causal = look.is_causal and group.length > 1 and not is_cut
        texts.append(Text(group.tokens if all_read else group.rows, group.tokens, group.num_rows, is_causal, mask))
    return texts


def _read(rows: PackedRows, look: Look) -> Tensor | None:
    """The only tokens whose attention counts, one a row in the order of the rows; None: all."""
    return rows.read if look.reads_only and not any(look.limits(group.length) for group in rows.groups) else None


def _spread(found: Tensor, read: Tensor | None, tokens: int) -> Tensor:
    """What attention found [read tokens, heads, D] in its place among all tokens, [1, T, heads, D]."""
    if read is not None:
        found = found.new_zeros(tokens, *found.shape[1:]).index_copy(0, read, found)
    return found[None]


Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None, float, float], Tensor]
"""Attention of query, key and value [n, heads, ...], under a mask or all of it, with scale and dropout rate."""


def grouped(
    attend: Attend,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    rows: PackedRows,
    layer: int,
    look: Look,
    scale: float,
    dropout: float,
) -> Tensor:
    """One call over [prefix ; text] for each group of rows; none is padded for another.

    Of half types in float32: torch's own half kernels for processors are several times slower backward.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    outputs = []
    read = _read(rows, look)
    q_all = query[0] if read is None else query[0].index_select(1, read)
    sizes = [group.num_tokens for group in rows.groups]
    seen = [group.num_tokens for group in (rows.looks_at or rows).groups]
    # Split at once: the gradients of slices would each be as large as all tokens'.
    queries = q_all.split(sizes if read is None else [group.num_rows for group in rows.groups], 1)
    for group, *own in zip(rows.groups, queries, key[0].split(seen, 1), value[0].split(seen, 1), strict=True):
        q, k, v = (part.unflatten(1, (group.num_rows, -1)).transpose(0, 1) for part in own)
        prefix = rows.prefix(layer, group, k.dtype)
        if prefix is not None:
            k, v = torch.cat([prefix[0], k], 2), torch.cat([prefix[1], v], 2)
        mask = None
        if look.limits(group.length):
            # Torch's own causal rule counts from the first key, which is the prefix's.
            front = k.shape[2] - group.length
            make = functools.partial(look.mask, group.length, query.device, front)
            mask = rows.keep((look, group.length, front), make)
        found = attend(q.to(dtype), k.to(dtype), v.to(dtype), mask, scale, dropout)
        outputs.append(found.to(query.dtype).transpose(1, 2).flatten(0, 1))
    return _spread(outputs[0] if len(outputs) == 1 else torch.cat(outputs), read, query.shape[2])


def padded(
    attend: Attend,
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
    if rows.looks_at is not None:
        return grouped(attend, query, key, value, rows, layer, look, scale, dropout)
    device = query.device
    lengths = [group.length for group in rows.groups for _ in range(group.num_rows)]
    place, real, texts = rows.keep("places", lambda: _places(lengths, device))
    fronts = [rows.prefix(layer, group, key.dtype) for group in rows.by_member]
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
                for group, own in zip(rows.by_member, fronts, strict=True)
            ]
            sides.append(torch.cat(pieces))
        k, v = torch.cat([sides[0], k], 2), torch.cat([sides[1], v], 2)

    def mask() -> Tensor:
        counts = torch.tensor([w for own, w in zip(rows.by_member, widths, strict=True) for _ in range(own.num_rows)])
        prompt = torch.arange(front, device=device) < counts.to(device)[:, None]
        # A query of the padding sees something, be it nothing of its own: else it was NaN, and so its gradient.
        text = real[:, None] & (look.mask(real.shape[1], device) | ~real[:, :, None])
        return torch.cat([prompt[:, None].expand(-1, real.shape[1], -1), text], 2)[:, None]

    found = attend(q, k, v, rows.keep((look, tuple(widths)), mask), scale, dropout)
    return found.transpose(1, 2).flatten(0, 1).index_select(0, texts)[None]


def _places(lengths: list[int], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Where the tokens of padded rows are [R, L], which of them are real, and the places of those among all R * L."""
    sizes = np.array(lengths)
    column = np.arange(sizes.max())
    real = column < sizes[:, None]
    place = np.where(real, np.cumsum(sizes)[:, None] - sizes[:, None] + column, 0)
    places, is_real, texts = (torch.from_numpy(array).to(device) for array in (place, real, np.flatnonzero(real)))
    return places, is_real, texts


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Torch's fused attention."""
    return scaled_dot_product_attention(q, k, v, mask, dropout, scale=scale, enable_gqa=q.shape[1] != k.shape[1])


def written_out(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float, softcap: float | None = None
) -> Tensor:
    """Softmax attention written out, never rounded below the type of its inputs, and the softmax of half types in float32.

    ``softcap`` bends scores so that none is as large (Gemma 2).
    """
    repeats = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(repeats, 1), v.repeat_interleave(repeats, 1)
    scores = q @ k.transpose(2, 3) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, -torch.inf)
    weights = nn.functional.softmax(scores, -1, dtype=torch.promote_types(scores.dtype, torch.float32)).to(q.dtype)
    return nn.functional.dropout(weights, dropout) @ v


def capped(softcap: float, *arguments: Any) -> Tensor:
    """Every kernel's part where scores are capped, which torch's fused attention can not."""
    return padded(functools.partial(written_out, softcap=softcap), *arguments)


def by_device(query: Tensor, *arguments: Any) -> Tensor:
    """What is fastest where the tokens are: nothing copied on a processor; few large calls elsewhere."""
    if query.device.type == "cpu":
        return apart(query, *arguments)
    return padded(fused, query, *arguments)


KERNELS: dict[str, Callable[..., Tensor]] = {
    "sdpa": by_device,
    "eager": functools.partial(padded, written_out),
}
"""What attends, by the names of ``backbone.attention``."""
