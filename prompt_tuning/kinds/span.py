"""The answer to a question as a piece of its context, found in overlapping windows (Rajpurkar et al. 2016; Devlin et al. 2019).

The first token stands for "no answer here". Only the first of several gold answers is trained on; all of them count in
the metrics.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.kinds import Kind, Targets
from prompt_tuning.messages import show
from prompt_tuning.metrics.texts import SpanAnswer
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.arrays import Values, ends_of
from prompt_tuning.tokens.features import Features, Remarks
from prompt_tuning.tokens.recipe import Encoding, Recipe
from prompt_tuning.tokens.rows import checked_text, sequences, template_of
from prompt_tuning.tokens.tokenise import check_offsets, check_room, flatten

START, END = 1, 2
"""Bits of a token's tag."""
N_BEST = 20
MAX_ANSWER_TOKENS = 30


@dataclass(frozen=True)
class Questions:
    """What scoring needs: contexts and gold answers of each question, its windows, and where tokens stand in the context."""

    contexts: Values
    answers: Values
    first_window: np.ndarray
    """[questions + 1] Windows of question ``i`` are ``first_window[i]:first_window[i + 1]``."""
    characters: np.ndarray
    """[tokens, 2] First character and the one after the last, -1 for tokens outside the context."""


def encode(recipe: Recipe, rows: list[LocatedRow]) -> Features:
    """Windows over the context, ``stride`` tokens shared by neighbours; an example is a window."""
    task, tokenizer, encoding = recipe.task, recipe.tokenizer, recipe.encoding
    check_offsets(tokenizer, "span tasks")
    build = template_of(task, encoding.template)
    questions: list[str] = []
    contexts: list[str] = []
    gold: list[list[tuple[str, int]] | None] = []
    for where, row in rows:
        ((question, context),) = sequences(task, where, build, row)
        questions.append(checked_text(where, question).lstrip())
        contexts.append(checked_text(where, context))
        gold.append(_gold_answers(where, row.get(task.label_column), contexts[-1]))
        if gold[-1] == [] and not task.has_null:
            raise UserError(
                f'{where}: a question without answer; set task.has_null to true (SQuAD 2.0), or task "squad2", or remove it'
            )
    questions, remarks = _fit_questions(tokenizer, questions, encoding)
    encoded = tokenizer(
        questions,
        contexts,
        truncation="only_second",
        max_length=encoding.max_length,
        stride=encoding.stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        return_attention_mask=False,
    )
    question_of = np.asarray(encoded["overflow_to_sample_mapping"], np.int64)
    tokens, types, offsets = flatten(encoded, len(question_of))
    characters = np.full((len(tokens), 2), -1, np.int32)
    tags = np.zeros(len(tokens), np.int32)
    for window, question in enumerate(question_of.tolist()):
        here = slice(offsets[window], offsets[window + 1])
        own = np.array([place == 1 for place in encoded.sequence_ids(window)])
        characters[here][own] = np.asarray(encoded["offset_mapping"][window], np.int32)[own]
        start, end = _mark(gold[question], characters[here])
        tags[here][start] |= START
        tags[here][end] |= END
    answers = Values.of(None if found is None else [text for text, _ in found] for found in gold)
    first_window = ends_of(np.bincount(question_of, minlength=len(questions)))
    return Features(
        tokens=tokens,
        token_types=types,
        offsets=offsets,
        rows_per_example=1,
        labels=np.array([-1 if answers is None else 0 for answers in gold])[question_of],
        tags=tags,
        notes=Questions(Values.of(contexts), answers, first_window, characters),
        remarks=remarks,
    )


