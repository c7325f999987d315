"""LLaMA (Touvron et al. 2023), Mistral, Qwen 2 and 3, Granite and SmolLM 3: causal, rotary positions, no pooler."""

from model_parallel.plan import Plan, columns, rows, vocabulary
from prompt_tuning.backbone.families import Family

EMBEDDING_AND_ATTENTION = (
    vocabulary("embed_tokens"),
    columns("layers.*.self_attn.q_proj", "heads"),
    columns("layers.*.self_attn.[kv]_proj", "key_value_heads"),
    rows("layers.*.self_attn.o_proj", "heads"),
)

FAMILY = Family(
    model_types=("llama", "mistral", "qwen2", "qwen3", "granite", "smollm3"),
    layers="layers",
    attention="self_attn",
    by_token=("mlp", "mlp"),
    plan=Plan(
        rules=(
            *EMBEDDING_AND_ATTENTION,
            columns("layers.*.mlp.gate_proj"),
            columns("layers.*.mlp.up_proj"),
            rows("layers.*.mlp.down_proj"),
        )
    ),
    pooling="last",
    hidden_dropout=(),
    attention_dropout=("attention_dropout",),
    query_and_value=("q_proj", "v_proj"),
)
