"""What `promptfleet new` takes data for, why, and what it asks."""

from __future__ import annotations

import re

import pytest

from tests.support.tiny import write_jsonl
from tests.unit.new.conftest import TEXTS, csv

ASKS = {
    "two floats": ("text,label", [TEXTS, [0.25, 0.75] * 20], '"label" holds 2 different numbers .* could be classes or amounts; say which'),
    "stars": ("text,stars", [TEXTS, [1, 2, 3, 4, 5] * 8], "5 different numbers .* could be classes or amounts"),
    "many whole numbers": ("text,label", [TEXTS * 2, [*range(21)] * 4], "could be classes or amounts"),
    "an empty label": ("text,label", [TEXTS, [""] * 40], 'column "label" is empty in all 40 rows'),
    "an empty text": ("text,label", [[""] * 40, ["a", "b"] * 20], 'column "text" is empty in all rows'),
    "one class": ("text,label", [TEXTS, ["a"] * 40], 'holds "a" in every row; there is nothing to learn'),
    "a label a row": ("text,label", [TEXTS, [f"name{i}" for i in range(40)]], "40 different texts in 40 rows, and a class met once"),
    "no names": (None, [TEXTS, ["yes", "no"] * 20], "train.csv:1: the first line looks like a row"),
    "numbers for names": (None, [range(40), TEXTS, ["x", "y"] * 20], "train.csv:1: the first line looks like a row"),
    "no label": ("id,text", [range(40), TEXTS], 'no column looks like labels .* columns "id", "text"; name it with --set task.label'),
    "two labels": ("text,topic,sentiment", [TEXTS, ["a", "b"] * 20, ["c", "d"] * 20], '"topic", "sentiment" could each be the label'),
    "two texts": ("one,two,label", [TEXTS, TEXTS[::-1], ["a", "b"] * 20], '"one", "two" could each be the text; say which'),
    "answers that repeat": ("question,answer", [TEXTS, ["w1 w2", "w3 w4"] * 20], "say which with --kind generation, classification or"),
    "semicolons": ("text;label", [[f"{text};a" for text in TEXTS]], "parted by semicolons; save it with commas"),
}  # fmt: skip


@pytest.mark.parametrize("name", ASKS)
def test_what_could_be_meant_otherwise_is_asked(name, new, data):
    names, columns, message = ASKS[name]
    csv(data, names, *columns)
    raw, said = new(data)
    assert raw is None and re.search(message, said), said


def test_kind_and_columns_that_are_given_settle_it(new, data):
    csv(data, "one,two,label", TEXTS, TEXTS[::-1], [0.25, 0.75] * 20)
    sets = ["--set", "task.text=one", "--set", "task.text_pair=two", "--set", "train.epochs=3"]
    raw, said = new(data, "--kind", "regression", *sets)
    assert raw["task"] == {
        "kind": "regression", "name": "mine", "text": "one", "text_pair": "two", "label": "label", "metric": "pearson",
    }  # fmt: skip
    assert raw["train"]["epochs"] == 3 and "given with --set" in said


def test_a_column_that_numbers_the_rows_is_neither_text_nor_label(new, data):
    csv(data, "nr,Review,Verdict", range(5, 45), TEXTS, ["pos", "neg"] * 20)
    raw, said = new(data)
    assert (raw["task"]["text"], raw["task"]["label"]) == ("Review", "Verdict") and "not used: nr" in said


def test_whole_floats_of_two_values_are_classes_and_it_is_said(new, data):
    csv(data, "text,label", TEXTS, ["0.0", "1.0"] * 20)
    raw, said = new(data)
    assert raw["task"]["kind"] == "classification" and "2 whole numbers in 40 rows, read as names of classes" in said


def test_without_dev_training_rows_are_held_out(new, data, tmp_path):
    csv(data, "text,label", TEXTS, ["a"] * 38 + ["b"] * 2)
    raw, said = new(data)
    assert raw["data"]["held_out"] == 0.2 and "8 of 40 training rows select" in said
    assert raw["task"]["labels"] == ["a", "b"] and raw["task"]["metric"] == "macro_f1"
    assert "'a' has 38 rows, 'b' has 2" in said


def test_uneven_classes_are_selected_by_macro_f1_and_even_ones_by_accuracy(new, data):
    for labels, metric in ((["a"] * 30 + ["b"] * 10, "macro_f1"), (["a"] * 29 + ["b"] * 11, "accuracy")):
        csv(data, "text,label", TEXTS, labels)
        assert new(data, "--force")[0]["task"]["metric"] == metric


def test_rows_of_dev_that_train_has_too_are_counted(new, data):
    csv(data, "text,label", TEXTS, ["a", "b"] * 20)
    csv(data, "text,label", [*TEXTS[:4], "w9 w9"], ["a", "b", "b", "b", "a"], name="valid.csv")
    assert "4 of 5 examples of dev stand in train too, word for word" in new(data)[1]


def test_texts_longer_than_the_backbone_takes_are_counted(new, data):
    csv(data, "text,label", [*TEXTS[:38], "w1 " * 60, "w2 " * 46], ["a", "b"] * 20)
    raw, said = new(data)
    assert raw["data"]["max_length"] == 48  # 64 positions, 16 of them the prompt's
    assert "takes 64, 16 of them the prompt" in said
    assert "train: 1 of 40 texts are longer than 48 tokens, and their ends are cut" in said


def test_a_text_that_just_fits_is_not_cut(new, data):
    csv(data, "text,label", [*TEXTS[:39], "w1 " * 30], ["a", "b"] * 20)
    raw, said = new(data)
    assert raw["data"]["max_length"] == 40 and "all texts fit, the longest has 32 tokens" in said and "cut" not in said


def test_contexts_longer_than_a_window_are_read_in_several(new, tmp_path):
    row = {"question": "w1 w2", "context": "w3 " * 59 + "w4", "answers": [{"text": "w4", "answer_start": 177}]}
    write_jsonl(tmp_path / "data" / "train.jsonl", [row] * 12)
    raw, said = new()
    assert (raw["data"]["max_length"], raw["data"]["stride"]) == (48, 12) and "so that nothing is cut" in said


def test_brackets_of_roles_are_no_tags(new, data):
    (data / "train.txt").write_text("w1 (A0*\nw2 *)\n\nw3 *\nw4 (V*)\n")
    raw, said = new(data)
    assert raw is None and "'(A0*' is a bracket of the CoNLL shared tasks" in said


def test_lists_of_numbers_are_no_tags(new, tmp_path):
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"tokens": ["w1", "w2"], "ner_tags": [0, 1]}] * 9)
    assert '"ner_tags" holds lists of numbers; write the names of the tags' in new()[1]


def test_turns_of_another_shape_and_chats_with_labels_are_asked_about(new, tmp_path, decoder):
    turns = [{"from": "human", "value": "w1"}, {"from": "gpt", "value": "w2"}]
    write_jsonl(tmp_path / "data" / "train.jsonl", [{"conversations": turns}] * 9)
    assert "write messages with `role` (system, user, assistant)" in new(backbone=decoder)[1]
    said = [{"role": "user", "content": "w1"}, {"role": "assistant", "content": "w2"}]
    write_jsonl(
        tmp_path / "data" / "train.jsonl", [{"messages": said, "label": "ab"[i % 2], "text": "w1"} for i in range(9)]
    )
    assert 'column "messages" could be conversations' in new(backbone=decoder)[1]
    assert new(tmp_path / "data", "--kind", "generation", backbone=decoder)[0]["task"]["messages"] == "messages"
