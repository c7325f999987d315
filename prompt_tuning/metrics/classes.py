"""Metrics of class indices, numpy arrays [examples]."""

from __future__ import annotations

import numpy as np


def accuracy(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Share of equal entries."""
    return float(np.mean(gold == predicted))


def macro_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Unweighted mean over classes of F1, over the classes that occur in gold or prediction."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, average="macro", zero_division=0.0))


def positive_f1(gold: np.ndarray, predicted: np.ndarray) -> float:
    """F1 of class 1 of two."""
    from sklearn.metrics import f1_score

    return float(f1_score(gold, predicted, pos_label=1, average="binary", zero_division=0.0))


def matthews(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Matthews correlation; 0 where either side has one class only."""
    from sklearn.metrics import matthews_corrcoef

    return float(matthews_corrcoef(gold, predicted))