def _fit_questions(
    tokenizer: PreTrainedTokenizerBase, questions: list[str], encoding: Encoding
) -> tuple[list[str], Remarks]:
    """Questions that leave the context at least half of the room, and how many were cut."""
    room = question_room(tokenizer, encoding.max_length)
    encoded = tokenizer(questions, add_special_tokens=False, return_offsets_mapping=True, return_attention_mask=False)
    lengths = [len(ids) for ids in encoded["input_ids"]]
    kept = [
        question if length <= room else question[: encoded["offset_mapping"][i][room - 1][1]]
        for i, (question, length) in enumerate(zip(questions, lengths, strict=True))
    ]
    remarks = {f"%d of %d questions are cut to {room} tokens": (sum(n > room for n in lengths), len(questions))}
    # A cut question may be a token longer than counted where the cut splits a word.
    special = tokenizer.num_special_tokens_to_add(pair=True)
    left = encoding.max_length - special - min(max(lengths, default=0), room + 2)
    if encoding.stride >= left:
        raise UserError(
            f"data.stride={encoding.stride} leaves no new text in a window: beside the longest question there is room for"
            f" {left} tokens; lower data.stride or raise data.max_length"
        )
    return kept, remarks


def question_room(tokenizer: PreTrainedTokenizerBase, max_length: int) -> int:
    """Most tokens of a question: half of what the special tokens leave."""
    return (max_length - check_room(tokenizer, max_length, True)) // 2


def _gold_answers(where: str, value: Any, context: str) -> list[tuple[str, int]] | None:
    """(text, first character) of each answer, from SQuAD's list of objects or the hub's object of lists; None: no label."""
    if value is None:
        return None
    if isinstance(value, dict):
        texts, starts = value.get("text"), value.get("answer_start")
        if not isinstance(texts, list) or not isinstance(starts, list) or len(texts) != len(starts):
            raise UserError(f"{where}: answers {show(value)} have no lists `text` and `answer_start` of one length")
        value = [{"text": text, "answer_start": start} for text, start in zip(texts, starts, strict=True)]
    if not isinstance(value, list):
        raise UserError(f"{where}: answers are {show(value)}, not a list")
    found = []
    for answer in value:
        text = answer.get("text") if isinstance(answer, dict) else None
        start = answer.get("answer_start") if isinstance(answer, dict) else None
        if not isinstance(text, str) or not isinstance(start, int) or isinstance(start, bool):
            raise UserError(f"{where}: answer {show(answer)} needs a text `text` and a whole number `answer_start`")
        if not text or context[start : start + len(text)] != text or start < 0:
            there = context.find(text) if text else -1
            hint = f"it stands at {there}" if there >= 0 else "the context does not hold it"
            raise UserError(
                f"{where}: answer {show(text)} is not at character {start} of the context; {hint}, correct it"
            )
        found.append((text, start))
    return found


def _mark(answers: list[tuple[str, int]] | None, characters: np.ndarray) -> tuple[int, int]:
    """First and last token of the first answer in a window [tokens, 2]; 0 and 0 where the window does not hold all of it."""
    if not answers:
        return 0, 0
    text, first = answers[0]
    last = first + len(text)
    inside = np.flatnonzero(characters[:, 0] >= 0)
    if not len(inside) or characters[inside[0], 0] > first or characters[inside[-1], 1] < last:
        return 0, 0
    start = inside[bisect.bisect_right(characters[inside, 0].tolist(), first) - 1]
    end = inside[bisect.bisect_left(characters[inside, 1].tolist(), last)]
    return int(start), int(end)


def loss(logits: Tensor, targets: Targets) -> Tensor:
    """Mean of the cross entropies of first and last token, each over its row's tokens, from [t, 2]."""
    rows, tags = targets.tokens
    marks = tags.clamp(min=0)
    is_gold = torch.stack([marks & START, marks & END], 1) > 0
    losses = rows.log_sum_exp(logits) - rows.sum_rows(logits * is_gold)
    return (losses.mean(1) * targets.weights.to(logits.dtype)).sum()


