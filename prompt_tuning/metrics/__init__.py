"""Metrics by name: functions of gold and predicted class indices, as fractions of 1.

scikit-learn computes them; a new metric is one entry here.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Share of equal entries."""
    return float(np.mean(gold == predicted))


def macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean over classes of F1, over the classes that occur in gold or prediction."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0.0))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {"accuracy": accuracy, "macro_f1": macro_f1}
