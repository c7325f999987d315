"""T5 (Raffel et al. 2020), mT5, Flan-T5 and umT5 whole, to write texts: prefixes at all three attentions (Li and Liang 2021)."""

from __future__ import annotations

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.families._t5_layers import Packed, open_stack, self_attention, through
from prompt_tuning.backbone.sides import HANDED, Sides, TwoSided, open_sides, start_is_missing


class _Model(TwoSided, Packed):
    """Both stacks over packed tokens."""

    def encode(self, words: Tensor, sides: Sides, captured: dict[int, Tensor] | None) -> Tensor:
        return through(self.encoder, self_attention(self.encoder), words, sides.encoder, captured=captured)

    def decode(self, words: Tensor, encoded: Tensor, sides: Sides, captured: dict[int, Tensor] | None) -> Tensor:
        attention = self_attention(self.decoder)
        return through(self.decoder, attention, words, sides.decoder, captured=captured, encoded=encoded)


def _open(model: PreTrainedModel) -> None:
    stacks: list[Any] = [model.get_submodule(name) for name in ("encoder", "decoder")]
    for stack in stacks:
        open_stack(stack)
    across = [block.layer[1].EncDecAttention for block in stacks[1].block]
    setattr(model, "_attention", tuple(own for stack in stacks for own in self_attention(stack)) + tuple(across))  # noqa: B010  mypy
    # Old files have a bias between the sides.
    open_sides(model, _Model, r"EncDecAttention\.relative_attention_bias\.")


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
            whole("*coder.block.*.layer.0.SelfAttention.relative_attention_bias"),
            columns("*coder.block.*.layer.[01].*Attention.[qkv]", "heads"),
            rows("*coder.block.*.layer.[01].*Attention.o", "heads"),
            columns("*coder.block.*.layer.[12].DenseReluDense.wi*"),
            rows("*coder.block.*.layer.[12].DenseReluDense.wo"),
        ),
        divided=(("*coder.block.*.layer.[01].*Attention", ("n_heads", "inner_dim")),),
        enters=(HANDED,),
    ),
    pooling="last",
    hidden_dropout=("dropout_rate",),
    attention_dropout=(),
    has_positions=lambda config: False,
    refuse=start_is_missing,
    num_layers=lambda config: int(config.num_layers + 2 * config.num_decoder_layers),
    depths=("num_layers", "num_decoder_layers"),
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
