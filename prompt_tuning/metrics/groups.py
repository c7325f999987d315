"""Metrics of yes/no answers that belong to questions: MultiRC (Khashabi et al. 2018). Both sides: a list of arrays."""

from __future__ import annotations

import numpy as np

from prompt_tuning.metrics.classes import positive_f1


def f1_over_answers(gold: list[np.ndarray], predicted: list[np.ndarray]) -> float:
    """F1a: F1 of "yes" over all answers of all questions."""
    return positive_f1(np.concatenate(gold), np.concatenate(predicted))


def all_answers_right(gold: list[np.ndarray], predicted: list[np.ndarray]) -> float:
    """EM: share of questions whose every answer is right."""
    return float(np.mean([np.array_equal(a, b) for a, b in zip(gold, predicted, strict=True)]))
