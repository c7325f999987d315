"""DeBERTa (He et al. 2021) and its versions 2 and 3 (He et al. 2023): relative positions inside the attention.

The attention, its layers and the model are ours, over transformers' parameters: theirs hand on no argument of a forward and
build tables of all tokens by all tokens.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta.modeling_deberta import DebertaLayerNorm
from transformers.models.deberta_v2.modeling_deberta_v2 import make_log_bucket_position

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.attention import attention_name
from prompt_tuning.backbone.disentangled import DisentangledAttention, Relative
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.rows import PackedRows


class _First(DisentangledAttention):
    """Version 1: queries, keys and values in one projection, head by head, and projections of their own for positions."""

    in_proj: nn.Module
    q_bias: Tensor
    v_bias: Tensor
    pos_proj: nn.Module
    pos_q_proj: nn.Module

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heads = self.in_proj(hidden_states).unflatten(2, (self.num_attention_heads, -1))
        query, key, value = heads.transpose(1, 2).chunk(3, -1)
        query_bias, value_bias = (x.view(self.num_attention_heads, 1, -1) for x in (self.q_bias, self.v_bias))
        return query + query_bias, key, value + value_bias

    def project_positions(self, vectors: Tensor) -> tuple[Tensor | None, Tensor | None]:
        keys = self.pos_proj(vectors) if "c2p" in self.pos_att_type else None
        return keys, self.pos_q_proj(vectors) if "p2c" in self.pos_att_type else None

    def num_terms(self) -> int:
        return 1 + len(self.pos_att_type)


class _Second(DisentangledAttention):
    """Versions 2 and 3: three projections, which positions share or not."""

    share_att_key: bool
    query_proj: nn.Module
    key_proj: nn.Module
    value_proj: nn.Module
    pos_key_proj: nn.Module
    pos_query_proj: nn.Module

    def project(self, hidden_states: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        query, key, value = (
            project(hidden_states).unflatten(2, (self.num_attention_heads, -1)).transpose(1, 2)
            for project in (self.query_proj, self.key_proj, self.value_proj)
        )
        return query, key, value

    def project_positions(self, vectors: Tensor) -> tuple[Tensor | None, Tensor | None]:
        keys = queries = None
        if "c2p" in self.pos_att_type:
            keys = (self.key_proj if self.share_att_key else self.pos_key_proj)(vectors)
        if "p2c" in self.pos_att_type:
            queries = (self.query_proj if self.share_att_key else self.pos_query_proj)(vectors)
        return keys, queries

    def num_terms(self) -> int:
        return 1 + ("c2p" in self.pos_att_type) + ("p2c" in self.pos_att_type)


class _Layer(GradientCheckpointingLayer):  # type: ignore[misc]
    """A layer that hands on whose tokens it sees."""

    def forward(self, hidden_states: Tensor, **named: Any) -> Tensor:
        attention = self.get_submodule("attention")
        found = attention.output(attention.self(hidden_states, **named), hidden_states)
        output: Tensor = self.output(self.intermediate(found), found)
        return output


class _Norm(nn.Module):
    """Version 1's layer norm in the type of its input. Transformers' is written out in steps and rounds to float32."""

    weight: Tensor
    bias: Tensor
    variance_epsilon: float

    def forward(self, hidden_states: Tensor) -> Tensor:
        return nn.functional.layer_norm(hidden_states, self.weight.shape, self.weight, self.bias, self.variance_epsilon)


class _Convolution(nn.Module):
    """The convolution beside the first layer that version 2 may have: each row's words as if it stood alone."""

    conv: nn.Conv1d
    conv_act: str
    dropout: nn.Dropout
    LayerNorm: nn.Module

    def forward(self, words: Tensor, hidden: Tensor, rows: PackedRows) -> Tensor:
        """What enters the second layer [1, T, H], from what entered and left the first."""
        gap = int(self.conv.padding[0])
        places = rows.keep(("convolution", gap), lambda: _places(rows, gap, words.device))
        num_rows = sum(group.num_rows for group in rows.groups)
        apart = words.new_zeros(1, words.shape[1] + num_rows * gap, words.shape[2]).index_copy(1, places, words)
        found = self.conv(apart.transpose(1, 2)).transpose(1, 2).index_select(1, places)
        output: Tensor = self.LayerNorm(hidden + ACT2FN[self.conv_act](self.dropout(found)))
        return output


def _places(rows: PackedRows, gap: int, device: torch.device) -> Tensor:
    """Where the tokens [T] of rows stand that have ``gap`` places between them."""
    lengths = np.array([group.length for group in rows.groups for _ in range(group.num_rows)])
    return torch.from_numpy(np.arange(lengths.sum()) + np.arange(len(lengths)).repeat(lengths) * gap).to(device)


