"""Tagging, spans and values: tokens, losses and answers against plain loops and the tokenizers' own word numbers."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from prompt_tuning.errors import UserError
from prompt_tuning.forward.batch import Items, Pool
from prompt_tuning.forward.layout import lay_out
from prompt_tuning.forward.loop import targets
from prompt_tuning.kinds import find_kind, span
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.packed import rows_of_texts
from tests.support.rows import encode
from tests.support.tiny import make_tokenizer

WORDS = make_tokenizer()
TAGS = find_task({"kind": "tagging"})
SPANS = find_task({"kind": "span", "has_null": True})
VALUES = find_task({"kind": "regression"})
SRL = find_task("conll05")
LABELS = ("O", "B-X", "I-X")


def byte_level(add_prefix_space, trim_offsets):
    """RoBERTa's manner of writing words: a token may begin with the space before it. Pairs of letters are tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "a"), ("a", "b"), ("Ġa", "b"), ("Ġ", "c")]
    vocabulary = {token: i for i, token in enumerate(["<s>", "</s>", "<pad>", *alphabet, "Ġa", "ab", "Ġab", "Ġc"])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.RobertaProcessing(
        ("</s>", 1), ("<s>", 0), trim_offsets=trim_offsets, add_prefix_space=add_prefix_space
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def locate(rows):
    return [(f"row {i}", row) for i, row in enumerate(rows)]


WORD = st.text(st.sampled_from("abcé漢."), min_size=1, max_size=5)


@settings(max_examples=80, deadline=None)
@given(words=st.lists(WORD, min_size=1, max_size=6), max_length=st.sampled_from([6, 9, 40]), trim=st.booleans())
def test_words_of_byte_level_tokenizers_equal_their_own_word_numbers(words, max_length, trim):
    """The oracle splits words itself and writes a space before each, which the tokenizer under test does not."""
    features = encode(TAGS, byte_level(False, trim), locate([{"words": words}]), Encoding(max_length), LABELS)
    oracle = byte_level(True, True)(words, is_split_into_words=True, truncation=True, max_length=max_length)
    assert features.tokens.tolist() == oracle["input_ids"]
    numbers = oracle.word_ids(0)
    expected = [numbers.index(i) if i in numbers else -1 for i in range(len(words))]
    assert features.notes.first_tokens[0].tolist() == expected


def test_a_predicate_stands_behind_the_words_and_is_not_asked():
    rows = [{"words": ["w1", "w2"], "predicate": ["w2"], "tags": ["O", "B-X"]}]
    features = encode(SRL, WORDS, locate(rows), Encoding(16), LABELS)
    assert WORDS.convert_ids_to_tokens(features.tokens) == ["[CLS]", "w1", "w2", "[SEP]", "w2", "[SEP]"]
    assert features.tags.tolist() == [-100, 0, 1, -100, -100, -100]
    assert features.token_types.tolist() == [0, 0, 0, 0, 1, 1]


def test_words_beyond_the_limit_are_answered_and_counted(caplog):
    rows = [{"words": [f"w{i}" for i in range(9)], "tags": ["B-X"] + ["O"] * 7 + ["B-X"]}]
    caplog.set_level("INFO")
    features = encode(TAGS, WORDS, locate(rows), Encoding(6), LABELS)
    assert features.remarks["%d of %d words have no token within data.max_length=6; they are answered 'O'"] == (5, 9)
    outputs = np.stack([features.tags, np.zeros(len(features.tags))], axis=1)
    gold, predicted = find_kind("tagging").answers(TAGS, features, outputs, LABELS)
    assert predicted == [["B-X"] + ["O"] * 8] and gold[0][-1] == "B-X"
    assert TAGS.metrics["f1"](gold, predicted) == pytest.approx(2 / 3)


def batch_of(features, examples=None):
    pool = Pool([features])
    chosen = np.arange(len(features)) if examples is None else np.array(examples)
    weight = 1 / features.terms(chosen)
    return lay_out(pool, Items.of([(0, chosen, weight)]), 0, torch.device("cpu"))


def test_the_loss_of_tags_is_the_mean_over_labelled_tokens():
    rows = [{"words": ["w1"] * n, "tags": (["B-X", "I-X", "O"] * 3)[:n]} for n in (1, 3, 7)]
    features = encode(TAGS, WORDS, locate(rows), Encoding(20), LABELS)
    batch = batch_of(features)
    logits = torch.randn(len(batch.tokens), 3, dtype=torch.float64)
    by_hand = []
    for token, tag in enumerate(batch.tags.tolist()):
        if tag >= 0:
            by_hand.append(-torch.log_softmax(logits[token], -1)[tag].item())
    assert len(by_hand) == 11
    kind = find_kind("tagging")
    assert kind.loss(logits, targets(batch, 0)).item() == pytest.approx(np.mean(by_hand), abs=1e-12)
    kept = kind.keep(logits, targets(batch, 0))
    assert torch.equal(kept[..., 0], logits.argmax(-1).double())
    assert kept[..., 1].sum().item() == pytest.approx(sum(by_hand), abs=1e-12)


def question(context, answer=None, start=None):
    if answer is not None and start is None:
        start = context.index(answer)
    return {
        "question": "w1 w2",
        "context": context,
        "answers": [] if answer is None else [{"text": answer, "answer_start": start}],
    }


CONTEXT = " ".join(f"w{i}" for i in range(10, 35))


@pytest.mark.parametrize("stride", [0, 1, 5])
def test_windows_cover_the_context_and_share_the_stride(stride):
    features = encode(SPANS, WORDS, locate([question(CONTEXT, "w20 w21")]), Encoding(15, stride=stride), ())
    windows = [features.tokens[a:b] for a, b in itertools.pairwise(features.offsets)]
    texts = [WORDS.convert_ids_to_tokens(window) for window in windows]
    bodies = [text[4:-1] for text in texts]
    assert all(text[:4] == ["[CLS]", "w1", "w2", "[SEP]"] and text[-1] == "[SEP]" and len(text) <= 15 for text in texts)
    joined = bodies[0] + [word for body in bodies[1:] for word in body[stride:]]
    assert " ".join(joined) == CONTEXT
    assert all(a[len(a) - stride :] == b[:stride] for a, b in itertools.pairwise(bodies))
    for body, (a, b) in zip(bodies, itertools.pairwise(features.offsets), strict=True):
        tags = features.tags[a:b]
        first, last = int((tags & 1).argmax()), int((tags & 2).argmax())
        holds = "w20" in body and "w21" in body
        assert (first, last) == ((4 + body.index("w20"), 4 + body.index("w21")) if holds else (0, 0))


def test_an_answer_inside_tokens_is_marked_by_the_tokens_that_hold_it():
    tokenizer = byte_level(False, True)
    row = {"question": "c", "context": "ab ab éa c", "answers": [{"text": "b é", "answer_start": 4}]}
    features = encode(SPANS, tokenizer, locate([row]), Encoding(40, stride=2), ())
    marked = features.notes.characters[(features.tags & 3) > 0]
    assert marked[0, 0] <= 4 and marked[-1, 1] >= 7 and (features.tags[0] & 3) == 0


def test_questions_that_are_too_long_are_cut_and_counted(caplog):
    caplog.set_level("INFO")
    row = {**question(CONTEXT, "w30"), "question": " ".join(["w3"] * 40)}
    features = encode(SPANS, WORDS, locate([row]), Encoding(21, stride=2), ())
    assert features.remarks == {"%d of %d questions are cut to 9 tokens": (1, 1)}
    assert max(np.diff(features.offsets)) <= 21
    with pytest.raises(UserError, match=r"data\.stride=8 leaves no new text in a window"):
        encode(SPANS, WORDS, locate([row]), Encoding(21, stride=8), ())


def test_the_loss_of_spans_keeps_to_each_row():
    rows = [question("w3 w4 w5", "w4"), question("w3", None), question(CONTEXT, "w12 w13")]
    features = encode(SPANS, WORDS, locate(rows), Encoding(20, stride=3), ())
    batch = batch_of(features)
    packed = torch.randn(len(batch.tokens), 2, dtype=torch.float64) * 50
    logits, tags = rows_of_texts(packed, batch), rows_of_texts(batch.tags, batch)
    by_hand = []
    for row, length in enumerate(batch.lengths.tolist()):
        for place, bit in ((0, 1), (1, 2)):
            gold = (tags[row, :length] & bit).argmax()
            by_hand.append(-torch.log_softmax(logits[row, :length, place], -1)[gold].item())
    kind = find_kind("span")
    assert kind.loss(packed, targets(batch, 0)).item() == pytest.approx(np.mean(by_hand), abs=1e-12)
    order = torch.argsort(batch.examples)
    outputs = torch.cat([logits[row, : batch.lengths[row]] for row in order.tolist()]).numpy()
    assert kind.mean_loss(features, outputs) == pytest.approx(np.mean(by_hand), abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_the_best_answer_is_the_best_of_all_spans_over_all_windows(seed, monkeypatch):
    monkeypatch.setattr(span, "MAX_ANSWER_TOKENS", 4)
    rows = [question(CONTEXT, "w20"), question("w3 w4", None), question(" ".join(["w3", "w4"] * 9), "w4", 3)]
    features = encode(SPANS, WORDS, locate(rows), Encoding(14, stride=3), ())
    outputs = np.random.default_rng(seed).normal(size=(len(features.tokens), 2))
    _, predicted = find_kind("span").answers(SPANS, features, outputs, ())
    notes = features.notes
    for number, found in enumerate(predicted):
        best, null = (-math.inf, ""), math.inf
        for window in range(notes.first_window[number], notes.first_window[number + 1]):
            start, end = features.offsets[window], features.offsets[window + 1]
            null = min(null, outputs[start].sum())
            for first, last in itertools.product(range(start, end), repeat=2):
                inside = min(notes.characters[first, 0], notes.characters[last, 0]) >= 0
                if inside and first <= last < first + 4:
                    text = notes.contexts[number][notes.characters[first, 0] : notes.characters[last, 1]]
                    best = max(best, (outputs[first, 0] + outputs[last, 1], text))
        assert (found.score, found.text) == pytest.approx(best) if isinstance(best[1], float) else found.text == best[1]
        assert found.score == pytest.approx(best[0]) and found.null_odds == pytest.approx(null - best[0])


def test_n_best_answers_are_distinct_and_sum_to_one():
    rows = [question(" ".join(["w3", "w4"] * 9), "w4", 3)]
    features = encode(SPANS, WORDS, locate(rows), Encoding(30, stride=3), ())
    outputs = np.random.default_rng(0).normal(size=(len(features.tokens), 2))
    (described,) = find_kind("span").describe(SPANS, features, outputs, ())
    texts = [rival["text"] for rival in described["n_best"]]
    shares = [rival["probability"] for rival in described["n_best"]]
    assert len(set(texts)) == len(texts) > 5 and sum(shares) == pytest.approx(1)
    assert shares == sorted(shares, reverse=True)
    assert described["answer"] == ("" if described["null_odds"] > 0 else texts[0])


def test_values_are_trained_by_least_squares():
    rows = [{"text": "w1", "label": value} for value in (1, "2.5", -3.0)]
    features = encode(VALUES, WORDS, locate(rows), Encoding(8), ("value",))
    assert features.labels.tolist() == [1.0, 2.5, -3.0]
    batch = batch_of(features)
    logits = torch.tensor([[0.5], [0.0], [1.0]], dtype=torch.float64)[batch.examples]
    kind = find_kind("regression")
    expected = np.mean([0.25, 6.25, 16.0])
    assert kind.loss(logits, targets(batch, 0)).item() == pytest.approx(expected)
    assert kind.mean_loss(features, np.array([[0.5], [0.0], [1.0]])) == pytest.approx(expected)
    for wrong in ("much", True, float("nan"), [1]):
        with pytest.raises(UserError, match=r"row 0: label .* is not a finite number"):
            encode(VALUES, WORDS, locate([{"text": "w1", "label": wrong}]), Encoding(8), ("value",))


def test_an_unlabelled_row_is_known_as_such():
    for task, row in (
        (TAGS, {"words": ["w1"]}),
        (SPANS, {"question": "w1", "context": "w2"}),
        (VALUES, {"text": "w1"}),
    ):
        assert not encode(task, WORDS, locate([row]), Encoding(12, stride=1), LABELS).is_labelled
