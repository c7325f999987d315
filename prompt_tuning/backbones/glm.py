"""GLM-4 (GLM team 2024) as transformers has it: `glm` and, with norms behind each block too, `glm4`; causal, rotary, no pooler."""

from model_parallel.plan import Plan, columns, rows, vocabulary
from prompt_tuning.backbones import Family

FAMILY = Family(
    model_types=("glm", "glm4"),
    attention_modules=lambda model: [layer.self_attn for layer in model.layers],
    plan=Plan(
        rules=(
            vocabulary("embed_tokens"),
            columns("layers.*.self_attn.q_proj", "heads"),
            columns("layers.*.self_attn.[kv]_proj", "key_value_heads"),
            rows("layers.*.self_attn.o_proj", "heads"),
            columns("layers.*.mlp.gate_up_proj", "width", "width"),
            rows("layers.*.mlp.down_proj"),
        )
    ),
    pooling="last",
    hidden_dropout=(),
    attention_dropout=("attention_dropout",),
)
