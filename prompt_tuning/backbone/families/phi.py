"""Phi-1 to Phi-2 (Gunasekar et al. 2023): causal, partly rotary, attention and MLP side by side."""

from dataclasses import replace

from model_parallel.plan import Plan, columns, rows, vocabulary
from prompt_tuning.backbone.families.llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    model_types=("phi",),
    plan=Plan(
        rules=(
            vocabulary("embed_tokens"),
            columns("layers.*.self_attn.q_proj", "heads"),
            columns("layers.*.self_attn.[kv]_proj", "key_value_heads"),
            rows("layers.*.self_attn.dense", "heads"),
            columns("layers.*.mlp.fc1"),
            rows("layers.*.mlp.fc2"),
        )
    ),
    hidden_dropout=("resid_pdrop", "embd_pdrop"),
)
