"""From rows to tokens, against direct calls of the tokenizer; any row gives features or one clear error."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from prompt_tuning.data.load import load_task_data
from prompt_tuning.data.read import Source, read_rows
from prompt_tuning.errors import UserError
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.recipe import Encoding
from tests.support.rows import encode
from tests.support.tiny import make_copa, make_texts, make_tokenizer, write_jsonl

TOKENIZER = make_tokenizer()
WITHOUT_TYPES = make_tokenizer(pad_token_id=1)
TEXTS = find_task({"kind": "classification"})
PAIRS = find_task({"kind": "classification", "text_pair": "other"})
COPA = find_task("copa")


def locate(rows):
    return [(f"row {i}", row) for i, row in enumerate(rows)]


def row_of(features, i):
    return features.tokens[features.offsets[i] : features.offsets[i + 1]].tolist()


def types_of(features, i):
    return features.token_types[features.offsets[i] : features.offsets[i + 1]].tolist()


def words(*numbers):
    return " ".join(f"w{n}" for n in numbers)


@pytest.mark.parametrize("max_length", [5, 8, 64])
def test_texts_and_pairs_equal_the_tokenizers_own(max_length):
    first, second = [words(*range(10)), words(3)], [words(*range(20, 23)), words(*range(30, 50))]
    features = encode(
        TEXTS, TOKENIZER, locate([{"text": t, "label": "a"} for t in first]), Encoding(max_length), ("a", "b")
    )
    for i, text in enumerate(first):
        assert row_of(features, i) == TOKENIZER(text, truncation=True, max_length=max_length)["input_ids"]
    rows = [{"text": a, "other": b, "label": "a"} for a, b in zip(first, second, strict=True)]
    features = encode(PAIRS, TOKENIZER, locate(rows), Encoding(max_length), ("a", "b"))
    for i, (a, b) in enumerate(zip(first, second, strict=True)):
        expected = TOKENIZER(a, b, truncation="longest_first", max_length=max_length)
        assert row_of(features, i) == expected["input_ids"]
        assert types_of(features, i) == expected["token_type_ids"]
        assert len(row_of(features, i)) <= max_length


def test_pairs_lose_tokens_of_the_longer_text_first():
    row = {"text": words(1, 2), "other": words(*range(10, 30)), "label": "a"}
    features = encode(PAIRS, TOKENIZER, locate([row]), Encoding(10), ("a", "b"))
    names = TOKENIZER.convert_ids_to_tokens(row_of(features, 0))
    assert names == ["[CLS]", "w1", "w2", "[SEP]", "w10", "w11", "w12", "w13", "w14", "[SEP]"]
    assert types_of(features, 0) == [0] * 4 + [1] * 6


def test_a_choice_example_has_a_row_for_each_choice():
    rows = [
        {"premise": "w1", "question": "cause", "choice1": "w2", "choice2": "w3 w4", "label": 1},
        {"premise": "w5 w6", "question": "effect", "choice1": "w7", "choice2": "w8", "label": 0},
    ]
    features = encode(COPA, TOKENIZER, locate(rows), Encoding(32), COPA.labels)
    assert (len(features), features.rows_per_example, len(features.offsets)) == (2, 2, 5)
    assert features.labels.tolist() == [1, 0]
    expected = [("w1 because", "w2"), ("w1 because", "w3 w4"), ("w5 w6 so", "w7"), ("w5 w6 so", "w8")]
    for i, (a, b) in enumerate(expected):
        assert row_of(features, i) == TOKENIZER(a, b)["input_ids"]


def test_a_tokenizer_without_token_types_gives_none():
    features = encode(TEXTS, WITHOUT_TYPES, locate([{"text": "w1", "label": "a"}]), Encoding(8), ("a", "b"))
    assert features.token_types is None


def test_templates_are_chosen_by_name():
    wic = find_task("wic")
    row = {"word": "w1", "sentence1": "w2", "sentence2": "w3", "label": True}
    for template, expected in (("question", 1), ("word_pair", 2), (None, 1)):
        features = encode(wic, TOKENIZER, locate([row]), Encoding(32, template), wic.labels)
        assert row_of(features, 0).count(TOKENIZER.sep_token_id) == expected


def test_lengths_around_the_limit():
    for count in (1, 5, 6, 7):
        features = encode(
            TEXTS, TOKENIZER, locate([{"text": words(*range(count)), "label": "a"}]), Encoding(8), ("a", "b")
        )
        assert len(row_of(features, 0)) == min(8, count + 2)


def test_room_for_text_is_needed():
    rows = locate([{"text": "w1", "other": "w2", "label": "a"}])
    assert len(row_of(encode(PAIRS, TOKENIZER, rows, Encoding(5), ("a", "b")), 0)) == 5
    with pytest.raises(UserError, match="beside 3 special tokens; give 5 or more"):
        encode(PAIRS, TOKENIZER, rows, Encoding(4), ("a", "b"))


def test_rows_that_do_not_fit_the_task_are_named():
    row = {"premise": "w1", "question": "Cause", "choice1": "w2", "choice2": "w3", "label": 1}
    with pytest.raises(UserError, match=r"row 0: .* question is 'Cause', neither 'cause' nor 'effect'"):
        encode(COPA, TOKENIZER, locate([row]), Encoding(32), COPA.labels)
    wsc = find_task("wsc")
    for index in (3, -1):
        row = {"text": "w1 w2 w3", "span1_text": "w1", "span2_text": "w2", "span2_index": index}
        with pytest.raises(UserError, match=f"row 0: .* span2_index is {index}, but the text has 3 words"):
            encode(wsc, TOKENIZER, locate([row]), Encoding(32, "starred"), wsc.labels)


def test_collected_labels_are_sorted_names_or_numbers(tmp_path):
    def labels(*values, other="b"):
        for split in ("train", "dev"):
            write_jsonl(tmp_path / f"{split}.jsonl", [{"text": "w1", "label": value} for value in values])
        data = load_task_data(TEXTS, TOKENIZER, Source(str(tmp_path)), Encoding(8))
        return data.labels, data.splits["train"].labels.tolist()

    assert labels("b", "a", "b") == (("a", "b"), [1, 0, 1])
    assert labels(10, 9, 100) == (("9", "10", "100"), [1, 0, 2])
    assert labels(True, False) == (("False", "True"), [1, 0])
    assert labels(1, "1", "b") == (("1", "b"), [0, 0, 1])
    assert labels("A", "a") == (("A", "a"), [0, 1])


def test_a_number_is_no_index_where_labels_are_numbers(tmp_path):
    write_jsonl(tmp_path / "train.jsonl", [{"text": "w1", "label": 10}, {"text": "w1", "label": 20}])
    write_jsonl(tmp_path / "dev.jsonl", [{"text": "w1", "label": 1}])
    with pytest.raises(UserError, match=r"dev\.jsonl:1: label 1 is none of 10, 20"):
        load_task_data(TEXTS, TOKENIZER, Source(str(tmp_path)), Encoding(8))


def test_minus_one_may_be_a_named_label(tmp_path):
    task = find_task({"kind": "classification", "labels": ["-1", "0", "1"]})
    for split in ("train", "dev"):
        write_jsonl(tmp_path / f"{split}.jsonl", [{"text": "w1", "label": value} for value in (1, -1, 0)])
    data = load_task_data(task, TOKENIZER, Source(str(tmp_path)), Encoding(8))
    assert data.splits["train"].labels.tolist() == [2, 0, 1]


def test_unlabelled_test_splits_are_left_out(tmp_path):
    make_texts(tmp_path)
    rows = [row for _, row in read_rows(tmp_path / "test.jsonl")]
    for label in (None, -1, ""):
        write_jsonl(tmp_path / "test.jsonl", [{**row, "label": label} for row in rows])
        assert set(load_task_data(TEXTS, TOKENIZER, Source(str(tmp_path)), Encoding(8)).splits) == {"train", "dev"}
    (tmp_path / "test.jsonl").unlink()
    assert set(load_task_data(TEXTS, TOKENIZER, Source(str(tmp_path)), Encoding(8)).splits) == {"train", "dev"}


def test_limits_keep_the_first_examples(tmp_path):
    make_copa(tmp_path)
    whole = load_task_data(COPA, TOKENIZER, Source(str(tmp_path)), Encoding(32))
    part = load_task_data(COPA, TOKENIZER, Source(str(tmp_path)), Encoding(32), limits={"train": 3, "dev": 2})
    assert (len(part.splits["train"]), len(part.splits["dev"])) == (3, 2)
    train, cut = whole.splits["train"], part.splits["train"]
    assert np.array_equal(cut.labels, train.labels[:3])
    assert np.array_equal(cut.tokens, train.tokens[: cut.offsets[-1]])


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=9),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=4,
)
WSC_KEYS = ["text", "target", "span1_text", "span2_text", "span2_index", "label"]
GOOD = {
    "texts": [{"text": "w1", "label": "a"}, {"text": "w2", "label": "b"}],
    "pairs": [{"text": "w1", "other": "w2", "label": "a"}, {"text": "w2", "other": "w3", "label": "b"}],
    "copa": [{"premise": "w1", "question": "cause", "choice1": "w2", "choice2": "w3", "label": 1}],
    "wsc": [{"text": "w1 w2", "target": {"span1_text": "w1", "span2_text": "w2", "span2_index": 1}, "label": True}],
    "wic": [{"word": "w1", "sentence1": "w1", "sentence2": "w1", "label": "false"}],
}
ROW = st.one_of(
    st.fixed_dictionaries({}, optional=dict.fromkeys(("text", "label", "other"), VALUES)),
    st.fixed_dictionaries({}, optional=dict.fromkeys(WSC_KEYS, VALUES)),
    st.fixed_dictionaries(dict.fromkeys(("premise", "question", "choice1", "choice2", "label"), VALUES)),
    VALUES,
)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(ROW, max_size=3), name=st.sampled_from(["texts", "pairs", "copa", "wsc", "wic"]))
def test_any_rows_are_features_or_one_error(tmp_path, rows, name):
    task = {"texts": TEXTS, "pairs": PAIRS, "copa": COPA}.get(name) or find_task(name)
    good = GOOD[name]
    changed = {**good[0], **(rows[0] if rows and isinstance(rows[0], dict) and len(rows[0]) < 3 else {})}
    text = "\n".join(json.dumps(row) for row in [*good, changed, *rows[1:]])
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text(text)
    try:
        data = load_task_data(task, TOKENIZER, Source(str(tmp_path)), Encoding(16))
    except UserError as error:
        assert str(error)
        return
    assert (data.splits["train"].labels >= 0).all()


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(content=st.binary(max_size=80), suffix=st.sampled_from(["jsonl", "csv", "parquet"]))
def test_any_bytes_are_rows_or_one_error(tmp_path, content, suffix):
    file = tmp_path / f"train.{suffix}"
    file.write_bytes(content)
    try:
        rows = read_rows(file)
    except UserError as error:
        assert file.name in str(error)
        return
    for where, row in rows:
        assert where.startswith(str(file)) and isinstance(row, dict)


@settings(max_examples=100, deadline=None)
@given(text=st.text(st.characters(), max_size=20))
def test_any_text_is_tokens_or_one_error(text):
    try:
        features = encode(TEXTS, TOKENIZER, [("here", {"text": text, "label": "a"})], Encoding(16), ("a", "b"))
    except UserError as error:
        assert "here: " in str(error)
        return
    assert row_of(features, 0) == TOKENIZER(text, truncation=True, max_length=16)["input_ids"]
