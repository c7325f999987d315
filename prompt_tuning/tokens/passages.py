"""A document, and passages of it that a model reads at once."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError
from prompt_tuning.storage.texts import as_text, read_content


@dataclass(frozen=True)
class Document:
    """A text, and the digest by which rows know what they were made from."""

    text: str
    digest: str


def read_document(path: str) -> Document:
    """A UTF-8 text file. Raises :class:`UserError`."""
    content = read_content("task.document", path)
    text = as_text("task.document", path, content)
    if not text.strip():
        raise UserError(f"task.document={path}: the document is empty; give it words")
    return Document(text, hashlib.sha256(content).hexdigest())


def cut(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> list[str]:
    """Passages of at most ``most`` tokens, in order: whole paragraphs where they fit, else sentences, else pieces of them."""
    passages: list[str] = []
    for paragraph in re.split(r"(?<=\n)\s*\n", text.strip()):
        for piece in _fitting(paragraph.strip(), tokenizer, most):
            joined = f"{passages[-1]}\n\n{piece}" if passages else piece
            if passages and _count(joined, tokenizer) <= most:
                passages[-1] = joined
            else:
                passages.append(piece)
    return passages


def sentences_of(text: str) -> list[str]:
    """The sentences of a text that have more than three words, or else the text itself."""
    found = [own for own in re.split(r"(?<=[.!?])\s+|(?<=[\u3002\uff01\uff1f])\s*", text.strip()) if own]
    return [own for own in found if len(own.split()) > 3 or _is_unspaced(own)] or [text.strip()]


def _is_unspaced(text: str) -> bool:
    """Whether a text has words without spaces between them, as Chinese has."""
    return len(text) > 12 and " " not in text


def _fitting(text: str, tokenizer: PreTrainedTokenizerBase, most: int) -> list[str]:
    """A paragraph in pieces that fit."""
    if _count(text, tokenizer) <= most:
        return [text] if text else []
    for between, parts in (
        ("", re.split(r"(?<=[.!?\u3002\uff01\uff1f])(?=\s|[^\x00-\x7f])", text)),
        (" ", text.split()),
        ("", list(text)),
    ):
        if len(parts) > 1:
            half = len(parts) // 2
            first, second = between.join(parts[:half]).strip(), between.join(parts[half:]).strip()
            return _fitting(first, tokenizer, most) + _fitting(second, tokenizer, most)
    return [text]


def _count(text: str, tokenizer: PreTrainedTokenizerBase) -> int:
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])
