"""EuroBERT (Boizard et al. 2025): LLaMA's layers where every token sees the whole text; no pooler."""

from dataclasses import replace

from prompt_tuning.backbone.families.llama import FAMILY as LLAMA

FAMILY = replace(LLAMA, model_types=("eurobert",), pooling="mean")
