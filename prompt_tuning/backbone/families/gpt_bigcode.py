"""GPT-BigCode (Ben Allal et al. 2023; StarCoder): GPT-2 with one key/value head and ordinary matrices."""

from dataclasses import replace

from model_parallel.plan import Plan, columns, rows, vocabulary, whole
from prompt_tuning.backbone.families.gpt2 import FAMILY as GPT2

FAMILY = replace(
    GPT2,
    model_types=("gpt_bigcode",),
    plan=Plan(
        rules=(
            vocabulary("wte"),
            whole("wpe"),
            columns("h.*.attn.c_attn", "heads", "key_value_heads", "key_value_heads"),
            rows("h.*.attn.c_proj", "heads"),
            columns("h.*.mlp.c_fc"),
            rows("h.*.mlp.c_proj"),
        ),
        divided=(("h.*.attn", ("embed_dim",)),),
    ),
    refuse=lambda config: (
        None
        if config.multi_query
        else "it has as many key/value heads as heads (multi_query false), which is not supported; choose a model with one"
    ),
)
