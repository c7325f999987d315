"""Phi-3 and Phi-4 (Abdin et al. 2024): causal, rotary, queries, keys and values of one matrix, gate and width of another."""

from dataclasses import replace

from model_parallel.plan import Plan, columns, rows, vocabulary
from prompt_tuning.backbone.families.llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    model_types=("phi3",),
    plan=Plan(
        rules=(
            vocabulary("embed_tokens"),
            columns("layers.*.self_attn.qkv_proj", "heads", "key_value_heads", "key_value_heads"),
            rows("layers.*.self_attn.o_proj", "heads"),
            columns("layers.*.mlp.gate_up_proj", "width", "width"),
            rows("layers.*.mlp.down_proj"),
        ),
        divided=(("layers.*.self_attn", ("config.num_attention_heads",)),),
    ),
    hidden_dropout=("resid_pdrop", "embd_pdrop"),
    query_and_value=("qkv_proj",),
)
