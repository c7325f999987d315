"""How texts become the graph's inputs, for programs that have neither this one nor transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError
from prompt_tuning.prompt.export import ExportedPrompt
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


class Cut(NamedTuple):
    """How a kind's texts and pairs are cut."""

    most: int
    """Tokens of a sequence."""
    strategy: str
    """Which of a pair is cut, in transformers' words."""
    stride: int = 0
    """Tokens that neighbouring windows share; windows are made where the second alone is cut."""

    @staticmethod
    def of(exported: ExportedPrompt) -> Cut:
        """That of a prompt's kind."""
        most, kind = exported.encoding.max_length, exported.task.kind
        if kind == "span":
            return Cut(most, "only_second", exported.encoding.stride)
        return Cut(most, "only_first" if kind == "tagging" else "longest_first")


def write_tokenizer(file: Path, tokenizer: PreTrainedTokenizerBase, cuts: set[Cut]) -> None:
    """Write a tokenizer for the package ``tokenizers``, and check that it cuts texts and pairs as here, each way.

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
    for way in sorted(cuts):
        for firsts, seconds in _samples(texts, way.strategy):
            least = 2 + tokenizer.num_special_tokens_to_add(pair=seconds is not None)
            # A window has a token more than it shares with the next, beside the "a" in front of it.
            if way.most < least + (way.stride + 1 if way.strategy == "only_second" else 0):
                continue
            theirs = cut(Tokenizer.from_file(str(file)), firsts, seconds, way, tokenizer.truncation_side)
            ours = tokenizer(
                firsts,
                seconds,
                truncation=way.strategy,
                max_length=way.most,
                stride=way.stride,
                return_overflowing_tokens=way.strategy == "only_second",
                return_offsets_mapping=True,
            )
            if (
                [window.ids for window in theirs] != ours["input_ids"]
                or [window.offsets for window in theirs] != ours["offset_mapping"]
                or ("token_type_ids" in ours and [window.type_ids for window in theirs] != ours["token_type_ids"])
            ):
                raise UserError(
                    f"the backbone's tokenizer ({name}) cuts texts otherwise than its tokenizer.json by itself, which a client"
                    " would read; choose another backbone"
                )


def _samples(texts: list[str], strategy: str) -> list[tuple[list[str], list[str] | None]]:
    """Texts and pairs; what is not cut of a pair is short."""
    short = ["a"] * len(texts)
    if strategy == "only_second":
        return [(short, texts)]
    return [(texts, None), (texts, short if strategy == "only_first" else texts[1:] + texts[:1])]


def cut(tokenizer: Tokenizer, texts: list[str], seconds: list[str] | None, way: Cut, side: str) -> list[Any]:
    """Texts or pairs as a client encodes them, window after window."""
    tokenizer.enable_truncation(way.most, stride=way.stride, strategy=way.strategy, direction=side)
    found: list[Any] = tokenizer.encode_batch(texts if seconds is None else list(zip(texts, seconds, strict=True)))
    if way.strategy != "only_second":
        return found
    return [window for first in found for window in (first, *first.overflowing)]


def text_forms(task: Task, encoding: Encoding) -> list[Any] | None:
    """A row's text, or text and second text, with the task's columns in braces, as `str.format` takes them; of a choice a list of
    these for each. Columns of words stand for the words with blanks between them.

    None where the template does more than put columns between words.
    """
    template, is_tagging = template_of(task, encoding.template), task.kind == "tagging"
    if task.number_columns or set(task.word_columns) != (set(task.columns) if is_tagging else set()):
        return None

    def texts(columns: dict[str, str]) -> list[list[str]]:
        row = {name: value.split(" ") if is_tagging else value for name, value in columns.items()}
        made = [[text for text in sequence if text is not None] for sequence in template(row)]
        return [[" ".join(text) for text in own] for own in made] if is_tagging else made

    try:
        forms = texts({column: f"{{{column}}}" for column in task.columns})
        for shift in range(len(_PIECES)):
            row = {column: _PIECES[(shift + i) % len(_PIECES)] for i, column in enumerate(task.columns)}
            if texts(row) != [[form.format(**row) for form in own] for own in forms]:
                return None
    except (ValueError, TypeError, LookupError, AttributeError):
        return None
    return forms if task.kind == "choice" else forms[0]
