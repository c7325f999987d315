"""Transformers' encoder-decoders with a prefix at all three attentions, written out, one row at a time and without cache.

Shape letters: P prompt tokens, N levels (encoder, decoder, cross), G heads, D head size.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AutoModelForSeq2SeqLM

from prompt_tuning.tokens.features import Features

FRONT: dict[nn.Module, Tensor] = {}
"""Keys and values [P, 2, G, D] that stand in front of a module's own."""


def concatenated(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Any,
    scaling: float,
    position_bias: Tensor | None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Attention of one row with a prefix, written out; the only mask is the causal one, and a prefix has no position."""
    keys, values = (own.transpose(0, 1).expand(len(key), -1, -1, -1) for own in FRONT[module].unbind(1))
    key, value = torch.cat([keys, key], 2), torch.cat([values, value], 2)
    scores = query @ key.transpose(2, 3) * scaling
    if position_bias is not None:
        scores = scores + torch.cat(
            [position_bias.new_zeros(*position_bias.shape[:3], keys.shape[2]), position_bias], 3
        )
    if module.is_causal:
        seen = torch.ones(scores.shape[2:], dtype=torch.bool).tril(key.shape[2] - query.shape[2])
        scores = scores.masked_fill(~seen, -torch.inf)
    return (scores.softmax(-1) @ value).transpose(1, 2), None


AttentionInterface.register("concatenated", concatenated)


@cache
def stock(folder: Path) -> Any:
    """transformers' own model of a folder, float64."""
    return AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float64, attn_implementation="concatenated").eval()


def stock_logits(
    folder: Path, table: Tensor, source: list[int], decoded: list[int], reached: Collection[int] | None = None
) -> Tensor:
    """Logits [t, vocabulary] of one row behind a ``table`` [P, N, 2, G, D], which the levels ``reached`` see; None: all."""
    reached = range(table.shape[1]) if reached is None else reached
    model = stock(folder)
    if model.config.model_type == "bart":
        encoder, decoder = model.model.encoder.layers, model.model.decoder.layers
        modules = [layer.self_attn for layer in [*encoder, *decoder]] + [layer.encoder_attn for layer in decoder]
    else:
        encoder, decoder = model.encoder.block, model.decoder.block
        modules = [block.layer[0].SelfAttention for block in [*encoder, *decoder]]
        modules += [block.layer[1].EncDecAttention for block in decoder]
    FRONT.clear()
    FRONT.update({module: table[: len(table) * (layer in reached), layer] for layer, module in enumerate(modules)})
    assert len(modules) == table.shape[1]
    ids = torch.tensor([source]), torch.tensor([decoded])
    found: Tensor = model(input_ids=ids[0], decoder_input_ids=ids[1], use_cache=False).logits[0]
    return found


def rows_of(features: Features) -> Iterator[tuple[int, list[int], list[int]]]:
    """Number, source and target of each row."""
    assert features.tags is not None
    for row in range(len(features)):
        part = slice(features.offsets[row], features.offsets[row + 1])
        tags = features.tags[part]
        yield row, features.tokens[part][: features.notes.num_source[row]].tolist(), tags[tags >= 0].tolist()


def start_of(folder: Path) -> int:
    """The token with which a target begins."""
    return int(stock(folder).config.decoder_start_token_id)


def greedy(
    folder: Path, table: Tensor, source: list[int], most: int, reached: Collection[int] | None = None
) -> list[int]:
    """The likeliest token, again and again, up to the end token 3."""
    written = [start_of(folder)]
    while len(written) <= most:
        written.append(int(stock_logits(folder, table, source, written, reached)[-1].argmax()))
        if written[-1] == 3:
            break
    return written[1:]


def beams(folder: Path, table: Tensor, source: list[int], most: int, width: int) -> list[int]:
    """transformers' beam search, without cache, of one row."""
    model = stock(folder)
    stock_logits(folder, table, source, [start_of(folder)])  # puts the prefix in front
    found = model.generate(
        input_ids=torch.tensor([source]),
        num_beams=width,
        max_new_tokens=most,
        eos_token_id=3,
        pad_token_id=model.config.pad_token_id,
        use_cache=False,
    )
    tokens: list[int] = found[0, 1:].tolist()
    return tokens
