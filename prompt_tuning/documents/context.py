"""A text in the frozen model's context, as a prompt: its keys and values, which nothing has trained."""

from __future__ import annotations

import numpy as np

from prompt_tuning.backbone.language_head import LanguageHead
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.prompt.initialise import start_from_ids
from prompt_tuning.prompt.prefix import Prefix
from prompt_tuning.prompt.prompt import Prompt
from prompt_tuning.tokens.continuation import text_ids


def context_ids(backbone: Backbone, text: str) -> np.ndarray:
    """int64: what the tokenizer puts in front of a text, and the text. Raises :class:`UserError` for unknown tokens."""
    ids = text_ids(backbone.tokenizer, text)
    backbone.description.check_tokens(int(ids.max(initial=-1)))
    return ids


def context_prompt(backbone: Backbone, ids: np.ndarray) -> Prompt:
    """Tokens as a prompt of as many: what stands behind it sees of them what it would see of the text itself, where no layer has
    a window shorter than both together."""
    prompt = Prompt(LanguageHead(backbone.language_head))
    if len(ids):
        prompt.prefix = Prefix(backbone.shape, len(ids), None, backbone.prompt_dtype)
        prompt.to(backbone.grid.device)
        start_from_ids(prompt, backbone, ids)
    return prompt.requires_grad_(False)
