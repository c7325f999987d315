"""A prompt that stands for a document, by context distillation (Snell et al. 2022; Eyuboglu et al. 2025, arXiv 2506.06266).

The teacher is the frozen model with a passage of the document in its context, the student the same model behind the prompt. The
loss is the Kullback-Leibler divergence of the student from the teacher over the next token, in each place of the answers that
the teacher wrote to questions about the passage; a member's is the mean over all places of its step. Scored are the answers
themselves, as texts that the language model writes: perplexity, and what it writes to the questions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.kinds import Targets, generation
from prompt_tuning.messages import show
from prompt_tuning.tasks.own.document import TEACHER
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.arrays import ends_of
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.lessons import LESSON_TOKENS, Lessons
from prompt_tuning.tokens.passages import read_document
from prompt_tuning.tokens.recipe import Recipe

AGAIN = "run promptfleet synthesise again"


@dataclass(frozen=True)
class Lines(generation.Passages):
    """What writing, scoring and teaching need of each row."""

    lessons: Lessons


def encode(recipe: Recipe, rows: list[LocatedRow]) -> Features:
    """Questions, each with its answer behind it, and what the teacher expects in the places of the answer."""
    for where, row in rows:
        answer = row.get(recipe.task.label_column)
        texts = answer if isinstance(answer, list) else [answer]
        if any(isinstance(text, str) and "\n" in text for text in texts):
            raise UserError(f"{where}: the answer {show(answer)} has a line break, which ends answers; write one line")
    found = generation.encode(recipe, rows)
    notes: generation.Passages = found.notes
    taught = [_taught(where, row, found.asked(i)) for i, (where, row) in enumerate(rows)]
    lessons = Lessons(
        np.concatenate([np.zeros((0, LESSON_TOKENS), np.int32), *(ids for ids, _ in taught)]),
        np.concatenate([np.zeros((0, LESSON_TOKENS), np.float32), *(logs for _, logs in taught)]),
        ends_of([len(ids) for ids, _ in taught]),
    )
    return replace(found, notes=Lines(notes.targets, notes.num_source, notes.num_labels, notes.num_encoded, lessons))


def _taught(where: str, row: dict[str, Any], target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and log probabilities [places, LESSON_TOKENS] that a row's teacher expects; none where it has no teacher."""
    teacher = row.get(TEACHER)
    if teacher is None or not len(target):
        return np.zeros((0, LESSON_TOKENS), np.int32), np.zeros((0, LESSON_TOKENS), np.float32)
    wrong = UserError(
        f"{where}: column `{TEACHER}` is {show(teacher)}, not what promptfleet synthesise writes; {AGAIN}"
    )
    try:
        tokens = np.asarray(teacher["tokens"], np.int64)
        ids, logs = np.asarray(teacher["ids"], np.int32), np.asarray(teacher["logs"], np.float32)
    except (TypeError, KeyError, ValueError, OverflowError):
        raise wrong from None
    if (
        ids.shape != (len(tokens), LESSON_TOKENS)
        or logs.shape != ids.shape
        or not (logs <= 1e-3).all()
        or ids.min() < 0
    ):
        raise wrong
    if not np.array_equal(tokens, target):
        raise UserError(
            f"{where}: the teacher has read the answer as {len(tokens)} tokens, which are not the {len(target)} of this backbone's"
            f" tokenizer and data.max_target_length; {AGAIN}"
        )
    return ids, np.minimum(logs, 0)


def collect_labels(task: Task, rows: Iterable[LocatedRow]) -> tuple[str, ...]:
    """One name, for there are no classes. Raises :class:`UserError` where the training rows were not made from the document."""
    assert task.document is not None
    digest = read_document(task.document).digest
    for where, row in rows:
        if row.get(TEACHER) is None:
            raise UserError(
                f"{where}: the row has no `{TEACHER}`, from which a document's prompt learns; make the training rows with"
                " promptfleet synthesise"
            )
        if row.get("document") != digest:
            raise UserError(
                f"{where}: the row was made from another text than task.document={task.document} is now; {AGAIN}"
            )
    return generation.collect_labels(task, ())


def loss(logits: Tensor, targets: Targets) -> Tensor:
    """The divergence from teachers, of [E, 2]: log probabilities, and minus the divergence of each row."""
    return -(logits[:, -1] * targets.weights.to(logits.dtype)).sum()


KIND = replace(
    generation.KIND,
    encode=encode,
    collect_labels=collect_labels,
    loss=loss,
    keep=lambda logits, targets: logits[:, :1],
    notes=Lines,
)
