"""OPT (Zhang et al. 2022): causal, absolute positions, whose table has two rows in front that its own module skips."""

from typing import Any

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families import Family


def _refuse(config: Any) -> str | None:
    if config.word_embed_proj_dim != config.hidden_size:
        return (
            f"its words have {config.word_embed_proj_dim} numbers and its layers {config.hidden_size}, as in OPT-350M alone;"
            " choose another size of OPT"
        )
    if config.layerdrop:
        return f"its config.json drops whole layers in training (layerdrop {config.layerdrop}); set layerdrop to 0"
    return None


FAMILY = Family(
    model_types=("opt",),
    layers="decoder.layers",
    attention="self_attn",
    by_token=("fc1", "fc2"),
    plan=Plan(
        rules=(
            vocabulary("decoder.embed_tokens"),
            whole("decoder.embed_positions"),
            columns("decoder.layers.*.self_attn.q_proj", "heads"),
            columns("decoder.layers.*.self_attn.[kv]_proj", "key_value_heads"),
            rows("decoder.layers.*.self_attn.out_proj", "heads"),
            columns("decoder.layers.*.fc1", alone=True),
            rows("decoder.layers.*.fc2"),
        ),
        divided=(("decoder.layers.*.self_attn", ("num_heads",)),),
    ),
    pooling="last",
    hidden_dropout=("dropout",),
    attention_dropout=("attention_dropout",),
    query_and_value=("q_proj", "v_proj"),
    refuse=_refuse,
)
