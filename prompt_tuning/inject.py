"""Where a prefix enters: one attention function for all families that dispatch through transformers' interface.

``model(..., prefix=PrefixRows)`` carries the prefix as a forward argument down to :func:`prefix_attention`, which puts it
in front of keys and values after rotary embedding and projection, extends the mask, and calls the stock kernel. No model
is patched, and activation checkpointing recomputes the same thing.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.masking_utils import AttentionMaskInterface, eager_mask, sdpa_mask

from prompt_tuning.prefix import PrefixRows

INDEX = "prefix_layer_index"
"""Attribute of an attention module: which layer of the prefix is its own."""


def prefix_attention(
    stock: str,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    prefix: PrefixRows | None = None,
    captured: dict[int, Tensor] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """Attention over [prefix ; text] for query [R, heads, L, D] and key, value [R, G, L, D]; ``stock`` names the kernel.

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
    return _stock_kernel(stock, module)(module, query, key, value, attention_mask, **kwargs)


def _stock_kernel(stock: str, module: nn.Module) -> Callable[..., tuple[Tensor, Tensor | None]]:
    if stock == "eager":
        # Every modelling file has its own eager function, beside the attention class.
        return sys.modules[type(module).__module__].eager_attention_forward  # type: ignore[no-any-return]
    return AttentionInterface()[stock]  # type: ignore[no-any-return]


def _always(build: Callable[..., Any]) -> Callable[..., Any]:
    """A mask function that never answers None: a prefix needs a mask to extend, and asking "is it all ones" would wait
    for the device."""

    def mask(*args: Any, **kwargs: Any) -> Any:
        kwargs.update(allow_is_causal_skip=False, allow_is_bidirectional_skip=False)
        return build(*args, **kwargs)

    return mask


_MASKS = {"sdpa": sdpa_mask, "eager": eager_mask}


def attention_name(stock: str) -> str:
    """Name under which the prefix version of a stock kernel is registered."""
    return f"promptfleet_{stock}"


for _stock, _build in _MASKS.items():
    AttentionInterface.register(attention_name(_stock), functools.partial(prefix_attention, _stock))
    AttentionMaskInterface.register(attention_name(_stock), _always(_build))


def open_door(model: PreTrainedModel, attention_modules: Iterable[nn.Module], stock: str) -> None:
    """Let prefixes into ``model``: number its attention modules and select our attention function."""
    for index, module in enumerate(attention_modules):
        setattr(module, INDEX, index)
    model.set_attn_implementation(attention_name(stock))
