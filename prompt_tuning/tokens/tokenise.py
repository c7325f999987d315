"""The steps of tokenising that all kinds share."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.tasks.labels import label_name, why_unknown
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Remarks
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import checked_text, sequences, template_of


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """SHA-256 over what a tokenizer does, padding and truncation apart, as hex digits."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        plain = {key: value for key, value in tokenizer.init_kwargs.items() if isinstance(value, (bool, int, str))}
        paths = {
            key for key, value in plain.items() if "file" in key or key == "name_or_path" or str(value).startswith("/")
        }
        content: Any = [
            type(tokenizer).__name__,
            sorted(tokenizer.get_vocab().items()),
            sorted((key, value) for key, value in plain.items() if key not in paths),
        ]
    else:
        content = json.loads(backend.to_str())
        # Both change with every call of a tokenizer and are not its own.
        content.pop("padding", None)
        content.pop("truncation", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check_room(tokenizer: PreTrainedTokenizerBase, max_length: int, pair: bool) -> int:
    """How many special tokens a text (pair) gets. Raises :class:`UserError` if they leave no room for it."""
    special: int = tokenizer.num_special_tokens_to_add(pair=pair)
    least = special + (2 if pair else 1)
    if max_length < least:
        raise UserError(
            f"data.max_length={max_length} leaves no room for text beside {special} special tokens; give {least} or more"
        )
    return special


def check_offsets(tokenizer: PreTrainedTokenizerBase, what: str) -> None:
    """Raise :class:`UserError` where a tokenizer does not tell where in the text its tokens stand, as those in Python do not."""
    if not tokenizer.is_fast:
        raise UserError(
            f"the backbone's tokenizer ({type(tokenizer).__name__}) tells no character offsets, which {what} need;"
            " choose a backbone that has a tokenizer.json"
        )


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
    recipe: Recipe, rows: list[LocatedRow]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray, int, Remarks]:
    """Tokens, types, offsets, sequences a row and remarks of texts or pairs, truncated longest first to ``max_length``."""
    task, tokenizer, max_length = recipe.task, recipe.tokenizer, recipe.encoding.max_length
    build = template_of(task, recipe.encoding.template)
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
    return tokens, types, offsets, per_example, cut_texts(lengths, max_length)


def word_lead(tokenizer: PreTrainedTokenizerBase) -> str:
    """A space where the tokenizer writes a word inside a sentence otherwise than at its start."""
    both, first, spaced, plain = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in ("a b", "a", " b", "b")
    )
    return " " if both == first + spaced != first + plain else ""


def cut_texts(lengths: np.ndarray, max_length: int) -> Remarks:
    """How many texts the length limit cuts."""
    remark = f"%d of %d texts fill data.max_length={max_length} tokens; what is beyond is cut"
    return {remark: (int((lengths == max_length).sum()), len(lengths))}


def class_labels(task: Task, rows: Sequence[LocatedRow], labels: tuple[str, ...]) -> np.ndarray:
    """Class indices [rows], -1 where a row has no label. Raises :class:`UserError` for an unknown one."""
    indices: list[int] = []
    unknown: list[tuple[str, Any]] = []
    for where, row in rows:
        value = row.get(task.label_column)
        try:
            index = task.label_index(value, labels)
        except KeyError:
            unknown.append((where, value))
            continue
        indices.append(-1 if index is None else index)
    if unknown:
        where, value = unknown[0]
        same = sum(label_name(other) == label_name(value) for _, other in unknown)
        more = f" (and {same - 1} more rows)" if same > 1 else ""
        raise UserError(f"{where}{more}: {why_unknown(value, labels, task.labels is not None)}")
    return np.asarray(indices, np.int64)
