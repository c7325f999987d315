"""Tokenised examples in flat arrays that packing can cut anywhere, and the steps of tokenising that all kinds share."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError
from prompt_tuning.problems import show
from prompt_tuning.sources import LocatedRow, check_columns
from prompt_tuning.tasks import Row, Task, Template

logger = logging.getLogger(__name__)

NO_TAG = -100
"""Tag of a token that has none."""


@dataclass(frozen=True, eq=False)
class Features:
    """Tokenised examples of one split: ``rows_per_example`` sequences an example, stored end to end.

    Row ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``. ``labels`` [examples] is a class index or a value, -1 or NaN where
    there is none; where every token is asked, it only says whether the example is labelled, and ``tags`` [tokens] has the
    labels, negative where a token has none. ``notes`` is what the task's kind needs for scoring beside them.
    """

    tokens: np.ndarray
    token_types: np.ndarray | None
    offsets: np.ndarray
    rows_per_example: int
    labels: np.ndarray
    tags: np.ndarray | None = None
    notes: Any = None

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_label(self) -> np.ndarray:
        """[examples] Whether an example is labelled."""
        return ~np.isnan(self.labels) if self.labels.dtype.kind == "f" else self.labels >= 0

    @property
    def is_labelled(self) -> bool:
        return bool(self.has_label.all())

    def terms(self, examples: np.ndarray) -> int:
        """How many terms the loss of some examples is the mean of: examples, or labelled tokens where a kind counts them."""
        if not getattr(self.notes, "counts_tokens", False):
            return len(examples)
        return int(self.notes.num_labels[examples].sum())


def expanded(task: Task, where: str, raw: Row) -> list[Row]:
    """The task's own rows in a row of a file. Raises :class:`UserError` where it has another shape."""
    try:
        return list(task.expand(raw))
    except KeyError as error:
        raise UserError(f"{where}: the row does not fit task {task.name!r}: it lacks {show(error.args[0])}") from None
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise _misfit(task, where, error) from None


def located_rows(task: Task, rows: list[LocatedRow], labelled: bool = False) -> list[LocatedRow]:
    """The task's own rows, checked; ``labelled``: each must have a label."""
    found = []
    for where, raw in rows:
        for row in expanded(task, where, raw):
            check_columns(task, where, row, labelled=labelled)
            found.append((where, dict(row)))
    if rows and not found:
        raise UserError(
            f"{rows[0][0]}: neither this row nor any other holds an example of task {task.name!r}; fill or remove them"
        )
    return found


def sequences(task: Task, where: str, build: Template, row: Row) -> tuple[Any, ...]:
    """The sequences that a template makes of a row. Raises :class:`UserError` where it does not fit."""
    try:
        return build(row)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise _misfit(task, where, error) from None


def _misfit(task: Task, where: str, error: Exception) -> UserError:
    return UserError(f"{where}: the row does not fit task {task.name!r}: {error}")


def template_of(task: Task, template: str | None) -> Template:
    """The template of a name; None: the task's first."""
    return task.all_templates()[template or next(iter(task.templates))]


def checked_text(where: str, text: Any) -> str:
    """``text`` if it is one that can be encoded. Raises :class:`UserError`."""
    if not isinstance(text, str):
        raise UserError(f"{where}: {show(text)} is not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start + 1} of a text is half of a surrogate pair; repair it"
        ) from None
    return text


def check_room(tokenizer: PreTrainedTokenizerBase, max_length: int, pair: bool) -> int:
    """How many special tokens a text (pair) gets. Raises :class:`UserError` if they leave no room for it."""
    special = tokenizer.num_special_tokens_to_add(pair=pair)
    least = special + (2 if pair else 1)
    if max_length < least:
        raise UserError(
            f"data.max_length={max_length} leaves no room for text beside {special} special tokens; give {least} or more"
        )
    return special


def flatten(encoded: Any, count: int) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Tokens, token types and offsets of ``count`` encoded sequences, end to end."""
    lengths = np.fromiter(map(len, encoded["input_ids"]), np.int64, count)
    types = encoded.get("token_type_ids")
    return (
        np.concatenate([np.zeros(0, np.int32), *(np.asarray(ids, np.int32) for ids in encoded["input_ids"])]),
        None if types is None else np.concatenate([np.zeros(0, np.int8), *(np.asarray(row, np.int8) for row in types)]),
        np.concatenate([[0], np.cumsum(lengths)]),
    )


def encode_texts(
    task: Task, tokenizer: PreTrainedTokenizerBase, rows: list[LocatedRow], max_length: int, template: str | None
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, int]:
    """Tokens, types, offsets and sequences a row of texts or pairs, truncated longest first to ``max_length`` tokens."""
    build = template_of(task, template)
    firsts: list[str] = []
    seconds: list[str] = []
    for where, row in rows:
        for first, second in sequences(task, where, build, row):
            firsts.append(checked_text(where, first))
            if second is not None:
                seconds.append(checked_text(where, second))
    check_room(tokenizer, max_length, bool(seconds))
    encoded = tokenizer(firsts, seconds or None, truncation=True, max_length=max_length, return_attention_mask=False)
    tokens, types, offsets = flatten(encoded, len(firsts))
    per_example = len(firsts) // max(1, len(rows))
    lengths = np.diff(offsets)
    if len(lengths) and lengths.min() == 0:
        raise UserError(f"{rows[int(lengths.argmin()) // per_example][0]}: the text has no tokens")
    say_cut(task, int((lengths == max_length).sum()), len(firsts), max_length)
    return tokens, types, offsets, per_example


def word_lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """A space where the tokenizer writes a word inside a sentence otherwise than at its start."""
    both, first, spaced, plain = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a b", "a", " b", "b")
    )
    return " " if both == first + spaced != first + plain else ""


def say_cut(task: Task, cut: int, count: int, max_length: int, what: str = "texts") -> None:
    """Log how many texts the length limit cuts, if any."""
    if cut:
        logger.info(
            "task %r: %d of %d %s fill data.max_length=%d tokens; what is beyond is cut",
            task.name,
            cut,
            count,
            what,
            max_length,
        )


def class_labels(task: Task, rows: Sequence[LocatedRow], labels: tuple[str, ...]) -> np.ndarray:
    """Class indices [rows], -1 where a row has no label. Raises :class:`UserError` for an unknown one."""
    indices = []
    for where, row in rows:
        try:
            index = task.label_index(row.get(task.label_column), labels)
        except KeyError as error:
            raise UserError(f"{where}: label {error.args[0]!r} is none of {', '.join(labels)}") from None
        indices.append(-1 if index is None else index)
    return np.asarray(indices, np.int64)
