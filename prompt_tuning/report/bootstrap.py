"""How sure a difference of two methods' test scores is: a paired bootstrap over examples and seeds.

Each resample draws as many test examples as there are, with replacement and the same ones for all methods (Koehn 2004), and for
each method as many of its seeds as there are (Efron and Tibshirani 1993, chapter 8). Its difference is that of the two means
over the drawn seeds of the metric of the drawn examples; the middle 95 % of all resamples are the interval. So it holds both what
another test set and what other seeds would change; with n seeds the latter is too small by the factor (n - 1) / n in variance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from prompt_tuning.metrics import Metric
from prompt_tuning.metrics.counts import counts

RESAMPLES = 2000
_AT_ONCE = 50
"""Resamples in memory at a time."""

Answers = tuple[Any, Any]
"""Gold and predicted answers of a test split, as metrics take them."""


@dataclass(frozen=True)
class Difference:
    """A method's mean score less another's, and its 95 % interval."""

    mean: float
    low: float
    high: float

    @property
    def is_sure(self) -> bool:
        """Whether all of the interval is on one side of 0."""
        return self.low > 0 or self.high < 0


def resampled_scores(metric: Metric, answers: Answers, resamples: int = RESAMPLES) -> np.ndarray:
    """The metric of resampled examples: float64 [resamples]; answers to equally many examples see the same draws."""
    gold, predicted = answers
    found, summed = [], counts(metric, gold, predicted)
    draws = np.random.default_rng(0)
    for start in range(0, resamples, _AT_ONCE):
        drawn = draws.integers(len(gold), size=(min(_AT_ONCE, resamples - start), len(gold)))
        if summed is None:
            found.append(np.array([metric(_take(gold, own), _take(predicted, own)) for own in drawn]))
            continue
        above, below = np.moveaxis(summed[drawn].sum(axis=1), -1, 0)
        found.append(np.divide(above, below, out=np.zeros(len(above)), where=below > 0))
    return np.concatenate(found)


def difference(
    metric: Metric, first: Sequence[Answers], other: Sequence[Answers], resamples: int = RESAMPLES
) -> Difference:
    """``other``'s mean score less ``first``'s, each with one entry a seed, all of the same examples."""
    means, drawn_means = [], []
    for number, side in enumerate((first, other)):
        scores = np.stack([resampled_scores(metric, answers, resamples) for answers in side], axis=1)
        seeds = np.random.default_rng([1, number]).integers(len(side), size=scores.shape)
        drawn_means.append(np.take_along_axis(scores, seeds, axis=1).mean(axis=1))
        means.append(float(np.mean([metric(*answers) for answers in side])))
    low, high = np.quantile(drawn_means[1] - drawn_means[0], [0.025, 0.975])
    return Difference(means[1] - means[0], float(low), float(high))


def _take(answers: Any, places: np.ndarray) -> Any:
    return answers[places] if isinstance(answers, np.ndarray) else [answers[place] for place in places]
