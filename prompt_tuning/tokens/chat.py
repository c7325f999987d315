"""Conversations as tokens, in the words of the tokenizer's own chat template."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError, reason
from prompt_tuning.tokens.features import Remarks


def one_message(text: str) -> str:
    """A text as the conversation that a user begins with it."""
    return json.dumps([{"role": "user", "content": text}], ensure_ascii=False)


def conversation_tokens(
    tokenizer: PreTrainedTokenizerBase, max_length: int, texts: Sequence[str]
) -> tuple[list[list[int]], Remarks]:
    """Tokens of conversations (JSON lists of messages), up to where a reply begins; what does not fit loses its oldest messages.

    A system's message stays. Raises :class:`UserError` for a tokenizer without template, messages that it does not take, and a last
    message that does not fit by itself.
    """
    if tokenizer.chat_template is None:
        raise UserError(
            "task.messages: the backbone's tokenizer has no chat template; choose a backbone that was trained to chat, or give texts"
            " (task.source, task.target)"
        )
    found = [_fitting(tokenizer, max_length, json.loads(text)) for text in texts]
    cut = f"%d of %d conversations lose their oldest messages, to fit into data.max_length={max_length} tokens"
    return [ids for ids, _ in found], {cut: (sum(is_cut for _, is_cut in found), len(found))}


def _fitting(
    tokenizer: PreTrainedTokenizerBase, max_length: int, messages: list[dict[str, Any]]
) -> tuple[list[int], bool]:
    """The tokens of a conversation, and whether messages were left out."""
    kept = list(messages)
    while True:
        ids = _rendered(tokenizer, kept)
        if len(ids) <= max_length:
            return ids, len(kept) < len(messages)
        oldest = next((place for place, own in enumerate(kept[:-1]) if own["role"] != "system"), None)
        if oldest is None:
            raise UserError(
                f"a conversation's last message has {len(ids)} tokens with what the chat template puts around it, and"
                f" data.max_length is {max_length}; raise it"
            )
        del kept[oldest]
        while kept[oldest]["role"] == "assistant":  # what is answered is gone
            del kept[oldest]


def _rendered(tokenizer: PreTrainedTokenizerBase, messages: list[dict[str, Any]]) -> list[int]:
    try:
        # Templates that know of thinking are asked for replies without.
        text: Any = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=False
        )
    except (TemplateError, TypeError, ValueError, LookupError, AttributeError) as error:
        roles = ", ".join(own["role"] for own in messages)
        raise UserError(
            f"the backbone's chat template does not take messages of {roles}: {reason(error)}; order them as it wants"
        ) from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])
