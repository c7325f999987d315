"""T5 (Raffel et al. 2020), mT5, Flan-T5 and umT5 whole, to write texts: prefixes at all three attentions (Li and Liang 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.families._t5_layers import Packed, mix_in, open_stack, self_attention, through
from prompt_tuning.backbone.rows import PackedRows
from prompt_tuning.backbone.sides import Sides, start_is_missing


class _Model(Packed):
    """Both stacks over packed tokens."""

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
        words, ids = self.shared(input_ids[:, sides.sources]), sides.target_ids(input_ids, self.config)
        encoded = through(self.encoder, self_attention(self.encoder), words, sides.encoder, captured=captured)
        hidden = through(
            self.decoder,
            self_attention(self.decoder),
            self.shared(ids),
            sides.decoder,
            captured=captured,
            encoded=encoded,
        )
        return BaseModelOutput(last_hidden_state=sides.spread(hidden, input_ids.shape[1]))


def _open(model: PreTrainedModel) -> None:
    stacks: list[Any] = [model.get_submodule(name) for name in ("encoder", "decoder")]
    for stack in stacks:
        open_stack(stack, model.get_input_embeddings())
    across = [block.layer[1].EncDecAttention for block in stacks[1].block]
    setattr(model, "_attention", tuple(own for stack in stacks for own in self_attention(stack)) + tuple(across))  # noqa: B010  mypy
    model._keys_to_ignore_on_load_unexpected = [
        r"(^|\.)(en|de)coder\.embed_tokens\.",
        # Of old files; nothing reads it.
        r"EncDecAttention\.relative_attention_bias\.",
    ]
    mix_in(model, _Model)


def _logit_factor(config: Any) -> float:
    """As transformers' own language models have it: mT5's scales nothing, umT5's where embeddings are tied."""
    is_scaled = {"t5": "scale_decoder_outputs", "umt5": "tie_word_embeddings"}.get(config.model_type)
    return float(config.d_model**-0.5) if is_scaled and getattr(config, is_scaled) else 1.0


FAMILY = Family(
    model_types=("t5", "mt5", "umt5"),
    layers="decoder.block",
    attention="layer.0.SelfAttention",
    by_token=("layer.2", "layer.2"),
    plan=Plan(
        rules=(
            vocabulary("shared"),
            whole("*.relative_attention_bias"),
            columns("*Attention.[qkv]", "heads"),
            rows("*Attention.o", "heads"),
            columns("*.DenseReluDense.wi*"),
            rows("*.DenseReluDense.wo"),
        ),
    ),
    pooling="last",
    hidden_dropout=("dropout_rate",),
    attention_dropout=(),
    has_positions=lambda config: False,
    refuse=start_is_missing,
    num_layers=lambda config: int(config.num_layers + 2 * config.num_decoder_layers),
    language_head=("lm_head",),
    logit_factor=_logit_factor,
    has_own_output=True,
    sites=(
        ("encoder.block", "layer.0.SelfAttention"),
        ("decoder.block", "layer.0.SelfAttention"),
        ("decoder.block", "layer.1.EncDecAttention"),
    ),
    open=_open,
)