class _Model:
    """The model over packed tokens; mixed into transformers' own class."""

    embeddings: nn.Module
    encoder: Any

    def forward(
        self,
        input_ids: Tensor,
        position_ids: Tensor,
        rows: PackedRows,
        token_type_ids: Tensor | None = None,
        captured: dict[int, Tensor] | None = None,
    ) -> BaseModelOutput:
        """Last hidden states [1, T, H] of tokens [1, T]."""
        hidden = self.embeddings(input_ids=input_ids, position_ids=position_ids, token_type_ids=token_type_ids)
        relative = None
        if self.encoder.relative_attention:
            longest = max(group.length for group in rows.groups)
            relative = Relative.look_up(self._positions, _index(self.encoder, longest), hidden.device)
        for layer in self.encoder.layer:
            hidden = layer(hidden, rows=rows, relative=relative, captured=captured)
        return BaseModelOutput(last_hidden_state=hidden)

    def _positions(self, index: Tensor) -> Tensor:
        found: Tensor = self.encoder.rel_embeddings(index)
        normed: Tensor = self.encoder.LayerNorm(found) if hasattr(self.encoder, "LayerNorm") else found
        return normed

    def set_attn_implementation(self, name: Any, *_: Any, **__: Any) -> None:
        """Whether rows are padded; nothing else of transformers' choices exists here."""
        for layer in self.encoder.layer:
            layer.attention.self.is_padded = name == attention_name("eager")


def _index(encoder: Any, longest: int) -> Tensor:
    """Rows of the table of relative positions [2L - 1] for distances from L - 1 to -(L - 1)."""
    distance = torch.arange(longest - 1, -longest, -1)
    buckets, span = getattr(encoder, "position_buckets", -1), encoder.max_relative_positions
    if buckets > 0:
        distance, span = make_log_bucket_position(distance, buckets, span).long(), buckets
    index: Tensor = (distance + span).clamp(0, 2 * span - 1)
    return index


def _open(model: PreTrainedModel) -> None:
    """Swap in our classes for transformers'."""
    encoder: Any = model.get_submodule("encoder")
    for layer in encoder.layer:
        layer.__class__ = _Layer
        attention = layer.attention.self
        attention.__class__ = _First if hasattr(attention, "in_proj") else _Second
        for name, vector in list(attention.named_parameters(recurse=False)):
            setattr(attention, name, nn.Parameter(vector.to(model.dtype)))  # made in float32, whatever the rest
    for module in model.modules():
        if isinstance(module, DebertaLayerNorm):
            module.__class__ = _Norm
    if getattr(encoder, "conv", None) is not None:
        encoder.conv.__class__ = _Convolution
        encoder.layer[0].register_forward_hook(
            lambda layer, given, named, found: encoder.conv(given[0], found, named["rows"]), with_kwargs=True
        )
    # A saved config.json names the class.
    model.__class__ = type(type(model).__name__, (_Model, type(model)), {})


def _refuse(config: Any) -> str | None:
    heads = getattr(config, "attention_head_size", None)
    if getattr(config, "talking_head", False):
        return "its config.json sets talking_head, which mixes the heads; choose a DeBERTa without it"
    if heads not in (None, config.hidden_size // config.num_attention_heads):
        return (
            f"its config.json says attention_head_size={heads}, and {config.num_attention_heads} heads of a hidden size of"
            f" {config.hidden_size} have {config.hidden_size // config.num_attention_heads}; choose another DeBERTa"
        )
    if getattr(config, "embedding_size", config.hidden_size) != config.hidden_size:
        return (
            f"its config.json says embedding_size={config.embedding_size} beside hidden_size={config.hidden_size}; choose a"
            " DeBERTa whose words have vectors of the hidden size"
        )
    kernel = getattr(config, "conv_kernel_size", 0)
    if kernel > 0 and kernel % 2 == 0:
        return f"its config.json says conv_kernel_size={kernel}, which must be odd; choose another DeBERTa"
    return None


FAMILY = Family(
    model_types=("deberta", "deberta-v2"),
    layers="encoder.layer",
    attention="attention.self",
    by_token=("attention.output", "output"),
    plan=Plan(
        rules=(
            vocabulary("embeddings.word_embeddings"),
            whole("embeddings.position_embeddings"),
            whole("embeddings.token_type_embeddings"),
            whole("encoder.rel_embeddings"),
            # Version 1's fused projection goes head by head, so that every rank's share is one piece.
            columns("encoder.layer.*.attention.self.*_proj"),
            rows("encoder.layer.*.attention.output.dense", "heads"),
            columns("encoder.layer.*.intermediate.dense"),
            rows("encoder.layer.*.output.dense"),
        ),
        divided=(("encoder.layer.*.attention.self", ("num_attention_heads", "all_head_size")),),
        vectors=("encoder.layer.*.attention.self.[qv]_bias",),
    ),
    pooling="context",
    hidden_dropout=("hidden_dropout_prob",),
    attention_dropout=("attention_probs_dropout_prob",),
    has_positions=lambda config: bool(config.position_biased_input),
    query_and_value=("query_proj", "value_proj", "in_proj"),
    open=_open,
    # Positions go through version 2's projections of queries and keys too.
    beyond_tokens=(
        "encoder.layer.*.attention.self.pos_*",
        "encoder.layer.*.attention.self.query_proj",
        "encoder.layer.*.attention.self.key_proj",
        "encoder.LayerNorm",
        "encoder.conv.conv",
    ),
    refuse=_refuse,
)
