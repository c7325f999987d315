"""Metrics that are one sum over examples divided by another, and what each example adds to the two.

Such a metric of examples drawn again is two sums; any other has to be computed anew each time.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from prompt_tuning.metrics import Metric
from prompt_tuning.metrics.classes import accuracy, positive_f1
from prompt_tuning.metrics.groups import all_answers_right, f1_over_answers
from prompt_tuning.metrics.spans import argument_counts, argument_f1, entity_counts, entity_f1
from prompt_tuning.metrics.texts import exact_match, f1, null_exact_match, null_f1, span_exact_match, span_f1


def counts(metric: Metric, gold: Any, predicted: Any) -> np.ndarray | None:
    """What each example adds to numerator and denominator, float64 [examples, 2]; None where a metric is no such ratio."""
    if metric in _MEANS:
        return np.array([(metric(gold[i : i + 1], predicted[i : i + 1]), 1.0) for i in range(len(gold))])
    return np.array(_SUMS[metric](gold, predicted), float) if metric in _SUMS else None


def _positive(gold: Any, predicted: Any) -> np.ndarray:
    """Twice the right ones, and those of either side; of one example's class or of its group of classes."""
    pairs = [(np.atleast_1d(right) == 1, np.atleast_1d(own) == 1) for right, own in zip(gold, predicted, strict=True)]
    return np.array([(2 * (right & own).sum(), right.sum() + own.sum()) for right, own in pairs])


_MEANS = frozenset([accuracy, all_answers_right, exact_match, f1, span_exact_match, span_f1, null_exact_match, null_f1])
"""The mean over examples of what they would have alone."""

_SUMS: Mapping[Metric, Callable[[Any, Any], Any]] = {
    positive_f1: _positive,
    f1_over_answers: _positive,
    entity_f1: entity_counts,
    argument_f1: argument_counts,
}
