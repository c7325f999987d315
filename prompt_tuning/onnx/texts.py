"""How texts become the graph's inputs, for programs that have neither this one nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError
from prompt_tuning.formats import Row
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.recipe import Encoding
from prompt_tuning.tokens.rows import template_of

_PIECES = (
    "a",
    "Größe 12,5",
    "two\nlines  and blanks",
    " {0} It's 'so'.",
    "日本語のテキスト",
    "I.",
    "-",
    "UPPER 🙂",
    "…",
)
_TEXTS = [*_PIECES, " ".join(_PIECES), " ".join(_PIECES * 200)]


def write_tokenizer(file: Path, tokenizer: PreTrainedTokenizerBase, lengths: set[int]) -> None:
    """Write a tokenizer for the package ``tokenizers``, and check that it cuts texts and pairs as here at some most lengths.

    Raises :class:`UserError` where there is none, or it does not.
    """
    name = type(tokenizer).__name__
    if not tokenizer.is_fast:
        raise UserError(
            f"the backbone's tokenizer ({name}) is written in Python and has no tokenizer.json, which a client needs; choose"
            " a backbone that has one"
        )
    own = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    own.no_padding()
    own.no_truncation()
    own.save(str(file))
    special = [token for token in (tokenizer.cls_token, tokenizer.bos_token, tokenizer.mask_token) if token]
    texts = [*_TEXTS, *(f"a {token} b" for token in special)]
    for most in sorted(lengths):
        for seconds in (None, texts[1:] + texts[:1]):
            if most < 2 + tokenizer.num_special_tokens_to_add(pair=seconds is not None):
                continue
            theirs = cut(Tokenizer.from_file(str(file)), texts, seconds, most, tokenizer.truncation_side)
            ours = tokenizer(texts, seconds, truncation=True, max_length=most)
            if [encoded.ids for encoded in theirs] != ours["input_ids"] or (
                "token_type_ids" in ours and [encoded.type_ids for encoded in theirs] != ours["token_type_ids"]
            ):
                raise UserError(
                    f"the backbone's tokenizer ({name}) cuts texts otherwise than its tokenizer.json by itself, which a client"
                    " would read; choose another backbone"
                )


def cut(tokenizer: Tokenizer, texts: list[str], seconds: list[str] | None, most: int, side: str) -> list[Any]:
    """Texts or pairs as a client encodes them."""
    tokenizer.enable_truncation(most, direction=side)
    found: list[Any] = tokenizer.encode_batch(texts if seconds is None else list(zip(texts, seconds, strict=True)))
    return found


def text_forms(task: Task, encoding: Encoding) -> list[str] | None:
    """A row's text, or text and second text, with the task's columns in braces, as `str.format` takes them.

    None where the template does more than put columns between words.
    """
    template = template_of(task, encoding.template)
    if task.number_columns or task.word_columns:
        return None

    def texts(row: Row) -> list[str]:
        (made,) = template(row)
        return [text for text in made if text is not None]

    try:
        forms = texts({column: f"{{{column}}}" for column in task.columns})
        for shift in range(len(_PIECES)):
            row = {column: _PIECES[(shift + i) % len(_PIECES)] for i, column in enumerate(task.columns)}
            if texts(row) != [form.format(**row) for form in forms]:
                return None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return forms
