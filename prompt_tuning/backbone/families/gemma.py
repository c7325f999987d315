"""Gemma 2 and 3 (Gemma teams 2024 and 2025), text alone: local layers and global ones, embeddings scaled by sqrt(hidden size)."""

from dataclasses import replace

from prompt_tuning.backbone.families.llama import FAMILY as LLAMA

FAMILY = replace(LLAMA, model_types=("gemma2", "gemma3_text"))
