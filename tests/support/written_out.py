"""Encoders whose transformers models know no cache: their layers written out, one row at a time and without padding.

Norms, linear layers and embeddings are transformers' own, with their weights; attention, windows, rotary positions and the
order of everything are written out here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from prompt_tuning.forward.batch import Batch
from tests.support.disentangled import disentangled, root_mean_square_norm
from tests.support.packed import rows_of_texts


def attend(query: Tensor, key: Tensor, value: Tensor, prefix: Tensor, heads: int, window: int | None = None) -> Tensor:
    """Softmax attention of a row's [L, H] over its prefix [P, 2, heads, D] and itself; of the text ``window`` tokens to each
    side, of the prefix all."""
    q, k, v = (side.view(len(side), heads, -1).transpose(0, 1) for side in (query, key, value))
    before_k, before_v = prefix.unbind(1)
    k, v = torch.cat([before_k.transpose(0, 1), k], 1), torch.cat([before_v.transpose(0, 1), v], 1)
    scores = q @ k.transpose(1, 2) / q.shape[2] ** 0.5
    if window is not None:
        place = torch.arange(len(query))
        far = (place[:, None] - place).abs() > window
        scores = scores.masked_fill(nn.functional.pad(far, (len(prefix), 0)), -torch.inf)
    return (scores.softmax(2) @ v).transpose(0, 1).flatten(1)


def distilbert(model: Any, ids: Tensor, types: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    hidden = model.embeddings(ids[None], position_ids=positions[None])[0]
    for number, layer in enumerate(model.transformer.layer):
        own = layer.attention
        sides = (linear(hidden) for linear in (own.q_lin, own.k_lin, own.v_lin))
        inner = layer.sa_layer_norm(hidden + own.out_lin(attend(*sides, table[:, number], model.config.n_heads)))
        hidden = layer.output_layer_norm(inner + layer.ffn(inner))
    return hidden


def albert(model: Any, ids: Tensor, types: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    config, encoder = model.config, model.encoder
    hidden = encoder.embedding_hidden_mapping_in(model.embeddings(ids[None], types[None], positions[None])[0])
    repeats = config.num_hidden_layers // config.num_hidden_groups
    shared = [layer for group in encoder.albert_layer_groups for _ in range(repeats) for layer in group.albert_layers]
    for number, layer in enumerate(shared):
        own = layer.attention
        sides = (linear(hidden) for linear in (own.query, own.key, own.value))
        inner = own.LayerNorm(hidden + own.dense(attend(*sides, table[:, number], config.num_attention_heads)))
        hidden = layer.full_layer_layer_norm(inner + layer.ffn_output(layer.activation(layer.ffn(inner))))
    return hidden


def _turned(states: Tensor, positions: Tensor, base: float, heads: int) -> Tensor:
    """Rotary positions; angles and what is turned are rounded to float32, as in the model, whatever the type of its weights."""
    size = states.shape[1] // heads
    angles = positions[:, None].float() * (1 / base ** (torch.arange(0, size, 2).float() / size))
    cos, sin = (torch.cat([value, value], 1).to(states.dtype)[:, None] for value in (angles.cos(), angles.sin()))
    # Rounded for each term, hence so is each term's gradient.
    whole, (first, second) = (
        states.view(len(states), heads, size),
        states.view(len(states), heads, size).float().chunk(2, 2),
    )
    turned = whole.float() * cos + torch.cat([-second, first], 2) * sin
    return turned.to(states.dtype).flatten(1)


def modernbert(model: Any, ids: Tensor, types: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    config, heads = model.config, model.config.num_attention_heads
    hidden = model.embeddings(ids[None])[0]
    for number, layer in enumerate(model.layers):
        is_local = number % 3 != 0
        base, window = (10_000.0, config.local_attention // 2) if is_local else (160_000.0, None)
        query, key, value = layer.attn.Wqkv(hidden if number == 0 else layer.attn_norm(hidden)).chunk(3, 1)
        query, key = (_turned(side, positions, base, heads) for side in (query, key))
        hidden = hidden + layer.attn.Wo(attend(query, key, value, table[:, number], heads, window))
        hidden = hidden + layer.mlp(layer.mlp_norm(hidden))
    return model.final_norm(hidden)


def t5(model: Any, ids: Tensor, types: Tensor, positions: Tensor, table: Tensor) -> Tensor:
    """Norms in full precision, no scale, and a bias from the first layer's table or (umT5) each layer's own."""
    config, blocks = model.config, model.encoder.block
    place = torch.arange(len(ids))
    hidden = model.shared(ids)
    for number, block in enumerate(blocks):
        own = block.layer[0].SelfAttention
        holder = own if own.has_relative_attention_bias else blocks[0].layer[0].SelfAttention
        where = holder._relative_position_bucket(
            place - place[:, None],
            **(
                {}
                if config.model_type == "umt5"
                else {
                    "num_buckets": holder.relative_attention_num_buckets,
                    "max_distance": holder.relative_attention_max_distance,
                }
            ),
        )
        bias = holder.relative_attention_bias.weight[where].permute(2, 0, 1)
        inner = root_mean_square_norm(block.layer[0].layer_norm, hidden)
        q, k, v = (side(inner).view(len(ids), config.num_heads, -1).transpose(0, 1) for side in (own.q, own.k, own.v))
        before_k, before_v = (side.transpose(0, 1) for side in table[:, number].unbind(1))
        scores = torch.cat([q @ before_k.transpose(1, 2), q @ k.transpose(1, 2) + bias], 2)
        found = scores.softmax(2) @ torch.cat([before_v, v], 1)
        hidden = hidden + own.o(found.transpose(0, 1).flatten(1))
        hidden = hidden + block.layer[-1].DenseReluDense(root_mean_square_norm(block.layer[-1].layer_norm, hidden))
    return root_mean_square_norm(model.encoder.final_layer_norm, hidden)


WRITTEN_OUT: dict[str, Callable[[Any, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "albert": albert,
    "deberta": disentangled,
    "deberta-v2": disentangled,
    "distilbert": distilbert,
    "modernbert": modernbert,
    **dict.fromkeys(("t5", "mt5", "umt5"), t5),
}


def rows_written_out(model: Any, batch: Batch, table: Tensor, start: int) -> Tensor:
    """Hidden states of padded rows [R, L, H], whose texts stand at ``start`` and see one prefix table [P, N, 2, heads, D]."""
    forward, rows = WRITTEN_OUT[model.config.model_type], []
    for first, length in zip(batch.first.tolist(), batch.lengths.tolist(), strict=True):
        ids = batch.input_ids[0, first : first + length]
        types = batch.token_type_ids
        types = torch.zeros_like(ids) if types is None else types[0, first : first + length]
        rows.append(forward(model, ids, types, torch.arange(length) + start, table))
    return rows_of_texts(torch.cat(rows), batch)
