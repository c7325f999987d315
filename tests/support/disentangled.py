"""DeBERTa's layers written out after the papers (He et al. 2021 and 2023), one row at a time and without padding.

Linear layers, embeddings and activations are transformers' own, with their weights; norms, distances, scores and the
convolution are written out here.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from transformers.activations import ACT2FN
from transformers.models.deberta import modeling_deberta
from transformers.models.deberta_v2 import modeling_deberta_v2
from transformers.models.mt5 import modeling_mt5
from transformers.models.t5 import modeling_t5
from transformers.models.umt5 import modeling_umt5


def disentangled(model: Any, ids: Tensor, types: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Hidden states [L, H] of a row's ids, types and positions [L], which sees a prefix table [P, N, 2, heads, D]."""
    encoder, embeddings = model.encoder, model.embeddings
    hidden = embeddings.word_embeddings(ids)
    if model.config.position_biased_input:
        hidden = hidden + embeddings.position_embeddings(positions)
    if model.config.type_vocab_size:
        hidden = hidden + embeddings.token_type_embeddings(types)
    words = hidden = norm(embeddings.LayerNorm, hidden)
    for number, layer in enumerate(encoder.layer):
        found = layer.attention.output.dense(attend(model, layer.attention.self, hidden, table[:, number]))
        inner = norm(layer.attention.output.LayerNorm, hidden + found)
        hidden = norm(layer.output.LayerNorm, inner + layer.output.dense(layer.intermediate(inner)))
        if number == 0 and getattr(encoder, "conv", None) is not None:
            hidden = norm(
                encoder.conv.LayerNorm, hidden + ACT2FN[encoder.conv.conv_act](convolve(encoder.conv.conv, words))
            )
    return hidden


def in_full_precision(monkeypatch: Any) -> None:
    """Let transformers' own DeBERTa and T5 round nothing to float32 in a float64 model, as it does norms and the scores' divisor."""
    for module in (modeling_deberta, modeling_deberta_v2):
        monkeypatch.setattr(
            module, "scaled_size_sqrt", lambda q, factor: torch.tensor(q.shape[-1] * factor, dtype=torch.float64).sqrt()
        )
    monkeypatch.setattr(modeling_deberta.DebertaLayerNorm, "forward", norm)
    for kind in (modeling_t5.T5LayerNorm, modeling_mt5.MT5LayerNorm, modeling_umt5.UMT5LayerNorm):
        monkeypatch.setattr(kind, "forward", root_mean_square_norm)


def norm(module: Any, hidden: Tensor) -> Tensor:
    centred = hidden - hidden.mean(-1, keepdim=True)
    epsilon = getattr(module, "variance_epsilon", None) or module.eps
    return centred / (centred.square().mean(-1, keepdim=True) + epsilon).sqrt() * module.weight + module.bias


def root_mean_square_norm(module: Any, hidden: Tensor) -> Tensor:
    return hidden / (hidden.square().mean(-1, keepdim=True) + module.variance_epsilon).sqrt() * module.weight


def convolve(conv: Any, words: Tensor) -> Tensor:
    size = conv.weight.shape[2]
    around = torch.nn.functional.pad(words, (0, 0, size // 2, size // 2))
    return conv.bias + sum(around[i : i + len(words)] @ conv.weight[:, :, i].T for i in range(size))


def attend(model: Any, own: Any, hidden: Tensor, prefix: Tensor) -> Tensor:
    config, heads = model.config, model.config.num_attention_heads
    kinds = config.pos_att_type or []
    if config.model_type == "deberta":
        q, k, v = own.in_proj(hidden).view(len(hidden), heads, -1).chunk(3, 2)
        q, v = q + own.q_bias.view(heads, -1), v + own.v_bias.view(heads, -1)
        keys, queries = getattr(own, "pos_proj", None), getattr(own, "pos_q_proj", None)
    else:
        q, k, v = (
            linear(hidden).view(len(hidden), heads, -1) for linear in (own.query_proj, own.key_proj, own.value_proj)
        )
        shared = getattr(config, "share_att_key", False)
        keys = own.key_proj if shared else getattr(own, "pos_key_proj", None)
        queries = own.query_proj if shared else getattr(own, "pos_query_proj", None)
    scores = torch.einsum("ihd,jhd->hij", q, k)
    if config.relative_attention:
        vectors = model.encoder.rel_embeddings.weight
        if "layer_norm" in getattr(config, "norm_rel_ebd", "none"):
            vectors = norm(model.encoder.LayerNorm, vectors)
        where = places(config, len(hidden))
        if "c2p" in kinds:
            scores = scores + torch.einsum("ihd,ijhd->hij", q, keys(vectors).view(len(vectors), heads, -1)[where])
        if "p2c" in kinds:
            scores = scores + torch.einsum("jhd,ijhd->hij", k, queries(vectors).view(len(vectors), heads, -1)[where])
    before_k, before_v = prefix.unbind(1)
    scores = torch.cat([torch.einsum("ihd,phd->hip", q, before_k), scores], 2) / math.sqrt(
        q.shape[2] * (1 + len(kinds))
    )
    return torch.einsum("hij,jhd->ihd", scores.softmax(2), torch.cat([before_v, v])).flatten(1)


def places(config: Any, length: int) -> Tensor:
    """Rows of the table of relative positions for each query and key [L, L]."""
    longest = config.max_relative_positions if config.max_relative_positions > 0 else config.max_position_embeddings
    buckets = getattr(config, "position_buckets", -1)
    span = buckets if buckets > 0 else longest
    found = [[bucket(i - j, buckets, longest) + span for j in range(length)] for i in range(length)]
    return torch.tensor(found).clamp(0, 2 * span - 1)


def bucket(distance: int, buckets: int, longest: int) -> int:
    middle = buckets // 2
    if buckets <= 0 or abs(distance) <= middle:
        return distance
    share = math.log(abs(distance) / middle) / math.log((longest - 1) / middle)
    return int(math.copysign(math.ceil(share * (middle - 1)) + middle, distance))
