"""GLM-4 (GLM team 2024) as transformers has it: `glm` and, with norms behind each block too, `glm4`; causal, rotary, no pooler."""

from model_parallel.plan import Plan, columns, rows
from prompt_tuning.backbone.families import Family
from prompt_tuning.backbone.families.llama import EMBEDDING_AND_ATTENTION

FAMILY = Family(
    model_types=("glm", "glm4"),
    layers="layers",
    attention="self_attn",
    by_token=("mlp", "mlp"),
    plan=Plan(
        rules=(
            *EMBEDDING_AND_ATTENTION,
            columns("layers.*.mlp.gate_up_proj", "width", "width"),
            rows("layers.*.mlp.down_proj"),
        )
    ),
    pooling="last",
    hidden_dropout=(),
    attention_dropout=("attention_dropout",),
    query_and_value=("q_proj", "v_proj"),
)
