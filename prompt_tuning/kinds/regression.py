"""A number for each text or text pair, by least squares."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from torch import Tensor

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.kinds import Kind, Targets
from prompt_tuning.messages import show
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features
from prompt_tuning.tokens.recipe import Recipe
from prompt_tuning.tokens.tokenise import encode_texts


def encode(recipe: Recipe, rows: list[LocatedRow]) -> Features:
    """Texts or pairs with a value; NaN where there is none."""
    tokens, types, offsets, per_example, remarks = encode_texts(recipe, rows)
    values = [_value(where, row.get(recipe.task.label_column)) for where, row in rows]
    return Features(tokens, types, offsets, per_example, np.asarray(values, np.float64), remarks=remarks)


def _value(where: str, value: Any) -> float:
    if value is None or value == "":
        return math.nan
    try:
        number = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise UserError(f"{where}: label {show(value)} is not a finite number")
    return number


def loss(logits: Tensor, targets: Targets) -> Tensor:
    """Squared error."""
    return ((logits[:, 0] - targets.labels.to(logits.dtype)).square() * targets.weights.to(logits.dtype)).sum()


def answers(task: Task, features: Features, outputs: np.ndarray, labels: tuple[str, ...]) -> tuple[Any, Any]:
    """Values [E]."""
    return features.labels, outputs[:, 0]


KIND = Kind(
    encode=encode,
    collect_labels=lambda task, rows: ("value",),
    num_outputs=lambda num_labels: 1,
    loss=loss,
    answers=answers,
    mean_loss=lambda features, outputs: float(np.square(outputs[:, 0] - features.labels).mean()),
    constant=lambda train, features, num_labels: np.full((len(features), 1), train.labels.mean()),
    describe=lambda task, features, outputs, labels: [{"value": value} for value in outputs[:, 0].tolist()],
)
