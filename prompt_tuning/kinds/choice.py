"""Which of several texts fits: one output for each, compared within the example.

The head's bias shifts all choices alike, so its true gradient is zero and it is not trained. A row may have fewer choices
than the most of its task: a stand-in runs in place of each one that is missing and never counts.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow, Row
from prompt_tuning.kinds import Targets, classification
from prompt_tuning.tokens.features import NO_TAG, Features
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.rows import sequences, template_of

ABSENT = 1
"""Tag of the tokens of a choice that is not there."""


def encode(recipe: Recipe, rows: list[LocatedRow]) -> Features:
    """As classification's; the tokens of stand-ins are tagged :data:`ABSENT` where any row has fewer choices."""
    task, encoding, labels = recipe.task, recipe.encoding, recipe.labels
    if encoding.template in task.cloze:
        return classification.encode(recipe, rows)
    build, most = template_of(task, encoding.template), len(labels)
    counts = np.array([len(sequences(task, where, build, row)) for where, row in rows])
    for (where, _), count in zip(rows, counts, strict=True):
        if not 2 <= count <= most:
            raise UserError(f"{where}: {count} choice(s); a row has from 2 to {most} (the task's `most_choices`)")
    if (counts == most).all():
        return classification.encode(recipe, rows)

    def padded(row: Row) -> tuple[Any, ...]:
        found = tuple(build(row))
        return found + tuple((".", "." if found[0][1] is not None else None) for _ in range(most - len(found)))

    name = task.template_name(encoding.template)
    full = replace(task, templates={**task.templates, name: padded})
    features = classification.encode(recipe._replace(task=full), rows)
    wrong = [where for (where, _), count, label in zip(rows, counts, features.labels, strict=True) if label >= count]
    if wrong:
        raise UserError(f"{wrong[0]}: the label names a choice that the row does not have; numbers count from 0")
    absent = (np.arange(most) >= counts[:, None]).reshape(-1)
    tags = np.repeat(np.where(absent, ABSENT, NO_TAG), np.diff(features.offsets)).astype(np.int32)
    return replace(features, tags=tags)


def keep(logits: Tensor, targets: Targets) -> Tensor:
    """Logits [E, C], those of choices that are not there as minus infinity."""
    if targets.rows is None or targets.rows.tags is None:
        return logits
    absent = targets.rows.tags[targets.rows.first_of_row] == ABSENT
    return logits.masked_fill(absent.view(logits.shape), -torch.inf)


KIND = replace(
    classification.KIND,
    encode=encode,
    num_outputs=lambda num_labels: 1,
    loss=lambda logits, targets: classification.loss(keep(logits, targets), targets),
    keep=keep,
    trains_bias=False,
)
