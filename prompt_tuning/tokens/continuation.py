"""Sequences to be written: a source, and behind it the target that the language model is asked for, token by token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError
from prompt_tuning.tasks.chat import conversation
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.arrays import ends_of
from prompt_tuning.tokens.chat import conversation_tokens, one_message
from prompt_tuning.tokens.features import NO_TAG, Remarks
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import checked_text
from prompt_tuning.tokens.tokenise import word_lead


class Continuations(NamedTuple):
    """R rows end to end. The last token of a target is asked for and not read, so it is among ``wanted`` alone."""

    tokens: np.ndarray
    offsets: np.ndarray
    wanted: np.ndarray
    """[tokens] The token that comes next where it is the target's, :data:`NO_TAG` elsewhere."""
    num_source: np.ndarray
    """[R] Tokens of the source, with which each row begins."""
    num_target: np.ndarray
    """[R] Tokens asked for, the end token included; 0 where there is no target."""
    remarks: Remarks


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token behind a written text. Raises :class:`UserError` where a tokenizer names none."""
    if tokenizer.eos_token_id is None:
        raise UserError(
            "the backbone's tokenizer names no end token (eos_token), with which a written text ends; set it in its"
            " tokenizer_config.json"
        )
    return int(tokenizer.eos_token_id)


def line_end(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens of a line break behind a word. Raises :class:`UserError` where a tokenizer passes over line breaks."""
    word, both, alone = (list(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in ("a", "a\n", "\n"))
    found = both[len(word) :] if both[: len(word)] == word else alone
    if not found:
        raise UserError(
            "the backbone's tokenizer has no token for a line break, with which answers about documents end; choose another"
            " backbone"
        )
    return found


def as_sources(task: Task, texts: Sequence[Any]) -> list[str]:
    """Texts of people as a task's sources: of a task of conversations, the first message of each, or all messages, a list of objects
    with `role` and `content`. Raises :class:`UserError`."""
    return [_as_source(task, f"text {place}", text) for place, text in enumerate(texts, 1)]


def _as_source(task: Task, where: str, text: Any) -> str:
    if not isinstance(text, list):
        return one_message(checked_text(where, text)) if task.is_chat else checked_text(where, text)
    if not task.is_chat:
        raise UserError(f"{where}: the prompt was trained on texts, and not on conversations; give a text")
    try:
        return checked_text(where, conversation(text))
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def source_tokens(
    tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int, texts: Sequence[str], has_encoder: bool = False
) -> tuple[list[list[int]], Remarks]:
    """Tokens of sources: what the tokenizer puts in front of a text, the task's lead and the text, cut to fit, and its separator.

    Where a task goes on behind its prompt, nothing stands in front. Conversations are as their template writes them.

    An encoder's sources (``has_encoder``) end with what the tokenizer puts behind a text, and have no separator.

    Raises :class:`UserError` where ``max_length`` leaves no room, or nothing is left to write behind.
    """
    if task.is_chat:
        return conversation_tokens(tokenizer, max_length, texts)
    if has_encoder:
        start, between = _around(tokenizer)
    else:
        between = list(tokenizer(task.separator, add_special_tokens=False)["input_ids"]) if task.separator else []
        start = [] if task.goes_on else leading_tokens(tokenizer)
    room = max_length - len(start) - len(between)
    if room < 1:
        raise UserError(
            f"data.max_length={max_length} leaves no room for a source beside {len(start) + len(between)} tokens around it;"
            " raise it"
        )
    whole = [task.lead + text for text in texts]
    found = tokenizer(whole, add_special_tokens=False)["input_ids"] if len(texts) else []
    cut = sum(len(own) > room for own in found)
    if cut and task.is_whole:
        most = max(map(len, found)) + max_length - room
        raise UserError(
            f"data.max_length={max_length} would cut {cut} of {len(found)} sources behind prompt.text and prompt.shots, at their"
            f" ends, where the question is; set it to {most}, or lower prompt.shots"
        )
    rows = [[*start, *own[:room], *between] for own in found]
    if not all(rows):
        raise UserError(
            "a source has no tokens, and the backbone's tokenizer puts none in front of a text; give it words"
        )
    return rows, {f"%d of %d sources are cut to data.max_length={max_length} tokens": (cut, len(rows))}


def leading_tokens(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens in front of every text, such as a begin token; those behind a text would end it too early."""
    ids, special = list(tokenizer("a")["input_ids"]), set(tokenizer.all_special_ids)
    count = next((place for place, token in enumerate(ids) if token not in special), 0)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    # A word that the tokenizer does not know is a special token itself.
    return ids[: count or next(i for i in range(len(ids)) if ids[i : i + len(plain)] == plain)]


def text_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> np.ndarray:
    """int64: a text behind what the tokenizer puts in front of one."""
    return np.array([*leading_tokens(tokenizer), *tokenizer(text, add_special_tokens=False)["input_ids"]], np.int64)


def _around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """The special tokens in front of every text, and those behind it."""
    ids, start = list(tokenizer("a")["input_ids"]), leading_tokens(tokenizer)
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    return start, ids[len(start) + len(plain) :]


def encode_continuations(recipe: Recipe, sources: Sequence[str], targets: Sequence[str | None]) -> Continuations:
    """Rows of sources and targets, cut apart: a source to ``max_length``, a target to ``max_target_length`` tokens.

    A target that is cut has no end token. Where a target is None the row is its source.
    """
    task, tokenizer, encoding = recipe.task, recipe.tokenizer, recipe.encoding
    most = encoding.max_target_length
    end = line_end(tokenizer) if task.goes_on else [end_token(tokenizer)]
    before, remarks = source_tokens(tokenizer, task, encoding.max_length, sources, recipe.has_encoder)
    lead = word_lead(tokenizer) if task.goes_on else ""
    texts = ["" if target is None else lead + target for target in targets]
    front, _ = _around(tokenizer) if recipe.has_encoder else ([], [])
    found = tokenizer(texts, add_special_tokens=False)["input_ids"] if texts else []
    whole = [[] if target is None else [*front, *ids, *end] for ids, target in zip(found, targets, strict=True)]
    behind = [own[:most] for own in whole]
    rows = [np.asarray([*source, *own[:-1]], np.int32) for source, own in zip(before, behind, strict=True)]
    offsets = ends_of([len(row) for row in rows])
    num_source, num_target = (np.array([len(own) for own in part], np.int64) for part in (before, behind))
    wanted = np.full(int(offsets[-1]), NO_TAG, np.int32)
    for first, source, own in zip(offsets[:-1] - 1, num_source, behind, strict=True):
        wanted[first + source : first + source + len(own)] = own  # each token says what comes next
    cut = f"%d of %d targets are cut to data.max_target_length={most} tokens and have no end"
    counts = sum(len(own) > most for own in whole), sum(map(bool, whole))
    tokens = np.concatenate([np.zeros(0, np.int32), *rows])
    return Continuations(tokens, offsets, wanted, num_source, num_target, {**remarks, cut: counts})
