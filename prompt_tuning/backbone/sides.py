"""Where the tokens of an encoder's and a decoder's side stand among the packed ones of a batch.

A row is its source, which the encoder reads, and its target without the last token. The decoder begins with its start token, so
its hidden states stand where the token before each target token does: the first in the place of the source's last token. Each side
counts positions from 0.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.backbone.swapped import mix_in, read_words_once


class Sides:
    """Places and positions of the tokens of both sides, and the rows that they are of."""

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

    @staticmethod
    def of(rows: PackedRows, device: torch.device) -> Sides:
        """Those of some rows, made once."""
        found: Sides = rows.keep("sides", lambda: Sides(rows, device))
        return found

    def target_ids(self, input_ids: Tensor, config: Any) -> Tensor:
        """Tokens [1, t] that the decoder reads, of all packed ones [1, T]."""
        start = input_ids.new_full((), config.decoder_start_token_id)
        return torch.where(self.target_positions == 0, start, input_ids[:, self.targets])

    def spread(self, hidden: Tensor, num_tokens: int) -> Tensor:
        """The decoder's hidden states [1, t, H] in their places among all tokens, [1, T, H]; zero elsewhere."""
        found = hidden.new_zeros(1, num_tokens, hidden.shape[2])
        return found.index_copy(1, self.targets, hidden)


class TwoSided:
    """The forward of both stacks over packed tokens; what mixes it in says how each stack runs."""

    shared: nn.Module
    encoder: Any
    decoder: Any
    handed: nn.Module
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
        encoded = self.handed(self.encode(self.shared(input_ids[:, sides.sources]), sides, captured))
        words = self.shared(sides.target_ids(input_ids, self.config))
        hidden = self.decode(words, encoded, sides, captured)
        return BaseModelOutput(last_hidden_state=sides.spread(hidden, input_ids.shape[1]))

    def encode(self, words: Tensor, sides: Sides, captured: dict[int, Tensor] | None) -> Tensor:
        """The encoder's last hidden states [1, s, H] of the words of all sources."""
        raise NotImplementedError

    def decode(self, words: Tensor, encoded: Tensor, sides: Sides, captured: dict[int, Tensor] | None) -> Tensor:
        """The decoder's [1, t, H] of the words of all targets."""
        raise NotImplementedError


HANDED = "handed"
"""Name of the module that what the encoder made passes on its way to the keys and values of the decoder's layers."""


def open_sides(model: PreTrainedModel, kind: type[TwoSided], *unused: str) -> None:
    """Let both stacks of a model run as ``kind`` says; ``unused``: patterns of what its files hold and nothing reads."""
    read_words_once(model, model.get_submodule("encoder"), model.get_submodule("decoder"))
    setattr(model, HANDED, nn.Identity())
    model._keys_to_ignore_on_load_unexpected = [r"(^|\.)(en|de)coder\.embed_tokens\.", *unused]
    mix_in(model, kind)


def start_is_missing(config: Any) -> str | None:
    """The rest of a sentence where no token is named with which a target begins."""
    if getattr(config, "decoder_start_token_id", None) is None:
        return "its config.json names no decoder_start_token_id, with which a target begins; add it"
    return None
