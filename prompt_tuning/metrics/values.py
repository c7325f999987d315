"""Metrics of values, numpy arrays [examples]."""

from __future__ import annotations

import numpy as np


def pearson(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Pearson correlation; 0 where either side is constant."""
    from scipy.stats import pearsonr

    return _correlation(pearsonr, gold, predicted)


def spearman(gold: np.ndarray, predicted: np.ndarray) -> float:
    """Spearman rank correlation; 0 where either side is constant."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, gold, predicted)


def _correlation(measure, gold: np.ndarray, predicted: np.ndarray) -> float:  # type: ignore[no-untyped-def]
    if len(gold) < 2 or np.ptp(gold) == 0 or np.ptp(predicted) == 0:
        return 0.0
    value = float(measure(gold, predicted).statistic)
    return value if np.isfinite(value) else 0.0
