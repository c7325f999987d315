"""Metrics of answers, values, groups and spans against hand-worked cases, brute force and other libraries."""

from __future__ import annotations

import itertools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prompt_tuning.metrics.classes import matthews, positive_f1
from prompt_tuning.metrics.groups import all_answers_right, f1_over_answers
from prompt_tuning.metrics.spans import argument_f1, entity_f1, strict_entity_f1
from prompt_tuning.metrics.texts import (
    SpanAnswer,
    best_exact_match,
    best_f1,
    exact_match,
    f1,
    normalise,
    null_exact_match,
    null_f1,
    overlap,
    span_f1,
)
from prompt_tuning.metrics.values import pearson, spearman


def test_texts_are_compared_without_case_articles_and_punctuation():
    assert normalise("The  Quick, brown-fox's; an A-Team!") == "quick brownfoxs ateam"
    assert exact_match([["The cat."], ["dog"]], ["cat", "the Dog!"]) == 1.0
    assert overlap("a b c", "b c d") == pytest.approx(4 / 5)  # the article goes: two shared of two and three words
    assert overlap("x x y", "x y y") == pytest.approx(2 / 3)
    assert overlap("the", "a") == 0.0, "SQuAD 1.1: nothing shared is nothing"


def test_the_best_of_several_gold_texts_counts():
    assert f1([["new york city", "york"]], ["York"]) == 1.0
    assert f1([["new york city", "paris"]], ["new york"]) == pytest.approx(0.8)


def answer(text, odds):
    return SpanAnswer(text, 0.0, odds)


# Three questions with answers, two without; "no answer" wins where its odds are positive.
GOLD = [["red car"], ["blue"], ["green tea"], [], ["the"]]
PREDICTED = [answer("red car", -2.0), answer("blue", 1.0), answer("green", -1.0), answer("x", 2.0), answer("y", -0.5)]


def test_squad2_by_hand():
    """At 0: right, silent (wrong), F1 2/3, silent (right), answered (wrong; gold without words is no answer)."""
    assert null_exact_match(GOLD, PREDICTED) == pytest.approx(2 / 5)
    assert null_f1(GOLD, PREDICTED) == pytest.approx((1 + 0 + 2 / 3 + 1 + 0) / 5)
    # Best for EM: answer only odds <= -2 (1 right, 2 silent right), or <= 1 but not 2 (2 right, 1 silent right): 3 of 5.
    assert best_exact_match(GOLD, PREDICTED) == pytest.approx(3 / 5)
    # Best for F1: answer up to -1 (1 + 2/3 + 2 silent).
    assert best_f1(GOLD, PREDICTED) == pytest.approx((1 + 2 / 3 + 2) / 5)
    assert span_f1(GOLD[:3], PREDICTED[:3]) == pytest.approx((1 + 1 + 2 / 3) / 3)


@settings(max_examples=100, deadline=None)
@given(
    questions=st.lists(
        st.tuples(
            st.booleans(), st.sampled_from(["a1", "b1", "a1 b1"]), st.sampled_from(["a1", "b1", ""]), st.integers(-3, 3)
        ),
        min_size=1,
        max_size=8,
    )
)
def test_the_best_threshold_is_the_best_of_all(questions):
    gold = [[text] if has_answer else [] for has_answer, text, _, _ in questions]
    predicted = [answer(text, float(odds)) for _, _, text, odds in questions]
    for best, plain in ((best_exact_match, null_exact_match), (best_f1, null_f1)):
        every = []
        for threshold in (-4, *range(-3, 4)):
            every.append(plain(gold, [answer(p.text, p.null_odds - threshold) for p in predicted]))
        assert best(gold, predicted) == pytest.approx(max(every), abs=1e-12)


def test_multirc_by_hand():
    gold = [np.array([1, 0, 1]), np.array([0, 1])]
    predicted = [np.array([1, 0, 0]), np.array([0, 1])]
    assert all_answers_right(gold, predicted) == 0.5
    assert f1_over_answers(gold, predicted) == pytest.approx(2 * 2 / (2 * 2 + 0 + 1))


