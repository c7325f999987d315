"""Metrics against scikit-learn and by hand, and the scores made of them."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score

from prompt_tuning.fleet.evaluate import score
from prompt_tuning.kinds import find_kind
from prompt_tuning.metrics.classes import accuracy, macro_f1, matthews, positive_f1
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.features import Features

METRICS = {"accuracy": accuracy, "macro_f1": macro_f1}
CB = find_task("cb")


def features_of(labels):
    count = len(labels)
    return Features(np.zeros(count, np.int32), None, np.arange(count + 1), 1, np.array(labels))


GOLD = np.array([0, 0, 0, 1, 1, 2])
PREDICTED = np.array([0, 1, 0, 1, 0, 0])


def test_accuracy_by_hand():
    assert METRICS["accuracy"](GOLD, PREDICTED) == 3 / 6


def test_macro_f1_by_hand():
    """F1 is 2 TP / (2 TP + FP + FN): 4/7, 2/4 and 0, a class without a prediction counting 0."""
    assert METRICS["macro_f1"](GOLD, PREDICTED) == pytest.approx((4 / 7 + 2 / 4 + 0) / 3, abs=1e-12)


def test_a_class_that_occurs_nowhere_does_not_count():
    assert METRICS["macro_f1"](np.array([0, 2]), np.array([0, 2])) == 1.0


@pytest.mark.parametrize("seed", range(5))
def test_metrics_equal_scikit_learn(seed):
    gold, predicted = np.random.default_rng(seed).integers(0, 4, (2, 30))
    assert METRICS["accuracy"](gold, predicted) == pytest.approx(accuracy_score(gold, predicted), abs=1e-12)
    assert METRICS["macro_f1"](gold, predicted) == pytest.approx(f1_score(gold, predicted, average="macro"), abs=1e-12)


def test_metrics_are_plain_floats():
    assert all(type(metric(GOLD, PREDICTED)) is float for metric in METRICS.values())
    assert all(type(metric(GOLD % 2, PREDICTED % 2)) is float for metric in (positive_f1, matthews))


def test_a_score_holds_the_metrics_and_the_mean_cross_entropy():
    logits = np.array([[2.0, 0.0], [0.0, 1.0], [1000.0, 0.0]])
    metrics, loss = score(CB, features_of([0, 0, 1]), logits, CB.labels)
    assert list(metrics) == ["accuracy", "macro_f1"]
    assert metrics["accuracy"] == 1 / 3
    by_hand = [np.log(1 + np.exp(-2)), 1 + np.log(1 + np.exp(-1)), 1000.0]
    assert loss == pytest.approx(np.mean(by_hand), rel=1e-12)


def test_the_majority_class_is_that_of_the_training_split():
    dev = features_of([0, 0, 0, 1])
    constant = find_kind("classification").constant(features_of([1, 1, 0]), dev, 2)
    found, _ = score(CB, dev, constant, CB.labels)
    assert found["accuracy"] == 1 / 4
    assert found["macro_f1"] == pytest.approx((0 + 2 / 5) / 2)
