"""T5 (Raffel et al. 2020), mT5, Flan-T5 and umT5: their encoder alone; to write texts, the decoder too, as BART.

The layers are those of :mod:`prompt_tuning.backbone.families._t5_layers`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import AutoModelForTextEncoding, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family, _t5_both
from prompt_tuning.backbone.families._t5_layers import Packed, open_stack, self_attention, through
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.backbone.swapped import mix_in, read_words_once

_BESIDE = [r"(^|\.)decoder\.", r"(^|\.)encoder\.embed_tokens\."]
"""Patterns of what files hold beside the encoder: the decoder, and the word embedding once more."""


class _Model(Packed):
    """The encoder over packed tokens."""

    shared: nn.Module
    encoder: Any

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
        hidden = through(self.encoder, self._attention, self.shared(input_ids), rows, captured=captured)
        return BaseModelOutput(last_hidden_state=hidden)


def _open(model: PreTrainedModel) -> None:
    encoder: Any = model.get_submodule("encoder")
    read_words_once(model, encoder)
    open_stack(encoder)
    # By themselves: a forward may begin above the first layer, whose table it needs all the same.
    setattr(model, "_attention", self_attention(encoder))  # noqa: B010  mypy
    model._keys_to_ignore_on_load_unexpected = _BESIDE
    mix_in(model, _Model)


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
    writing=_t5_both.FAMILY,
    open=_open,
)
