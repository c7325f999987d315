"""Cohere's Command R (2024) and, with local layers, R7B: causal, rotary, attention and MLP side by side."""

from dataclasses import replace

from prompt_tuning.backbone.families.llama import FAMILY as LLAMA

FAMILY = replace(
    LLAMA,
    model_types=("cohere", "cohere2"),
    refuse=lambda config: (
        "its queries and keys are normed head by head (use_qk_norm), which is not supported; choose a model without"
        if getattr(config, "use_qk_norm", False)
        else None
    ),
)
