"""Gemma (Gemma team 2024), Gemma 2 and 3, text alone: embeddings scaled by sqrt(hidden size); from 2 on, local and global layers."""

from dataclasses import replace

from prompt_tuning.backbone.families.llama import FAMILY as LLAMA

FAMILY = replace(LLAMA, model_types=("gemma", "gemma2", "gemma3_text"))
