"""T5 (Raffel et al. 2020), mT5, Flan-T5 and umT5: their encoder alone, of files that hold the decoder too.

A score is q k, undivided, and a bias by the distance of two tokens, from a table of the first layer that all share (umT5: of
each layer); for a prompt token, which has no position, it is q k alone. The layers are ours, over transformers' parameters:
theirs make a bias of all packed tokens by all. Where transformers keeps `wo` in float32 beside float16, all weights here are of
one type.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoModelForTextEncoding, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.t5.modeling_t5 import T5Attention

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.attention import INDEX, TENSOR_RANK, attention_name, own_dropout
from prompt_tuning.backbone.disentangled import attend_by, nearest
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.kernels import Look, grouped, padded
from prompt_tuning.backbone.rows import PackedRows

_BESIDE = [r"(^|\.)decoder\.", r"(^|\.)encoder\.embed_tokens\."]
"""Patterns of what files hold beside the encoder: the decoder, and the word embedding once more."""


class _Attention(nn.Module):
    """Attention over [prefix ; text] with a bias on the text. Swapped in for transformers' module, whose parameters it uses."""

    n_heads: int
    dropout: float
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    is_padded = False
    """Whether rows are padded and attended to at once, or group by group."""

    def forward(
        self, hidden_states: Tensor, rows: PackedRows, bias: Tensor, captured: dict[int, Tensor] | None = None
    ) -> Tensor:
        """Attention of every token [1, T, H] of its row, from a bias [2L - 1, all heads] by rising distance to the key."""
        layer, rank = getattr(self, INDEX), getattr(self, TENSOR_RANK)
        query, key, value = (
            project(hidden_states).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for project in (self.q, self.k, self.v)
        )
        if captured is not None:
            captured[layer] = torch.stack([key, value])
        own = bias.T[:, None] if rank is None else bias.T[rank * self.n_heads : (rank + 1) * self.n_heads, None]
        rate = self.dropout if self.training else 0.0
        run = padded if self.is_padded or query.device.type != "cpu" else grouped
        with own_dropout(rank, rate, query.device):
            found = run(functools.partial(_attend, own), query, key, value, rows, layer, Look(False), 1.0, rate)
        output: Tensor = self.o(found.flatten(2))
        return output


def _attend(bias: Tensor, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float) -> Tensor:
    """Softmax attention [n, h, l, D] of q [n, h, l, D] over k and v [n, h, P + l, D], with a bias [h, 1, 2L - 1]."""
    length = q.shape[2]
    text = nearest(bias, length)[:, 0].unfold(1, length, 1).flip(1)
    return attend_by(q @ k.transpose(2, 3) * scale, text.to(q.dtype), v, mask, dropout)


class _Block(GradientCheckpointingLayer):  # type: ignore[misc]
    """A layer that hands on whose tokens it sees."""

    def forward(self, hidden_states: Tensor, **named: Any) -> Tensor:
        attending, feeding = self.get_submodule("layer").children()
        found = attending.SelfAttention(attending.layer_norm(hidden_states), **named)
        output: Tensor = feeding(hidden_states + attending.dropout(found))
        return output


class _Norm(nn.Module):
    """The norm in the type of its input. Transformers' takes the mean of squares in float32."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class _Model:
    """The encoder over packed tokens; mixed into transformers' own class."""

    shared: nn.Module
    encoder: Any
    _attention: tuple[Any, ...]

    def forward(
        self,
        input_ids: Tensor,
        rows: PackedRows,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        use_cache: bool = False,
        captured: dict[int, Tensor] | None = None,
    ) -> BaseModelOutput:
        """Last hidden states [1, T, H] of tokens [1, T], which have neither types nor positions of their own."""
        hidden = self.encoder.dropout(self.shared(input_ids))
        index = _index(self.encoder.config, max(group.length for group in rows.groups), hidden.device)
        biases = [own.relative_attention_bias(index) for own in self._attention if own.has_relative_attention_bias]
        for number, block in enumerate(self.encoder.block):
            bias = biases[number] if len(biases) > 1 else biases[0]
            hidden = block(hidden, rows=rows, bias=bias, captured=captured)
        return BaseModelOutput(last_hidden_state=self.encoder.dropout(self.encoder.final_layer_norm(hidden)))

    def set_attn_implementation(self, name: Any, *_: Any, **__: Any) -> None:
        """Whether rows are padded; nothing else of transformers' choices exists here."""
        for own in self._attention:
            own.is_padded = name == attention_name("eager")


def _index(config: Any, longest: int, device: torch.device) -> Tensor:
    """Rows of the table of biases [2L - 1] for keys from L - 1 before the query to L - 1 behind it."""
    buckets, farthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    distance = torch.arange(1 - longest, longest, device=device)
    found: Tensor = T5Attention._relative_position_bucket(distance, num_buckets=buckets, max_distance=farthest)
    return found


def _open(model: PreTrainedModel) -> None:
    """Swap in our classes for transformers', and read the word embedding once, by its own name."""
    encoder: Any = model.get_submodule("encoder")
    del encoder.embed_tokens
    for block in encoder.block:
        block.__class__ = _Block
        block.layer[0].SelfAttention.__class__ = _Attention
        for layer in block.layer:
            layer.layer_norm.__class__ = _Norm
    encoder.final_layer_norm.__class__ = _Norm
    # By themselves: a forward may begin above the first layer, whose table it needs all the same.
    setattr(model, "_attention", tuple(block.layer[0].SelfAttention for block in encoder.block))  # noqa: B010  mypy
    model._keys_to_ignore_on_load_unexpected = _BESIDE
    # A saved config.json names the class.
    model.__class__ = type(type(model).__name__, (_Model, type(model)), {})


FAMILY = Family(
    model_types=("t5", "mt5", "umt5"),
    layers="encoder.block",
    attention="layer.0.SelfAttention",
    by_token=("layer.1", "layer.1"),
    plan=Plan(
        rules=(
            vocabulary("shared"),
            whole("encoder.block.*.layer.0.SelfAttention.relative_attention_bias"),
            columns("encoder.block.*.layer.0.SelfAttention.[qkv]", "heads"),
            rows("encoder.block.*.layer.0.SelfAttention.o", "heads"),
            columns("encoder.block.*.layer.1.DenseReluDense.wi*"),
            rows("encoder.block.*.layer.1.DenseReluDense.wo"),
        ),
        divided=(("encoder.block.*.layer.0.SelfAttention", ("n_heads", "inner_dim")),),
    ),
    pooling="mean",
    hidden_dropout=("dropout_rate",),
    attention_dropout=(),
    has_positions=lambda config: False,
    query_and_value=("q", "v"),
    auto=AutoModelForTextEncoding,
    open=_open,
)
