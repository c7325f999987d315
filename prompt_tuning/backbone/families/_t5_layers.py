"""T5's layers over packed tokens: ours, over transformers' parameters, as theirs make a bias of all packed tokens by all.

A score is q k, undivided, and a bias by the distance of two tokens of one side, from a table of the first layer that all share
(umT5: of each layer); for a prompt token, which has no position, and between the sides it is q k alone. Where transformers
keeps `wo` in float32 beside float16, all weights here are of one type.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.models.t5.modeling_t5 import T5Attention

from prompt_tuning.backbone.attention import INDEX, TENSOR_RANK, attention_name, own_dropout
from prompt_tuning.backbone.disentangled import attend_by, nearest
from prompt_tuning.backbone.kernels import Look, grouped, padded
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.backbone.swapped import swap


class _Attention(nn.Module):
    """Attention over [prefix ; text] with a bias on the text. Swapped in for transformers' module, whose parameters it uses."""

    n_heads: int
    dropout: float
    is_causal: bool
    q: nn.Module
    k: nn.Module
    v: nn.Module
    o: nn.Module
    is_padded = False
    """Whether rows are padded and attended to at once, or group by group."""

    def forward(
        self,
        hidden_states: Tensor,
        rows: PackedRows,
        bias: Tensor | None = None,
        captured: dict[int, Tensor] | None = None,
        encoded: Tensor | None = None,
    ) -> Tensor:
        """Attention of every token [1, T, H] of its row, or of the row's ``encoded`` tokens [1, S, H].

        ``bias``: [2L - 1, all heads] by rising distance to the key; None: there is none.
        """
        layer, rank = getattr(self, INDEX), getattr(self, TENSOR_RANK)
        seen = hidden_states if encoded is None else encoded
        query, key, value = (
            project(states).unflatten(2, (self.n_heads, -1)).transpose(1, 2)
            for project, states in ((self.q, hidden_states), (self.k, seen), (self.v, seen))
        )
        if captured is not None:
            captured[layer] = torch.stack([key, value])
        own = None
        if bias is not None:
            own = bias.T[:, None] if rank is None else bias.T[rank * self.n_heads : (rank + 1) * self.n_heads, None]
        look = Look(self.is_causal)
        rows = rows if encoded is None else rows.across
        rate = self.dropout if self.training else 0.0
        run = padded if self.is_padded or query.device.type != "cpu" else grouped
        with own_dropout(rank, rate, query.device):
            found = run(functools.partial(_attend, own), query, key, value, rows, layer, look, 1.0, rate)
        output: Tensor = self.o(found.flatten(2))
        return output


def _attend(
    bias: Tensor | None, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, dropout: float
) -> Tensor:
    """Softmax attention [n, h, l, D] of q [n, h, l, D] over k and v [n, h, P + l, D], with a bias [h, 1, 2L - 1]."""
    scores, text = q @ k.transpose(2, 3) * scale, None
    if bias is not None:
        length = q.shape[2]
        text = nearest(bias, length)[:, 0].unfold(1, length, 1).flip(1).to(q.dtype)
    return attend_by(scores, text, v, mask, dropout)


class _Block(GradientCheckpointingLayer):  # type: ignore[misc]
    """A layer that hands on whose tokens it sees, and what the encoder made of theirs."""

    def forward(
        self,
        hidden_states: Tensor,
        rows: PackedRows,
        bias: Tensor,
        captured: dict[int, Tensor] | None = None,
        encoded: Tensor | None = None,
    ) -> Tensor:
        attending, *across, feeding = self.get_submodule("layer").children()
        found = attending.SelfAttention(attending.layer_norm(hidden_states), rows=rows, bias=bias, captured=captured)
        hidden_states = hidden_states + attending.dropout(found)
        for layer in across:
            found = layer.EncDecAttention(
                layer.layer_norm(hidden_states), rows=rows, captured=captured, encoded=encoded
            )
            hidden_states = hidden_states + layer.dropout(found)
        output: Tensor = feeding(hidden_states)
        return output


class _Norm(nn.Module):
    """The norm in the type of its input. Transformers' takes the mean of squares in float32."""

    weight: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)


class Packed:
    """What T5's models share; mixed into transformers' own class."""

    _attention: tuple[Any, ...]

    def set_attn_implementation(self, name: Any, *_: Any, **__: Any) -> None:
        """Whether rows are padded; nothing else of transformers' choices exists here."""
        for own in self._attention:
            own.is_padded = name == attention_name("eager")


def through(stack: Any, attention: Sequence[Any], words: Tensor, rows: PackedRows, **named: Any) -> Tensor:
    """Last hidden states [1, T, H] of a stack whose layers have these modules for ``attention`` to itself, from words [1, T, H]."""
    hidden = stack.dropout(words)
    index = _index(stack.config, max(group.length for group in rows.groups), hidden.device)
    biases = [own.relative_attention_bias(index) for own in attention if own.has_relative_attention_bias]
    for number, block in enumerate(stack.block):
        bias = biases[number] if len(biases) > 1 else biases[0]
        hidden = block(hidden, rows=rows, bias=bias, **named)
    found: Tensor = stack.dropout(stack.final_layer_norm(hidden))
    return found


def _index(config: Any, longest: int, device: torch.device) -> Tensor:
    """Rows of the table of biases [2L - 1] for keys from L - 1 before the query to L - 1 behind it."""
    buckets, farthest = config.relative_attention_num_buckets, config.relative_attention_max_distance
    distance = torch.arange(1 - longest, longest, device=device)
    found: Tensor = T5Attention._relative_position_bucket(
        distance, bidirectional=not config.is_decoder, num_buckets=buckets, max_distance=farthest
    )
    return found


def self_attention(stack: Any) -> tuple[Any, ...]:
    """What attends to the stack's own tokens, layer by layer."""
    return tuple(block.layer[0].SelfAttention for block in stack.block)


def open_stack(stack: Any) -> None:
    """Swap in our classes for transformers'."""
    for block in stack.block:
        swap(block, _Block)
        for layer in block.layer:
            # For good: while texts are written it is as exact as before.
            layer.layer_norm.__class__ = _Norm
            for name in ("SelfAttention", "EncDecAttention"):
                if hasattr(layer, name):
                    swap(getattr(layer, name), _Attention)
    stack.final_layer_norm.__class__ = _Norm
