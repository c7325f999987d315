"""BART (Lewis et al. 2020): an encoder and a decoder that looks at it, with prefixes at all three attentions (Li and Liang 2021).

Each side counts positions from 0, and a prefix takes none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel

from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.sides import WHOLE, Sides, TwoSided, start_is_missing
from prompt_tuning.backbone.swapped import mix_in, read_words_once


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
    places = nn.functional.embedding(positions + stack.embed_positions.offset, stack.embed_positions.weight)
    hidden: Tensor = stack.layernorm_embedding(words + places)
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
    read_words_once(model, model.get_submodule("encoder"), model.get_submodule("decoder"))
    model._keys_to_ignore_on_load_unexpected = [r"(^|\.)(en|de)coder\.embed_tokens\.", r"^final_logits_bias$"]
    mix_in(model, _Model)


FAMILY = Family(
    model_types=("bart",),
    layers="decoder.layers",
    attention="self_attn",
    by_token=("fc1", "fc2"),
    plan=WHOLE,
    pooling="last",
    hidden_dropout=("dropout", "activation_dropout"),
    attention_dropout=("attention_dropout",),
    has_positions=lambda config: False,
    refuse=_refuse,
    num_layers=lambda config: int(config.encoder_layers + 2 * config.decoder_layers),
    sites=(("encoder.layers", "self_attn"), ("decoder.layers", "self_attn"), ("decoder.layers", "encoder_attn")),
    open=_open,
)
