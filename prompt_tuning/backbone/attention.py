"""Where a prefix enters: one attention function for all families that dispatch through transformers' interface.

Tokens come end to end, ``[1, T]``, without padding. ``model(..., rows=PackedRows)`` carries where each row begins, and
the prefix of each, as a forward argument down to :func:`prefix_attention`, which lets every token attend to its own row's
prefix and text and to nothing else. No model is patched, and activation checkpointing recomputes the same thing.

Shape letters: T tokens, G key/value heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from model_parallel import rng
from prompt_tuning.backbone.kernels import KERNELS, Look, capped
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.errors import UserError


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


INDEX = "prefix_layer_index"
"""Attribute of an attention module: which layer of the prefix is its own; none's where the forward says a depth."""

ACROSS = "prefix_looks_across"
"""Attribute of an attention module that attends from a decoder's tokens to an encoder's; others have none."""

LAST = "prefix_last_layer"
"""Attribute of an attention module: the last layer, of which only what is read counts."""

TENSOR_RANK = "prefix_tensor_rank"
"""Attribute of an attention module: which share of the heads it has; None: all."""


_NO_MATTER = {"cache_position", "deterministic", "output_attentions", "position_ids", "token_type_ids", "use_cache"}
"""Arguments that models hand on and that change no attention of packed tokens."""


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
    softcap: float | None = None,
    is_causal: bool | None = None,
    rows: PackedRows | None = None,
    captured: dict[int, Tensor] | None = None,
    depth: int | None = None,
    **others: Any,
) -> tuple[Tensor, None]:
    """Attention of every token over [prefix ; text] of its row, [1, T, heads, D].

    From query [1, heads, T, D] and key and value [1, G, T, D]. ``kernel`` is what attends; ``captured`` collects every
    layer's own keys and values [2, 1, G, T, D], from which prefixes may start. ``depth`` is the layer, where several share
    the module. Raises :class:`UserError` for what else a model asks of attention, such as sinks or a bias.
    """
    for name, wanted in others.items():
        if wanted is not None and name not in _NO_MATTER:
            raise UserError(
                f"{type(module).__name__} asks its attention for {name!r}, which prompts are not built for; choose another backbone"
            )
    layer = getattr(module, INDEX) if depth is None else depth
    if captured is not None:
        captured[layer] = torch.stack([key, value])
    assert rows is not None and attention_mask is None, "tokens come packed, and rows say which belong together"
    if getattr(module, ACROSS, False):
        rows = rows.across
    causal = getattr(module, "is_causal", False) if is_causal is None else is_causal
    look = Look(bool(causal), sliding_window, layer == getattr(module, LAST))
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if softcap is not None:
        kernel = functools.partial(capped, softcap)
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


def attention_name(kernel: str) -> str:
    """Name under which the prefix version of a kernel is registered."""
    # Transformers asks of a name with "sdpa" in it that the model takes torch's own attention, which Gemma 2 does not.
    return f"promptfleet_{kernel.replace('sdpa', 'fused')}"


for _name, _kernel in KERNELS.items():
    # Without a mask function of the same name transformers builds no mask, and none is needed.
    AttentionInterface.register(attention_name(_name), functools.partial(prefix_attention, _kernel))


def open_door(
    model: PreTrainedModel,
    attention_modules: Iterable[nn.Module],
    kernel: str,
    tensor_rank: int | None = None,
    across: Iterable[nn.Module] = (),
) -> None:
    """Let prefixes into ``model``: number its attention modules and select our attention function.

    ``across``: those of them that attend from a decoder to an encoder.
    """
    modules = list(attention_modules)
    for index, module in enumerate(modules):
        setattr(module, INDEX, index)
        setattr(module, LAST, len(modules) - 1)
        setattr(module, TENSOR_RANK, tensor_rank)
    for module in across:
        setattr(module, ACROSS, True)
    select_attention(model, modules, attention_name(kernel))


def select_attention(model: PreTrainedModel, attention_modules: Iterable[nn.Module], name: str) -> None:
    """Let ``model`` attend by the function that is registered as ``name``."""
    model.set_attn_implementation(name)
    for module in attention_modules:
        if getattr(module, "config", model.config) is not model.config:  # with its share of the heads
            module.config._attn_implementation = name  # type: ignore[union-attr]
