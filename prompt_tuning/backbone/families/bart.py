"""BART (Lewis et al. 2020): an encoder and a decoder that looks at it, with prefixes at all three attentions (Li and Liang 2021).

A row is its source, which the encoder reads, and its target without the last token. The decoder begins with its start token, so
its hidden states stand where the token before each target token does: the first in the place of the source's last token. Each side
counts positions from 0, and a prefix takes none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.rows import PackedRows


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
        sides = rows.keep("sides", lambda: _Sides(rows, input_ids.device))
        words = self.shared(input_ids[:, sides.sources])
        encoded = _begin(self.encoder, words, sides.source_positions)
        for layer in self.encoder.layers:
            encoded = layer(encoded, None, rows=sides.encoder, captured=captured)
        start = input_ids.new_full((), self.config.decoder_start_token_id)
        ids = torch.where(sides.target_positions == 0, start, input_ids[:, sides.targets])
        hidden = _begin(self.decoder, self.shared(ids), sides.target_positions)
        for layer in self.decoder.layers:
            hidden = layer(hidden, None, encoded, rows=sides.decoder, captured=captured)
        found = hidden.new_zeros(1, input_ids.shape[1], hidden.shape[2])
        return BaseModelOutput(last_hidden_state=found.index_copy(1, sides.targets, hidden))


class _Sides:
    """Where the tokens of both stacks stand among those of a batch, and the rows that they are of."""

    def __init__(self, rows: PackedRows, device: torch.device) -> None:
        assert all(group.encoded for group in rows.groups), "rows say what the encoder reads"
        places = [
            torch.arange(group.tokens.start, group.tokens.stop).view(group.num_rows, group.length)
            for group in rows.groups
        ]
        encoded = [group.encoded for group in rows.groups]
        written = [group.length - group.encoded + 1 for group in rows.groups]
        some = list(zip(places, encoded, strict=True))
        self.sources = torch.cat([own[:, :count].flatten() for own, count in some]).to(device)
        self.targets = torch.cat([own[:, count - 1 :].flatten() for own, count in some]).to(device)
        self.source_positions, self.target_positions = (
            torch.cat([torch.arange(n).repeat(group.num_rows) for n, group in zip(sizes, rows.groups, strict=True)]).to(
                device
            )
            for sizes in (encoded, written)
        )
        self.encoder, self.decoder = rows.over(encoded), rows.over(written)
        # What the decoder's rows look at beside themselves.
        self.decoder.encoder = self.encoder


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
    if config.decoder_start_token_id is None:
        return "its config.json names no decoder_start_token_id, with which a target begins; add it"
    return None


def _open(model: PreTrainedModel) -> None:
    """Swap in our class for transformers', and read the word embedding once, by its own name."""
    for name in ("encoder", "decoder"):
        stack = model.get_submodule(name)
        del stack.embed_tokens
        # Unregistered: transformers' own forward, which writes texts, looks words up by it.
        stack.__dict__["embed_tokens"] = model.get_input_embeddings()
    model._keys_to_ignore_on_load_unexpected = [r"(^|\.)(en|de)coder\.embed_tokens\.", r"^final_logits_bias$"]
    # A saved config.json names the class.
    model.__class__ = type(type(model).__name__, (_Model, type(model)), {"stock_forward": type(model).forward})


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