def mean_loss(features: Features, outputs: np.ndarray) -> float:
    """Mean over windows of :func:`loss`, from logits [tokens, 2]."""
    assert features.tags is not None
    starts = features.offsets[:-1]
    top = np.maximum.reduceat(outputs, starts, axis=0)
    row = np.repeat(np.arange(len(features)), np.diff(features.offsets))
    totals = np.log(np.add.reduceat(np.exp(outputs - top[row]), starts, axis=0)) + top
    gold = [outputs[(features.tags & bit) > 0, place] for place, bit in enumerate((START, END))]
    return float((totals - np.stack(gold, axis=1)).mean())


def answers(task: Task, features: Features, outputs: np.ndarray, labels: tuple[str, ...]) -> tuple[Any, Any]:
    """Gold texts of each question, and its answer found."""
    return list(features.notes.answers), [found[0] for found in _n_best(features, outputs, 1)]


def _n_best(features: Features, outputs: np.ndarray, count: int) -> list[list[SpanAnswer]]:
    """The best answers of each question over its windows, best first, never empty; each knows the question's null odds.

    The score of a span is the sum of its logits; that of "no answer" the least of its windows' first tokens.
    """
    notes: Questions = features.notes
    found = []
    for question in range(len(notes.contexts)):
        spans: list[tuple[float, int, int]] = []
        null = np.inf
        for window in range(notes.first_window[question], notes.first_window[question + 1]):
            rows = slice(features.offsets[window], features.offsets[window + 1])
            null = min(null, float(outputs[rows][0].sum()))
            spans += _best_spans(outputs[rows], notes.characters[rows])
        spans.sort(key=lambda span: -span[0])
        context = notes.contexts[question]
        distinct: dict[str, SpanAnswer] = {}
        for score, first, last in spans:
            distinct.setdefault(context[first:last], SpanAnswer(context[first:last], score, float(null - score)))
            if len(distinct) == count:
                break
        found.append(list(distinct.values()) or [SpanAnswer("", float("-inf"), float("inf"))])
    return found


def _best_spans(logits: np.ndarray, characters: np.ndarray) -> list[tuple[float, int, int]]:
    """Score and characters of a window's spans between its likeliest first and last tokens."""
    inside = np.flatnonzero(characters[:, 0] >= 0)
    if not len(inside):
        return []
    first, last = (inside[np.argsort(-logits[inside, place], kind="stable")[:N_BEST]] for place in (0, 1))
    lengths = last[None] - first[:, None] + 1
    pairs = np.argwhere((lengths > 0) & (lengths <= MAX_ANSWER_TOKENS))
    scores = logits[first[pairs[:, 0]], 0] + logits[last[pairs[:, 1]], 1]
    order = np.argsort(-scores, kind="stable")[:N_BEST]
    return [
        (float(scores[i]), int(characters[first[pairs[i, 0]], 0]), int(characters[last[pairs[i, 1]], 1])) for i in order
    ]


def constant(train: Features, features: Features, num_labels: int) -> np.ndarray:
    """No answer where the task allows it; else the first word."""
    outputs = np.zeros((len(features.tokens), 2))
    outputs[features.offsets[:-1]] = 1
    return outputs


def describe(task: Task, features: Features, outputs: np.ndarray, labels: tuple[str, ...]) -> list[dict[str, Any]]:
    """Answer and its rivals with probabilities among them."""
    result = []
    for best in _n_best(features, outputs, N_BEST):
        powers = np.exp(np.array([answer.score - best[0].score for answer in best]))
        rivals = [
            {"text": answer.text, "probability": float(share)}
            for answer, share in zip(best, powers / powers.sum(), strict=True)
        ]
        is_null = task.has_null and best[0].null_odds > 0
        result.append({"answer": "" if is_null else best[0].text, "null_odds": best[0].null_odds, "n_best": rivals})
    return result


KIND = Kind(
    encode=encode,
    collect_labels=lambda task, rows: ("start", "end"),
    num_outputs=lambda num_labels: 2,
    loss=loss,
    answers=answers,
    mean_loss=mean_loss,
    constant=constant,
    describe=describe,
    count=lambda task, features: len(features.notes.contexts),
    notes=Questions,
    per_token=True,
    drops_hidden=False,
    trains_bias=False,
)
