"""The backbone as transformers' whole language model, so that its own `generate` writes texts behind a prompt.

The prompt enters once, as the beginning of the key/value cache, and transformers' stock attention and masks do the rest; in
training it enters at the attention function, which needs no cache. Both see the same: see
:meth:`prompt_tuning.backbone.find.Description.check_writes` for where they would not.

Shape letters: B rows, P prompt tokens, N layers, G key/value heads, D head size.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModelForCausalLM,
    AutoModelForSeq2SeqLM,
    DynamicCache,
    PreTrainedModel,
)
from transformers.masking_utils import eager_mask

from model_parallel.vocabulary import VocabularyParallelOutput
from prompt_tuning.backbone.attention import TENSOR_RANK, attention_name, select_attention
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.backbone.swapped import as_stock
from prompt_tuning.errors import UserError


@contextmanager
def writer(backbone: Backbone, attention: str) -> Iterator[PreTrainedModel]:
    """The language model of the backbone's own modules, no weight copied, with a stock attention kernel while this is open."""
    if backbone.language_head is None:
        raise UserError(
            "the prompt writes texts, but its backbone was loaded without language head; use attach(prompt)"
        )
    if backbone.description.has_encoder:
        with _both(backbone, attention) as both:
            yield both
        return
    model = backbone.model
    # Of transformers' kernels the eager one alone bends scores to a cap.
    kernel = "eager" if getattr(model.config, "attn_logit_softcapping", None) else attention
    config = copy.deepcopy(model.config)
    config._attn_implementation = kernel
    with torch.device("meta"):
        shell: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=model.dtype)
    setattr(shell, shell.base_model_prefix, model)
    # The shell scales and caps logits itself.
    chain: Any = getattr(backbone.language_head, "head", backbone.language_head)
    (output,) = chain.children()
    shell.set_output_embeddings(_Logits(output))
    was_training, modules = model.training, backbone.family.attention_modules(model)
    shell.eval()
    select_attention(model, modules, kernel)
    try:
        yield shell
    finally:
        select_attention(model, modules, attention_name(attention))
        model.train(was_training)


@contextmanager
def _both(backbone: Backbone, attention: str) -> Iterator[PreTrainedModel]:
    """The encoder-decoder with its language head, transformers' own forward and :func:`_behind_prefix` at each attention."""
    model, modules = backbone.model, backbone.family.attention_modules(backbone.model)
    with torch.device("meta"):
        shell: PreTrainedModel = AutoModelForSeq2SeqLM.from_config(copy.deepcopy(model.config), dtype=model.dtype)
    if hasattr(shell, shell.base_model_prefix):
        setattr(shell, shell.base_model_prefix, model)
    else:  # T5's has the parts of the model themselves
        for name, part in model.named_children():
            setattr(shell, name, part)
    head: Any = backbone.language_head
    (output,) = getattr(head, "head", head).children()
    shell.set_output_embeddings(_Logits(output))
    if hasattr(shell, "final_logits_bias"):
        bias = head.own.get_buffer("final_logits_bias") if hasattr(head, "own") else None
        zeros = torch.zeros(1, model.config.vocab_size, dtype=model.dtype, device=model.device)
        shell.register_buffer("final_logits_bias", zeros if bias is None else bias)
    was_training = model.training
    shell.eval()
    try:
        with as_stock(model):
            select_attention(model, modules, _WRITTEN)
            yield shell
    finally:
        select_attention(model, modules, attention_name(attention))
        model.train(was_training)
        for module in modules:
            setattr(module, _FRONT, None)


_WRITTEN, _FRONT = "promptfleet_written", "prefix_in_front"


