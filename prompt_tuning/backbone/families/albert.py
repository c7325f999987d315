"""ALBERT (Lan et al. 2020): one layer, or a few, that every depth shares.

A prefix belongs to a depth and not to a module. So each depth gets a layer of its own here, which has no weights: it runs the
shared one and says, as a forward argument down to the attention, which depth it is. What holds of other families' layers
(beginning at one, ending at one, recomputing one) then holds of these.
"""

from __future__ import annotations

from types import MethodType
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family


class DepthLayer(GradientCheckpointingLayer):  # type: ignore[misc]  # transformers is not typed
    """One depth of the model, run by a shared layer whose weights are not its own."""

    def __init__(self, depth: int, shared: nn.Module) -> None:
        super().__init__()
        self.depth, self._shared = depth, (shared,)

    @property
    def attention(self) -> Any:
        """What attends, at other depths too."""
        return self._shared[0].attention

    def forward(self, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any) -> Tensor:
        """Hidden states [1, T, H] behind this depth."""
        found: Tensor = self._shared[0](hidden_states, attention_mask, depth=self.depth, **named)
        return found


class TanhPooler(nn.Linear):
    """The pooler as one module: ALBERT keeps its tanh apart from its weights."""

    def forward(self, input: Tensor) -> Tensor:
        """Pooled texts [r, H] from their first hidden states [r, 1, H]."""
        return torch.tanh(super().forward(input[:, 0]))


def _run_layers(
    encoder: Any, hidden_states: Tensor, attention_mask: Tensor | None = None, **named: Any
) -> BaseModelOutput:
    hidden_states = encoder.embedding_hidden_mapping_in(hidden_states)
    for layer in encoder.layer:
        hidden_states = layer(hidden_states, attention_mask, **named)
    return BaseModelOutput(last_hidden_state=hidden_states)


def _open(model: PreTrainedModel) -> None:
    """Give the model a layer for each depth, and a pooler that is one module."""
    encoder, config = model.encoder, model.config
    # Rounded as the stock encoder does.
    per_group = config.num_hidden_layers / config.num_hidden_groups
    groups = [encoder.albert_layer_groups[int(i / per_group)] for i in range(config.num_hidden_layers)]
    shared = [layer for group in groups for layer in group.albert_layers]
    encoder.layer = nn.ModuleList(DepthLayer(depth, layer) for depth, layer in enumerate(shared))
    encoder.forward = MethodType(_run_layers, encoder)
    model.supports_gradient_checkpointing = True
    if model.pooler is not None:
        model.pooler.__class__ = TanhPooler


FAMILY = Family(
    model_types=("albert",),
    layers="encoder.layer",
    attention="attention",
    by_token=("attention.LayerNorm", ""),
    plan=Plan(
        rules=(
            vocabulary("embeddings.word_embeddings"),
            whole("embeddings.position_embeddings"),
            whole("embeddings.token_type_embeddings"),
            whole("encoder.embedding_hidden_mapping_in"),
            columns("encoder.albert_layer_groups.*.albert_layers.*.attention.[qkv]*", "heads", alone=True),
            rows("encoder.albert_layer_groups.*.albert_layers.*.attention.dense", "heads"),
            columns("encoder.albert_layer_groups.*.albert_layers.*.ffn", alone=True),
            rows("encoder.albert_layer_groups.*.albert_layers.*.ffn_output"),
        )
    ),
    pooling="pooler",
    hidden_dropout=("hidden_dropout_prob",),
    attention_dropout=("attention_probs_dropout_prob",),
    query_and_value=("query", "value"),
    num_layers=lambda config: int(config.num_hidden_layers * config.inner_group_num),
    word_size=lambda config: int(config.embedding_size),
    open=_open,
)
