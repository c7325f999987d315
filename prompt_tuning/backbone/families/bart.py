"""BART (Lewis et al. 2020): an encoder and a decoder that looks at it, with prefixes at all three attentions (Li and Liang 2021).

Each side counts positions from 0, and a prefix takes none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.sides import HANDED, Sides, TwoSided, open_sides, start_is_missing


class _Model(TwoSided):
    """Both stacks over packed tokens; mixed into transformers' own class."""

    def encode(self, words: Tensor, sides: Sides, captured: dict[int, Tensor] | None) -> Tensor:
        hidden = _begin(self.encoder, words, sides.source_positions)
        for layer in self.encoder.layers:
            hidden = layer(hidden, None, rows=sides.encoder, captured=captured)
        return hidden

    def decode(self, words: Tensor, encoded: Tensor, sides: Sides, captured: dict[int, Tensor] | None) -> Tensor:
        hidden = _begin(self.decoder, words, sides.target_positions)
        for layer in self.decoder.layers:
            hidden = layer(hidden, None, encoded, rows=sides.decoder, captured=captured)
        return hidden


def _begin(stack: Any, words: Tensor, positions: Tensor) -> Tensor:
    hidden: Tensor = stack.layernorm_embedding(words + stack.embed_positions(words, position_ids=positions))
    return nn.functional.dropout(hidden, stack.dropout, stack.training)


def _refuse(config: Any) -> str | None:
    if config.encoder_layerdrop or config.decoder_layerdrop:
        return "its config.json drops whole layers in training; set encoder_layerdrop and decoder_layerdrop to 0"
    if config.encoder_attention_heads != config.decoder_attention_heads:
        return (
            f"its encoder has {config.encoder_attention_heads} heads and its decoder {config.decoder_attention_heads},"
            " and one prefix is for both; choose a backbone where they are as many"
        )
    return start_is_missing(config)


def _open(model: PreTrainedModel) -> None:
    open_sides(model, _Model, r"^final_logits_bias$")


FAMILY = Family(
    model_types=("bart",),
    layers="decoder.layers",
    attention="self_attn",
    by_token=("fc1", "fc2"),
    plan=Plan(
        rules=(
            vocabulary("shared"),
            whole("*coder.embed_positions"),
            columns("*coder.layers.*.*_attn.[qkv]_proj", "heads"),
            rows("*coder.layers.*.*_attn.out_proj", "heads"),
            columns("*coder.layers.*.fc1", alone=True),
            rows("*coder.layers.*.fc2"),
        ),
        divided=(("*coder.layers.*.*_attn", ("num_heads",)),),
        enters=(HANDED,),
    ),
    pooling="last",
    hidden_dropout=("dropout", "activation_dropout"),
    attention_dropout=("attention_dropout",),
    has_positions=lambda config: False,
    refuse=_refuse,
    num_layers=lambda config: int(config.encoder_layers + 2 * config.decoder_layers),
    depths=("encoder_layers", "decoder_layers"),
    sites=(("encoder.layers", "self_attn"), ("decoder.layers", "self_attn"), ("decoder.layers", "encoder_attn")),
    open=_open,
)