def put_in_front(backbone: Backbone, tables: list[Tensor | None], reached: list[tuple[int, ...] | None]) -> None:
    """Prompts of the rows that an encoder-decoder writes next: tables [P, N, 2, G, D], one a row, as keys and values.

    ``reached``: levels that see each row's table; None: all. The others see nothing of it.
    """
    shape, model = backbone.shape, backbone.model
    none = torch.zeros(0, shape.num_layers, 2, shape.key_value_heads, shape.head_size, device=model.device)
    none = none[..., backbone.local_heads, :]
    own = [none if table is None else table for table in tables]
    longest = max(map(len, own))
    pieces = [nn.functional.pad(table, (0, 0) * 4 + (longest - len(table), 0)) for table in own]
    whole = torch.stack(pieces).to(model.dtype)  # [B, P, N, 2, G, D]
    counts = torch.tensor([longest - len(table) for table in own], device=model.device)
    is_there = torch.arange(longest, device=model.device) >= counts[:, None]
    for layer, module in enumerate(backbone.family.attention_modules(model)):
        keys, values = whole[:, :, layer].transpose(1, 3).unbind(2)  # [B, G, P, D]
        sees = torch.tensor([levels is None or layer in levels for levels in reached], device=model.device)
        mask = torch.where(is_there & sees[:, None], 0.0, -torch.inf).to(model.dtype)[:, None, None]
        setattr(module, _FRONT, (keys, values, mask))


def _behind_prefix(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    scaling: float,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Stock attention with each row's prompt in front of its keys; a decoder's rows are several beams of each.

    ``position_bias``: what is added to scores of keys that have positions [1, all heads, L, K], which a prompt has not.
    """
    front = getattr(module, _FRONT)
    keys, values, seen = (own.repeat_interleave(len(query) // len(own), 0) for own in front)
    if mask is None:
        mask = query.new_zeros(len(query), 1, query.shape[2], key.shape[2])
    seen = seen.expand(-1, -1, query.shape[2], -1)
    whole = torch.cat([seen, mask.to(seen.dtype).expand(len(query), -1, -1, -1)], 3)
    if position_bias is not None:
        rank, heads = getattr(module, TENSOR_RANK), query.shape[1]
        # Between the sides, where it is zero, it is made for this rank's heads.
        if rank is not None and position_bias.shape[1] > heads:
            position_bias = position_bias[:, rank * heads : (rank + 1) * heads]
        whole = whole + nn.functional.pad(position_bias, (keys.shape[2], 0))
    found = nn.functional.scaled_dot_product_attention(
        query, torch.cat([keys, key], 2), torch.cat([values, value], 2), whole, scale=scaling
    )
    return found.transpose(1, 2), None


AttentionInterface.register(_WRITTEN, _behind_prefix)
# A mask is always made, in which the causal rule does not count the prompt.
AttentionMaskInterface.register(_WRITTEN, eager_mask)


class _Logits(nn.Module):
    """The language head as `generate` calls it; of tensor ranks that have a part of the vocabulary each, all logits, so that all
    choose the same tokens."""

    def __init__(self, output: nn.Module) -> None:
        super().__init__()
        self.output = output

    def forward(self, hidden: Tensor) -> Tensor:
        # The last states of texts do not lie end to end, and torch would copy the weights once for each of them.
        logits: Tensor = self.output(hidden.contiguous())
        return self.output.whole(logits) if isinstance(self.output, VocabularyParallelOutput) else logits


def cache_of(tables: list[Tensor], repeats: int, dtype: torch.dtype) -> DynamicCache | None:
    """Prompts as a cache that has seen them: tables [P, N, 2, G, D], one a row, padded in front to the longest.

    ``repeats``: how many beams share a row, side by side. None where no row has a prompt.
    """
    longest = max(map(len, tables))
    if not longest:
        return None
    pieces = [torch.nn.functional.pad(table, (0, 0) * 4 + (longest - len(table), 0)) for table in tables]
    whole = torch.stack(pieces).to(dtype).repeat_interleave(repeats, 0)  # [B, P, N, 2, G, D]
    cache = DynamicCache()
    for layer in range(whole.shape[2]):
        keys, values = whole[:, :, layer].unbind(2)
        cache.update(keys.transpose(1, 2), values.transpose(1, 2), layer)
    return cache
