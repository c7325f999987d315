"""Metrics of written texts against their libraries and against numbers worked by hand."""

from __future__ import annotations

import builtins
import math

import pytest

from prompt_tuning.errors import UserError
from prompt_tuning.metrics.generation import METRICS, Written, mean_loss, perplexity
from prompt_tuning.metrics.texts import f1 as squad_f1

ENGLISH = ["The cat sat on the mat .", "Open from nine to five on Mondays.", "closed"]
OTHERS = [
    ["A cat was sitting on the mat.", "The cat sat on a mat."],
    ["It opens at nine on Mondays and closes at five."],
    ["closed"],
]
CHINESE = ["这件衬衫的面料很舒服。", "经典的V领设计"]
CHINESE_GOLD = [["这件衬衫面料舒服，透气。"], ["经典V领的设计，显瘦"]]


def written(texts):
    return [Written(text, -1.0, 1) for text in texts]


def score(name, gold, texts):
    return METRICS[name](gold, written(texts))


def streams(gold):
    return [[some[i] if i < len(some) else None for some in gold] for i in range(max(map(len, gold)))]


@pytest.mark.parametrize(
    ("gold", "texts", "tokenize"), [(OTHERS, ENGLISH, "13a"), (CHINESE_GOLD, CHINESE, "zh")], ids=["en", "zh"]
)
def test_bleu_and_chrf_are_sacrebleus(gold, texts, tokenize):
    sacrebleu = pytest.importorskip("sacrebleu")
    bleu = sacrebleu.corpus_bleu(texts, streams(gold), tokenize=tokenize).score
    assert score("bleu", gold, texts) == pytest.approx(bleu / 100, abs=1e-12) and bleu > 5
    assert score("chrf", gold, texts) == pytest.approx(
        sacrebleu.corpus_chrf(texts, streams(gold)).score / 100, abs=1e-12
    )


def test_bleu_by_hand():
    """Precisions 5/6, 3/5, 1/4 and, smoothed, 1/(2 x 3) of "the cat sat on a mat" against "the cat sat down on a mat"."""
    pytest.importorskip("sacrebleu")
    gold, own = "the cat sat down on a mat", "the cat sat on a mat"
    counts = [(6, 6), (4, 5), (2, 4), (0.5, 3)]
    precision = math.prod(right / count for right, count in counts) ** 0.25
    assert score("bleu", [[gold]], [own]) == pytest.approx(math.exp(1 - 7 / 6) * precision, abs=1e-12)


@pytest.mark.parametrize("kind", ["rouge1", "rouge2", "rougeL"])
def test_rouge_is_rouge_scores(kind):
    scorer = pytest.importorskip("rouge_score.rouge_scorer").RougeScorer([kind], use_stemmer=True)
    wanted = [scorer.score_multi(some, own)[kind].fmeasure for some, own in zip(OTHERS, ENGLISH, strict=True)]
    name = {"rougeL": "rouge_l"}.get(kind, kind)
    assert score(name, OTHERS, ENGLISH) == pytest.approx(sum(wanted) / 3, abs=1e-12) and 0.2 < sum(wanted) / 3 < 1


def test_rouge_of_chinese_is_by_character():
    """经 典 领 设 计 against 经 典 的 设 计: 4 of 5 and 5, pairs 2 of 4 and 4 (经典, 设计), 4 in order."""
    pytest.importorskip("rouge_score")
    gold, own = [["经典的设计"]], ["经典领设计"]
    assert [score(name, gold, own) for name in ("rouge1", "rouge2", "rouge_l")] == pytest.approx([0.8, 0.5, 0.8])
    assert score("rouge1", [["для котов"]], ["для собак"]) == pytest.approx(0.5), "Cyrillic words count too"


def test_f1_is_squads_for_words_and_by_character_for_chinese():
    assert score("f1", OTHERS, ENGLISH) == pytest.approx(squad_f1(OTHERS, ENGLISH))
    assert score("f1", [["经典的设计"]], ["经典领设计"]) == pytest.approx(0.8)
    assert squad_f1([["经典的设计"]], ["经典领设计"]) == 0


def test_exact_match_looks_at_all_but_blanks():
    assert score("exact_match", [["a b"], ["a"], ["x", "A"]], [" a  b ", "A", "A"]) == pytest.approx(2 / 3)


@pytest.mark.parametrize("name", sorted(set(METRICS) - {"perplexity", "likelihood"}))
def test_empty_texts_and_empty_references(name):
    for package in ("sacrebleu", "rouge_score"):
        pytest.importorskip(package)
    assert score(name, [["some words here"]], [""]) == 0
    assert score(name, [[""]], ["some words here"]) == 0
    assert score(name, [["words"], [""]], ["", "words"]) == 0
    assert 0 <= score(name, [[]], ["words"]) <= 1
    assert score(name, [], []) == 0
    both = [["one two three four five"], [""]]
    assert 0 < score(name, both, ["one two three four five", ""]) <= 1 + 1e-12
    assert score(name, both[:1], ["one two three four five"]) == pytest.approx(1)


def test_what_was_not_written_counts_for_perplexity_alone():
    own = [Written("right", -3.0, 2), Written(None, -1.0, 2)]
    assert METRICS["exact_match"]([["right"], ["right"]], own) == 1
    assert mean_loss(own) == 1 and perplexity([], own) == pytest.approx(math.e)
    assert math.isnan(perplexity([], [Written("x", 0.0, 0)]))
    assert perplexity([], [Written("x", -1e6, 1)]) == math.inf


def test_missing_packages_are_named(monkeypatch):
    real = builtins.__import__

    def without(name, *given, **named):
        if name.startswith(("sacrebleu", "rouge_score")):
            raise ImportError(name)
        return real(name, *given, **named)

    monkeypatch.setattr("importlib.import_module", lambda name: without(name))
    with pytest.raises(UserError, match=r"pip install 'promptfleet\[generation\]'"):
        score("rouge1", [["a"]], ["a"])
