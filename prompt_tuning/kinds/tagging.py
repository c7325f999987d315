"""One tag for each word: entities, arguments. A word is asked at its first token; the others have no label.

Words beyond ``max_length`` or without a token of their own are answered "O" and count like any other in the metrics.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.formats.tags import OUTSIDE, names_span, to_iob2
from prompt_tuning.kinds import Kind, Targets
from prompt_tuning.messages import show
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.arrays import Ragged, Values
from prompt_tuning.tokens.features import NO_TAG, Features
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import checked_text, own_rows, sequences, template_of
from prompt_tuning.tokens.tokenise import check_offsets, check_room, flatten, word_lead

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Sentences:
    """What scoring needs: for each row its words' tags (IOB2) and the tokens at which they are asked, -1 for none."""

    tags: Values
    first_tokens: Ragged
    """Places in the row."""
    num_labels: np.ndarray
    """[rows] Labelled tokens, each a term of the loss."""


def encode(recipe: Recipe, rows: list[LocatedRow]) -> Features:
    """Word lists (and a second list behind them, which is not asked), the words cut to what fits."""
    task, tokenizer, encoding, labels, _ = recipe
    check_offsets(tokenizer, "tagging tasks")
    build = template_of(task, encoding.template)
    firsts: list[list[str]] = []
    seconds: list[str] = []
    for where, row in rows:
        ((words, second),) = sequences(task, where, build, row)
        if not words:
            raise UserError(f"{where}: the sentence has no words")
        firsts.append([checked_text(where, word) for word in words])
        if second is not None:
            seconds.append(" ".join(checked_text(where, word) for word in second))
    check_room(tokenizer, encoding.max_length, bool(seconds))
    lead = word_lead(tokenizer)
    encoded = tokenizer(
        [lead + " ".join(words) for words in firsts],
        [lead + second for second in seconds] or None,
        truncation="only_first",
        max_length=encoding.max_length,
        return_attention_mask=False,
        return_offsets_mapping=True,
    )
    tokens, types, offsets = flatten(encoded, len(firsts))
    starts = [
        _first_tokens(words, len(lead), np.asarray(encoded["offset_mapping"][i]), encoded.sequence_ids(i))
        for i, words in enumerate(firsts)
    ]
    written = [_gold_tags(task, where, row, len(words)) for (where, row), words in zip(rows, firsts, strict=True)]
    gold = _as_labels(task, rows, written, labels)
    tags, unknown = _token_tags(offsets, rows, gold, starts, labels, task)
    num_words = sum(map(len, firsts))
    remarks = {
        f"%d of %d words have no token within data.max_length={encoding.max_length}; they are answered {OUTSIDE!r}": (
            sum(int((own < 0).sum()) for own in starts),
            num_words,
        ),
        "%d of %d words have tags that the training split lacks; they count as missed": (unknown, num_words),
    }
    counts = np.add.reduceat(tags >= 0, offsets[:-1], dtype=np.int64)
    has_tags = np.array([0 if sentence is not None else -1 for sentence in gold], np.int64)
    notes = Sentences(Values.of(gold), Ragged.of(starts), counts)
    return Features(tokens, types, offsets, 1, has_tags, tags, notes, remarks)


def _first_tokens(words: list[str], lead: int, spans: np.ndarray, sequence: list[int | None]) -> np.ndarray:
    """Index in the row of each word's first token [words], -1 where it has none.

    A token belongs to the word that it starts in, or in front of: byte-level tokens may begin with the space before a word.
    """
    lengths = np.array([len(word) for word in words])
    ends = np.cumsum(lengths + 1) - 1 + lead
    index = np.flatnonzero([place == 0 for place in sequence])
    word = np.searchsorted(ends, spans[index, 0], side="right")
    first = np.full(len(words), -1, np.int64)
    first[word[::-1]] = index[::-1]
    return first


def _gold_tags(task: Task, where: str, row: dict[str, Any], count: int | None = None) -> list[str] | None:
    """Tags as they are written, one for each of ``count`` words; None: not labelled."""
    tags = row.get(task.label_column)
    if tags is None:
        return None
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise UserError(f"{where}: column `{task.label_column}` is {show(tags)}, not a list of tags")
    if count is not None and len(tags) != count:
        raise UserError(f"{where}: {count} words but {len(tags)} tags; give one tag a word")
    return tags


def _as_labels(
    task: Task, rows: list[LocatedRow], written: list[list[str] | None], labels: tuple[str, ...]
) -> list[list[str] | None]:
    """Tags in IOB2 where the labels name spans, else as they are written. Raises :class:`UserError` for a tag in between."""
    if not all(label == OUTSIDE or names_span(label) for label in labels):
        return written
    if task.labels is None and task.selects_by not in task.plain_metrics:
        for (where, _), sentence in zip(rows, written, strict=True):
            plain = _plain_tag(sentence)
            if plain is not None:
                raise _no_span(task, where, plain)
    return [None if sentence is None else to_iob2(sentence) for sentence in written]


def _plain_tag(sentence: list[str] | None) -> str | None:
    """The first tag that is neither outside nor names a span."""
    return next((tag for tag in sentence or () if tag != OUTSIDE and not names_span(tag)), None)


