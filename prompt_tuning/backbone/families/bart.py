"""BART (Lewis et al. 2020): an encoder and a decoder that looks at it, with prefixes at all three attentions (Li and Liang 2021).

Each side counts positions from 0, and a prefix takes none.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.backbone.sides import Sides, start_is_missing
from prompt_tuning.backbone.swapped import swap


class _Model:
    """Both stacks over packed tokens; mixed into transformers' own class."""

    shared: nn.Module
    encoder: Any
    decoder: Any
    config: Any

    def forward(
        self,
        input_ids: Tensor,
        rows: PackedRows,
        position_ids: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        use_cache: bool = False,
        captured: dict[int, Tensor] | None = None,
    ) -> BaseModelOutput:
        """The decoder's last hidden states [1, T, H] where tokens [1, T] stand of which the next is a target's; else zero."""
        sides = Sides.of(rows, input_ids.device)
        words = self.shared(input_ids[:, sides.sources])
        encoded = _begin(self.encoder, words, sides.source_positions)
        for layer in self.encoder.layers:
            encoded = layer(encoded, None, rows=sides.encoder, captured=captured)
        words = self.shared(sides.target_ids(input_ids, self.config))
        hidden = _begin(self.decoder, words, sides.target_positions)
        for layer in self.decoder.layers:
            hidden = layer(hidden, None, encoded, rows=sides.decoder, captured=captured)
        return BaseModelOutput(last_hidden_state=sides.spread(hidden, input_ids.shape[1]))


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
    """Swap in our class for transformers', and read the word embedding once, by its own name."""
    for name in ("encoder", "decoder"):
        stack = model.get_submodule(name)
        del stack.embed_tokens
        # Unregistered: transformers' own forward, which writes texts, looks words up by it.
        stack.__dict__["embed_tokens"] = model.get_input_embeddings()
    model._keys_to_ignore_on_load_unexpected = [r"(^|\.)(en|de)coder\.embed_tokens\.", r"^final_logits_bias$"]
    # A saved config.json names the class.
    swap(model, type(type(model).__name__, (_Model, type(model)), {}))


FAMILY = Family(
    model_types=("bart",),
    layers="decoder.layers",
    attention="self_attn",
    by_token=("fc1", "fc2"),
    plan=Plan(
        rules=(
            vocabulary("shared"),
            whole("*.embed_positions"),
            columns("*.layers.*.[qkv]_proj", "heads"),
            rows("*.layers.*.out_proj", "heads"),
            columns("*.layers.*.fc1", alone=True),
            rows("*.layers.*.fc2"),
        ),
    ),
    pooling="last",
    hidden_dropout=("dropout", "activation_dropout"),
    attention_dropout=("attention_dropout",),
    has_positions=lambda config: False,
    refuse=_refuse,
    num_layers=lambda config: int(config.encoder_layers + 2 * config.decoder_layers),
    sites=(("encoder.layers", "self_attn"), ("decoder.layers", "self_attn"), ("decoder.layers", "encoder_attn")),
    open=_open,
)
