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
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from model_parallel.vocabulary import VocabularyParallelOutput
from prompt_tuning.backbone.attention import attention_name, select_attention
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.errors import UserError


@contextmanager
def writer(backbone: Backbone, attention: str) -> Iterator[PreTrainedModel]:
    """The language model of the backbone's own modules, no weight copied, with a stock attention kernel while this is open."""
    if backbone.language_head is None:
        raise UserError(
            "the prompt writes texts, but its backbone was loaded without language head; use attach(prompt)"
        )
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
    shell.set_output_embeddings(_Whole(output) if isinstance(output, VocabularyParallelOutput) else output)
    was_training, modules = model.training, backbone.family.attention_modules(model)
    shell.eval()
    select_attention(model, modules, kernel)
    try:
        yield shell
    finally:
        select_attention(model, modules, attention_name(attention))
        model.train(was_training)


class _Whole(nn.Module):
    """All logits from those that each tensor rank has of its part of the vocabulary, so that all choose the same tokens."""

    def __init__(self, output: VocabularyParallelOutput) -> None:
        super().__init__()
        self.output = output

    def forward(self, hidden: Tensor) -> Tensor:
        return self.output.whole(self.output(hidden))


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
