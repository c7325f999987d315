"""Metrics of answer texts: SQuAD 1.1 and 2.0 (Rajpurkar et al. 2016, 2018) and ReCoRD (Zhang et al. 2018).

Gold: a list of acceptable texts a question, empty where it has no answer.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

_PUNCTUATION = str.maketrans("", "", string.punctuation)
_ARTICLES = re.compile(r"\b(a|an|the)\b")

Compare = Callable[[str, str], float]


@dataclass(frozen=True)
class SpanAnswer:
    """The best text of a context, its score, and by how much the score of "no answer" exceeds it."""

    text: str
    score: float
    null_odds: float


def normalise(text: str) -> str:
    """Lower case without punctuation, articles and double spaces, as the official scorers compare texts."""
    return " ".join(_ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split())


def same(gold: str, predicted: str) -> float:
    """1 where the normalised texts are equal, else 0."""
    return float(normalise(gold) == normalise(predicted))


def overlap(gold: str, predicted: str) -> float:
    """F1 of the normalised words; 0 where nothing is shared, as in two texts without words."""
    ours, theirs = normalise(gold).split(), normalise(predicted).split()
    shared = sum((Counter(ours) & Counter(theirs)).values())
    return 2 * shared / (len(ours) + len(theirs)) if shared else 0.0


def exact_match(gold: list[list[str]], predicted: list[str]) -> float:
    """Share of questions whose text equals one of the gold texts."""
    return _mean([_best(same, texts, text) for texts, text in zip(gold, predicted, strict=True)])


def f1(gold: list[list[str]], predicted: list[str]) -> float:
    """Mean over questions of the best word F1 with a gold text."""
    return _mean([_best(overlap, texts, text) for texts, text in zip(gold, predicted, strict=True)])


def _mean(values: list[float]) -> float:
    return float(np.mean(values))


def _best(compare: Compare, gold: list[str], predicted: str) -> float:
    return max((compare(text, predicted) for text in gold), default=0.0)


def _best_or_null(compare: Compare, gold: list[str], predicted: str) -> float:
    """As :func:`_best`, where gold texts without words do not count, and where none is left nothing is the right answer."""
    texts = [text for text in gold if normalise(text)]
    return _best(compare, texts, predicted) if texts else float(not normalise(predicted))


def span_exact_match(gold: list[list[str]], predicted: list[SpanAnswer]) -> float:
    """:func:`exact_match` where every question is answered (SQuAD 1.1)."""
    return exact_match(gold, [answer.text for answer in predicted])


def span_f1(gold: list[list[str]], predicted: list[SpanAnswer]) -> float:
    """:func:`f1` where every question is answered (SQuAD 1.1)."""
    return f1(gold, [answer.text for answer in predicted])


def null_exact_match(gold: list[list[str]], predicted: list[SpanAnswer]) -> float:
    """:func:`exact_match` with no answer where its score is the higher one (SQuAD 2.0)."""
    return _mean([_best_or_null(same, texts, _or_null(answer)) for texts, answer in zip(gold, predicted, strict=True)])


def null_f1(gold: list[list[str]], predicted: list[SpanAnswer]) -> float:
    """:func:`f1` with no answer where its score is the higher one (SQuAD 2.0)."""
    return _mean(
        [_best_or_null(overlap, texts, _or_null(answer)) for texts, answer in zip(gold, predicted, strict=True)]
    )


def _or_null(answer: SpanAnswer) -> str:
    return "" if answer.null_odds > 0 else answer.text


def best_exact_match(gold: list[list[str]], predicted: list[SpanAnswer]) -> float:
    """:func:`exact_match` at the best threshold of the null odds, chosen on the same questions (``best_exact``)."""
    return _at_best_threshold(same, gold, predicted)


def best_f1(gold: list[list[str]], predicted: list[SpanAnswer]) -> float:
    """:func:`f1` at the best threshold of the null odds, chosen on the same questions (``best_f1``)."""
    return _at_best_threshold(overlap, gold, predicted)


def _at_best_threshold(compare: Compare, gold: list[list[str]], predicted: list[SpanAnswer]) -> float:
    """Best mean over all thresholds: questions whose odds are at most the threshold are answered, the others are not."""
    odds = np.array([answer.null_odds for answer in predicted])
    answered = np.array(
        [_best_or_null(compare, texts, answer.text) for texts, answer in zip(gold, predicted, strict=True)]
    )
    silent = np.array([_best_or_null(compare, texts, "") for texts in gold])
    order = np.argsort(odds, kind="stable")
    totals = silent.sum() + np.concatenate([[0.0], np.cumsum((answered - silent)[order])])
    # A threshold cannot part equal odds.
    ends = np.concatenate([[True], np.append(np.diff(odds[order]) > 0, True)])
    return float(totals[ends].max() / len(gold))
