"""StarCoder 2 (Lozhkov et al. 2024): causal, rotary, an MLP without gate; its window is that of all layers."""

from dataclasses import replace

from model_parallel.plan import Plan, columns, rows
from prompt_tuning.backbone.families.llama import EMBEDDING_AND_ATTENTION
from prompt_tuning.backbone.families.llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    model_types=("starcoder2",),
    plan=Plan(rules=(*EMBEDDING_AND_ATTENTION, columns("layers.*.mlp.c_fc"), rows("layers.*.mlp.c_proj"))),
    hidden_dropout=("residual_dropout", "embedding_dropout"),
)
