"""Answers kept beside results, sums of which metrics are made, and the bootstrap over them."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import bootstrap

from launcher import run as worker
from prompt_tuning.errors import UserError
from prompt_tuning.metrics.classes import accuracy, macro_f1, positive_f1
from prompt_tuning.metrics.counts import counts
from prompt_tuning.metrics.groups import all_answers_right, f1_over_answers
from prompt_tuning.metrics.spans import argument_f1, entity_f1
from prompt_tuning.metrics.texts import SpanAnswer, exact_match, null_f1, span_exact_match, span_f1
from prompt_tuning.report.answers import answers_file, read_answers, write_answers
from prompt_tuning.report.bootstrap import difference, resampled_scores
from prompt_tuning.tasks.find import find_task
from tests.support.tiny import make_backbone, make_copa, make_questions, make_tags, make_texts, make_values, run_json

RNG = np.random.default_rng(3)
CLASSES = (RNG.integers(2, size=40), RNG.integers(2, size=40))
GROUPS = tuple([RNG.integers(2, size=1 + i % 4) for i in range(12)] for _ in range(2))
TAGS = tuple([[str(t) for t in RNG.choice(["O", "B-a", "I-a", "B-V", "C-a"], 6)] for _ in range(15)] for _ in range(2))
TEXTS = ([["a b"], ["c", "d e"], []] * 5, ["a b", "d", ""] * 4 + ["b", "d e", "x"])
SPANS = (TEXTS[0], [SpanAnswer(text, 1.0, i - 7.0) for i, text in enumerate(TEXTS[1])])


@pytest.mark.parametrize(
    "metric, answers",
    [
        (accuracy, CLASSES),
        (positive_f1, CLASSES),
        (f1_over_answers, GROUPS),
        (all_answers_right, GROUPS),
        (entity_f1, TAGS),
        (argument_f1, TAGS),
        (exact_match, TEXTS),
        (span_f1, SPANS),
        (span_exact_match, SPANS),
        (null_f1, SPANS),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_sums_over_drawn_examples_are_the_metric_of_them(metric, answers):
    summed = counts(metric, *answers)
    for places in (range(len(answers[0])), [0, 0, 3, 9, 9, 9], [2]):
        drawn = [side[list(places)] if isinstance(side, np.ndarray) else [side[i] for i in places] for side in answers]
        above, below = summed[list(places)].sum(axis=0)
        assert abs((above / below if below else 0.0) - metric(*drawn)) < 1e-12


def test_a_metric_that_is_no_ratio_is_computed_anew():
    assert counts(macro_f1, *CLASSES) is None
    drawn = np.random.default_rng(0).integers(40, size=(3, 40))
    expected = [macro_f1(CLASSES[0][own], CLASSES[1][own]) for own in drawn]
    assert np.array_equal(resampled_scores(macro_f1, CLASSES, 3), expected)


def test_the_interval_of_one_seed_is_scipys_paired_one():
    gold, first = CLASSES
    other = np.where(np.arange(40) % 3 > 0, gold, first)
    right = [(side == gold).astype(float) for side in (first, other)]
    found = difference(accuracy, [(gold, first)], [(gold, other)], 20_000)
    theirs = bootstrap(
        right, lambda a, b, axis: b.mean(axis) - a.mean(axis), paired=True, vectorized=True, method="percentile",
        n_resamples=20_000, rng=np.random.default_rng(5),
    ).confidence_interval  # fmt: skip
    assert abs(found.mean - (right[1].mean() - right[0].mean())) < 1e-12
    assert abs(found.low - theirs.low) <= 0.026 and abs(found.high - theirs.high) <= 0.026  # one example of 40
    assert found.is_sure


def test_examples_are_the_same_for_both_sides():
    """Sides that answer alike never differ, whichever examples are drawn."""
    found = difference(accuracy, [CLASSES], [CLASSES], 200)
    assert (found.mean, found.low, found.high) == (0, 0, 0) and not found.is_sure


def test_seeds_are_drawn_on_each_side():
    """All examples alike leave the seeds alone: of right and wrong seeds the drawn means are 0, 1/2 and 1 (1/4, 1/2, 1/4)."""
    gold = np.ones(10, int)
    right, wrong = (gold, gold), (gold, 1 - gold)
    found = difference(accuracy, [wrong, wrong], [right, wrong], 4000)
    assert (found.mean, found.low, found.high) == (0.5, 0, 1)
    one_sided = difference(accuracy, [wrong, wrong], [right, right], 4000)
    assert (one_sided.mean, one_sided.low, one_sided.high) == (1, 1, 1)


def test_a_hand_worked_interval():
    """Two examples, one of them won: draws win 0, 1/2 or all with chances 1/4, 1/2 and 1/4."""
    gold = np.array([1, 1])
    scores = resampled_scores(accuracy, (gold, np.array([1, 0])), 8000)
    assert set(scores) == {0, 0.5, 1} and abs((scores == 0.5).mean() - 0.5) < 0.03
    found = difference(accuracy, [(gold, np.array([0, 0]))], [(gold, np.array([1, 0]))], 8000)
    assert (found.mean, found.low, found.high) == (0.5, 0, 1)


@pytest.mark.parametrize("answers", [CLASSES, GROUPS, TAGS, TEXTS, SPANS, (np.array([0.5, 1.5]), np.array([1.0, 2.0]))])
def test_answers_are_read_as_they_were_written(tmp_path, answers):
    file = answers_file(tmp_path, "test/de")
    write_answers(file, *answers)
    for found, expected in zip(read_answers(file), answers, strict=True):
        assert type(found) is type(expected)
        assert all(
            np.array_equal(a, b) if isinstance(b, np.ndarray) else a == b for a, b in zip(found, expected, strict=True)
        )


def test_infinite_scores_are_kept_as_the_largest_numbers(tmp_path):
    write_answers(tmp_path / "a.jsonl", [[]], [SpanAnswer("", float("-inf"), float("inf"))])
    json.loads((tmp_path / "a.jsonl").read_text(), parse_constant=pytest.fail)
    assert read_answers(tmp_path / "a.jsonl")[1] == [SpanAnswer("", -1e308, 1e308)]


def test_damaged_answers_are_named(tmp_path):
    (tmp_path / "a.jsonl").write_text("{")
    with pytest.raises(UserError, match=r"a\.jsonl: the answers of a test split are missing or damaged"):
        read_answers(tmp_path / "a.jsonl")


TASKS = {
    "classification": (make_texts, {"kind": "classification", "name": "own"}),
    "tagging": (make_tags, {"kind": "tagging", "name": "own"}),
    "span": (make_questions, {"kind": "span", "name": "own", "has_null": True}),
    "regression": (make_values, {"kind": "regression", "name": "own"}),
    "choice": (make_copa, "copa"),
}


@pytest.mark.parametrize("kind", TASKS)
def test_kept_answers_have_the_score_of_the_result(tmp_path, kind):
    make, task = TASKS[kind]
    raw = run_json(make_backbone(tmp_path / "backbone", "bert"), make(tmp_path / "data"), train={"max_steps": 2})
    raw |= {"task": task, "data": {**raw["data"], "held_out": 0.3, "stride": 4}}
    (tmp_path / "run.json").write_text(json.dumps(raw))
    assert worker.main(["--config", str(tmp_path / "run.json"), "--output", str(tmp_path / "out")]) == 0
    (member,) = (tmp_path / "out" / "members").iterdir()
    result = json.loads((member / "result.json").read_text())
    assert json.loads((tmp_path / "out" / "result.json").read_text())["peak_bytes"] > 10**7
    metrics = find_task(task).for_labels(()).metrics
    for split in [split for split in ("test", "test/dev") if result.get(split)]:
        gold, predicted = read_answers(answers_file(member, split))
        for name, value in result[split].items():
            assert metrics[name](gold, predicted) == value
    assert result["test/dev"]
