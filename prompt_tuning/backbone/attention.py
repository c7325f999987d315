"""Where a prefix enters: one attention function for all families that dispatch through transformers' interface.

``model(..., prefix=PrefixRows)`` carries the prefix as a forward argument down to :func:`prefix_attention`, which puts it
in front of keys and values after rotary embedding and projection, extends the mask, and calls the kernel. No model
is patched, and activation checkpointing recomputes the same thing.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

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


@dataclass
class PrefixRows:
    """What the attention function needs: each row's prefix, gathered layer by layer, only when a layer asks.

    ``tables`` has [M, P, 2, G, D] for each of the N layers, zero beyond a prompt's own length, so that no member's numbers enter another's
    softmax even masked. ``present`` [M, N, P] says which prompt columns exist. ``patterns`` has one entry a layer: None
    where no prompt has a prefix, else a number that layers with the same present columns share. Dropout is a function of
    ``row_keys`` [R] alone, hence the same in the recomputation of activation checkpointing.
    """

    tables: tuple[Tensor, ...]
    present: Tensor
    patterns: tuple[int | None, ...]
    member_of_row: Tensor
    row_keys: Tensor | None = None
    dropout: Tensor | None = None
    """Dropout rate of each row [R]; None: no dropout."""
    heads: slice = field(default_factory=lambda: slice(None))
    """Which of ``all_heads`` key/value heads the tables hold."""
    all_heads: int = 0
    _masks: dict[tuple[int, int | None], tuple[Tensor, Tensor]] = field(default_factory=dict)

    def keys_values(self, layer: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Keys and values of every row in one layer: two tensors [R, G, P, D]."""
        table = self.tables[layer]
        rows = len(self.member_of_row)
        # One prompt needs no gather: an expanded view is concatenated straight into the keys.
        gathered = (
            table.expand(rows, *table.shape[1:]) if len(table) == 1 else table.index_select(0, self.member_of_row)
        )
        if self.dropout is not None and self.row_keys is not None:
            # Drawn for all heads and then cut, so that the same numbers fall whatever share this rank has.
            size = (rows, *table.shape[1:3], self.all_heads, table.shape[-1])
            keep = rng.keep_mask(rng.fold(self.row_keys, layer), math.prod(size[1:]), self.dropout).view(size)
            scale = (1 / (1 - self.dropout)).to(gathered.dtype)
            gathered = gathered * (keep[:, :, :, self.heads] * scale.view(-1, 1, 1, 1, 1))
        gathered = gathered.to(dtype)
        keys, values = gathered.unbind(2)
        return keys.transpose(1, 2), values.transpose(1, 2)

    def extend_mask(self, layer: int, mask: Tensor) -> Tensor:
        """``mask`` [R, 1, queries, keys], bool (True: attend) or additive, with the prompt columns in front.

        Computed once per forward for each mask and each distinct set of present columns.
        """
        entry = (id(mask), self.patterns[layer])
        if entry not in self._masks:
            columns = self.present[:, layer][self.member_of_row][:, None, None, :]
            columns = columns.expand(*mask.shape[:3], columns.shape[-1])
            if mask.dtype != torch.bool:
                lowest = torch.finfo(mask.dtype).min
                columns = torch.zeros_like(columns, dtype=mask.dtype).masked_fill(~columns, lowest)
            # The source mask is kept beside the result: its id stays taken as long as the entry lives.
            self._masks[entry] = (mask, torch.cat([columns, mask], dim=-1))
        return self._masks[entry][1]


INDEX = "prefix_layer_index"
"""Attribute of an attention module: which layer of the prefix is its own."""

TENSOR_RANK = "prefix_tensor_rank"
"""Attribute of an attention module: which share of the heads it has; None: all."""


def prefix_attention(
    kernel: Callable[..., tuple[Tensor, Tensor | None]],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix: PrefixRows | None = None,
    captured: dict[int, Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over [prefix ; text] for query [R, heads, L, D] and key, value [R, G, L, D]; ``kernel`` is what attends.

    ``captured`` collects every layer's own keys and values [2, R, G, L, D], from which prefixes may start.
    """
    layer = getattr(module, INDEX)
    if captured is not None:
        captured[layer] = torch.stack([key, value])
    if prefix is not None and prefix.patterns[layer] is not None:
        # Without a mask, stock SDPA would cut the last keys of a causal model, whose keys outnumber its queries.
        assert attention_mask is not None, "our mask functions always build a mask"
        prefix_key, prefix_value = prefix.keys_values(layer, key.dtype)
        key = torch.cat([prefix_key, key], dim=2)
        value = torch.cat([prefix_value, value], dim=2)
        attention_mask = prefix.extend_mask(layer, attention_mask)
    with own_dropout(getattr(module, TENSOR_RANK), kwargs.get("dropout", 0.0), query.device):
        return kernel(module, query, key, value, attention_mask, **kwargs)


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


def eager_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention written out; returns the weights too.

    The modelling files' own eager functions take LLaMA's softmax in float32 even for float64; this one never rounds below
    the type of its inputs, and takes it in float32 for half types.
    """
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, dim=1), value.repeat_interleave(groups, dim=1)
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask
    softmax_dtype = torch.promote_types(scores.dtype, torch.float32)
    weights = nn.functional.softmax(scores, dim=-1, dtype=softmax_dtype).to(query.dtype)
    weights = nn.functional.dropout(weights, dropout, module.training)
    return (weights @ value).transpose(1, 2).contiguous(), weights


KERNELS: dict[str, tuple[Callable[..., Any], Callable[..., Any]]] = {
    "sdpa": (sdpa_attention_forward, sdpa_mask),
    "eager": (eager_attention, eager_mask),
}
"""Attention kernels by name, each with the function that builds its mask."""


def _always(build: Callable[..., Any]) -> Callable[..., Any]:
    """A mask function that never answers None: a prefix needs a mask to extend, and asking "is it all ones" would wait
    for the device."""

    def mask(*args: Any, **kwargs: Any) -> Any:
        kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        return build(*args, **kwargs)

    return mask


def attention_name(kernel: str) -> str:
    """Name under which the prefix version of a kernel is registered."""
    return f"promptfleet_{kernel}"


for _name, (_kernel, _mask) in KERNELS.items():
    AttentionInterface.register(attention_name(_name), functools.partial(prefix_attention, _kernel))
    AttentionMaskInterface.register(attention_name(_name), _always(_mask))


def open_door(
    model: PreTrainedModel, attention_modules: Iterable[nn.Module], kernel: str, tensor_rank: int | None = None
) -> None:
    """Let prefixes into ``model``: number its attention modules and select our attention function."""
    for index, module in enumerate(attention_modules):
        setattr(module, INDEX, index)
        setattr(module, TENSOR_RANK, tensor_rank)
    model.set_attn_implementation(attention_name(kernel))