def _no_span(task: Task, where: str, tag: str) -> UserError:
    remedy = " or set task.metric to accuracy" if "accuracy" in task.metrics else ""
    return UserError(f"{where}: tag {show(tag)} is no B-, I- or O, which {task.selects_by} counts; correct it{remedy}")


def _token_tags(
    offsets: np.ndarray,
    rows: list[LocatedRow],
    gold: list[list[str] | None],
    first_tokens: list[np.ndarray],
    labels: tuple[str, ...],
    task: Task,
) -> tuple[np.ndarray, int]:
    """Tag indices of all tokens, and how many tags are no label."""
    index = {name: i for i, name in enumerate(labels)}
    tags = np.full(int(offsets[-1]), NO_TAG, np.int32)
    unknown = 0
    for (where, _), sentence, tokens, base in zip(rows, gold, first_tokens, offsets[:-1], strict=True):
        if sentence is None:
            continue
        strange = [tag for tag in sentence if tag not in index]
        if strange and task.labels is not None:
            raise UserError(f"{where}: tag {show(strange[0])} is none of {', '.join(labels)}")
        unknown += len(strange)
        values = np.array([index.get(tag, NO_TAG) for tag in sentence])
        tags[base + tokens[tokens >= 0]] = values[tokens >= 0]
    return tags, unknown


def collect_labels(task: Task, rows: Iterable[LocatedRow]) -> tuple[str, ...]:
    """The tags that occur, "O" first; in IOB2 if they name spans. Raises :class:`UserError` where the task needs that."""
    written: set[str] = set()
    in_iob2 = {OUTSIDE}
    first_plain: tuple[str, str] | None = None
    for where, row in own_rows(task, rows, labelled=True):
        sentence = _gold_tags(task, where, row) or []
        written.update(sentence)
        in_iob2.update(to_iob2(sentence))
        if first_plain is None and (tag := _plain_tag(sentence)) is not None:
            first_plain = (where, tag)
    plain = {tag for tag in written if tag != OUTSIDE and not names_span(tag)}
    if first_plain is not None:
        is_mixed = any(names_span(tag) for tag in written)
        if not task.plain_metrics or (is_mixed and task.selects_by not in task.plain_metrics):
            raise _no_span(task, *first_plain)
        if task.selects_by not in task.plain_metrics:
            logger.info(
                "task %r: tags such as %r name no spans (B-, I-, O), so accuracy alone is reported and selects",
                task.name,
                min(plain),
            )
        found = written
    else:
        found = in_iob2
    if len(found) < 2:
        raise UserError(
            f"task {task.name!r}: all tags of the training split are {min(found, default=OUTSIDE)!r};"
            " there is nothing to learn"
        )
    outside = (OUTSIDE,) if OUTSIDE in found else ()
    return (*outside, *sorted(found - {OUTSIDE}, key=lambda tag: (tag.partition("-")[2], tag)))


def loss(logits: Tensor, targets: Targets) -> Tensor:
    """Cross entropy of the labelled tokens [t, C]; a row's weight goes to each of them."""
    rows, tags = targets.tokens
    losses = F.cross_entropy(logits, tags, ignore_index=NO_TAG, reduction="none")
    return (losses * targets.weights.to(logits.dtype)[rows.row_of_token]).sum()


def keep(logits: Tensor, targets: Targets) -> Tensor:
    """The likeliest tag of each token, and its loss [t, 2]."""
    losses = F.cross_entropy(logits, targets.tokens[1], ignore_index=NO_TAG, reduction="none")
    return torch.stack([logits.argmax(-1).to(logits.dtype), losses], dim=-1)


def answers(task: Task, features: Features, outputs: np.ndarray, labels: tuple[str, ...]) -> tuple[Any, Any]:
    """Tags of every sentence: two lists of lists."""
    return [sentence and list(sentence) for sentence in features.notes.tags], _predicted(features, outputs, labels)


def _predicted(features: Features, outputs: np.ndarray, labels: tuple[str, ...]) -> list[list[str]]:
    chosen = outputs[:, 0].astype(np.int64)
    return [
        [labels[chosen[base + token]] if token >= 0 else OUTSIDE for token in tokens.tolist()]
        for base, tokens in zip(features.offsets[:-1].tolist(), features.notes.first_tokens, strict=True)
    ]


def constant(train: Features, features: Features, num_labels: int) -> np.ndarray:
    """Always the most frequent tag."""
    assert train.tags is not None
    outputs = np.zeros((len(features.tokens), 2))
    counts = np.zeros(num_labels, np.int64)
    for start in range(0, len(train.tags), 1 << 20):  # mapped from a file, it may be larger than memory
        block = train.tags[start : start + (1 << 20)]
        counts += np.bincount(block[block >= 0], minlength=num_labels)
    outputs[:, 0] = counts.argmax()
    return outputs


def describe(task: Task, features: Features, outputs: np.ndarray, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """One tag a word."""
    return [{"tags": tags} for tags in _predicted(features, outputs, labels)]


KIND = Kind(
    encode=encode,
    collect_labels=collect_labels,
    num_outputs=lambda num_labels: num_labels,
    loss=loss,
    answers=answers,
    mean_loss=lambda features, outputs: float(outputs[:, 1].sum() / max(1, features.notes.num_labels.sum())),
    constant=constant,
    describe=describe,
    keep=keep,
    notes=Sentences,
    per_token=True,
)