@pytest.mark.parametrize("seed", range(5))
def test_classes_and_values_equal_their_formulas(seed):
    generator = np.random.default_rng(seed)
    gold, found = generator.integers(0, 2, (2, 40))
    tp, fp, fn, tn = ((gold == a) & (found == b) for a, b in ((1, 1), (0, 1), (1, 0), (0, 0)))
    tp, fp, fn, tn = (int(part.sum()) for part in (tp, fp, fn, tn))
    assert positive_f1(gold, found) == pytest.approx(2 * tp / (2 * tp + fp + fn))
    bottom = np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)))
    assert matthews(gold, found) == pytest.approx((tp * tn - fp * fn) / bottom)
    x, y = generator.normal(size=(2, 30))
    x[3] = x[4]
    centred = (x - x.mean()) @ (y - y.mean())
    assert pearson(x, y) == pytest.approx(centred / np.sqrt(((x - x.mean()) ** 2).sum() * ((y - y.mean()) ** 2).sum()))
    ranks = [[np.mean([b <= a for b in v]) + np.mean([b < a for b in v]) for a in v] for v in (x, y)]
    assert spearman(x, y) == pytest.approx(np.corrcoef(ranks)[0, 1])


def test_an_undefined_value_is_zero():
    same = np.ones(4)
    assert pearson(np.arange(4.0), same) == spearman(same, np.arange(4.0)) == 0.0
    assert matthews(np.ones(3, int), np.array([0, 1, 1])) == 0.0
    assert entity_f1([["O"]], [["O"]]) == argument_f1([["O"]], [["B-V"]]) == 0.0


def chunks(tags, is_strict):
    """Spans of one sentence read word by word; strictly, only what starts with B counts."""
    found, current = set(), None
    for i, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        if current and not (prefix == "I" and name == current[0]):
            found.add((*current, i))
            current = None
        if prefix == "B" or (prefix == "I" and current is None and not is_strict):
            current = (name, i)
    return found


@pytest.mark.parametrize("seed", range(8))
def test_entity_f1_equals_a_count_of_spans(seed):
    generator = random.Random(seed)
    tags = ["O", "O", "B-A", "I-A", "B-B", "I-B"]
    gold, found = ([[generator.choice(tags) for _ in range(size)] for size in (1, 4, 9, 12, 30)] for _ in range(2))
    for metric, is_strict in ((entity_f1, False), (strict_entity_f1, True)):
        pairs = [(chunks(a, is_strict), chunks(b, is_strict)) for a, b in zip(gold, found, strict=True)]
        right = sum(len(a & b) for a, b in pairs)
        total = sum(len(a) + len(b) for a, b in pairs)
        assert metric(gold, found) == pytest.approx(2 * right / total, abs=1e-12)


def test_the_verb_does_not_count_among_arguments():
    gold = [["B-A0", "B-V", "B-A1", "I-A1"]]
    found = [["B-A0", "B-V", "O", "B-A1"]]
    assert entity_f1(gold, found) == pytest.approx(2 * 2 / (3 + 3))
    assert argument_f1(gold, found) == pytest.approx(2 * 1 / (2 + 2))


def test_an_argument_in_pieces_is_one():
    gold = [["B-A1", "O", "B-V", "B-C-A1"]]
    for found, expected in (
        (["B-A1", "O", "B-V", "B-C-A1"], 1.0),
        (["B-A1", "O", "B-V", "O"], 0.0),
        (["B-A1", "O", "B-V", "B-A1"], 0.0),
    ):
        assert argument_f1(gold, [found]) == expected
    assert argument_f1([["B-V", "B-C-V"]], [["B-V", "O"]]) == 0.0, "nor do the verb's own pieces"


def test_brute_force_of_small_propositions():
    """All pairs of three words under four tags: symmetric, 1 only for the same arguments."""
    every = [list(tags) for tags in itertools.product(["O", "B-A0", "B-C-A0", "B-V"], repeat=3)]
    for gold, found in itertools.product(every, every):
        value = argument_f1([gold], [found])
        assert value == argument_f1([found], [gold])
        assert gold != found or value in (0.0, 1.0)
