"""The files that `promptfleet new` finds, as people have them."""

from __future__ import annotations

import re

from launcher.first_run import files
from tests.support.tiny import make_texts, write_jsonl
from tests.unit.new.conftest import CONLL, TEXTS, csv


def test_labels_that_only_dev_has_are_named_with_what_to_set(new, data):
    csv(data, "text,label", TEXTS, ["a", "b"] * 20)
    csv(data, "text,label", TEXTS[:3], ["a", "c", "c"], name="dev.csv")
    raw, said = new(data)
    assert raw is None and "dev has labels that train has not, of which nothing can be learnt: 'c' (2 rows)" in said
    sets = re.search(r"--set '(task\.labels=.*?)'", said)[1]
    assert new(data, "--set", sets)[0]["task"]["labels"] == ["a", "b", "c"]


def test_other_encodings_end_in_the_readers_sentence(new, data):
    (data / "train.csv").write_bytes("text,label\ncaf\xe9 w1,a\nw2 w3,b\n".encode("cp1252"))
    raw, said = new(data)
    assert raw is None and "train.csv:2: not UTF-8" in said and "save it as UTF-8" in said


def test_a_mark_in_front_of_utf_8_is_no_part_of_a_name(new, data):
    (data / "train.csv").write_text("text,label\n" + "w1 w2,a\nw3 w4,b\n" * 5, encoding="utf-8-sig")
    assert new(data)[0]["task"]["text"] == "text"


def test_splits_in_different_formats_are_read_and_two_files_of_one_are_refused(new, data):
    csv(data, "text,label", TEXTS, ["a", "b"] * 20)
    write_jsonl(data / "dev.jsonl", [{"text": "w1", "label": "a"}])
    assert "dev 1 rows (dev.jsonl)" in new(data)[1]
    write_jsonl(data / "train.jsonl", [{"text": "w1", "label": "a"}])
    (data.parent / "mine.json").unlink()
    assert "train.csv and train.jsonl both look like the train split" in new(data)[1]
    raw, _ = new(data, "--set", 'data.files={"train": "train.csv", "dev": "dev.jsonl"}')
    assert raw["data"]["files"] == {"train": "train.csv", "dev": "dev.jsonl"}


def test_files_of_other_names_are_named_in_the_run_file(new, data):
    for name in ("reviews_train.csv", "reviews-dev.csv"):
        csv(data, "text,label", TEXTS, ["a", "b"] * 20, name=name)
    raw, said = new(data)
    assert raw["data"]["files"] == {"train": "reviews_train.csv", "dev": "reviews-dev.csv"}
    assert "by their names, reviews_train.csv for train" in said


def test_one_file_is_trained_on(new, data):
    csv(data, "text,label", TEXTS, ["a", "b"] * 20, name="reviews.csv")
    raw, _ = new(data / "reviews.csv")
    assert raw["data"]["files"] == {"train": str(data / "reviews.csv")} and raw["data"]["held_out"] == 0.2


def test_a_folder_without_training_file_says_what_it_holds(new, data):
    for name in ("a.csv", "b.csv"):
        csv(data, "text,label", TEXTS, ["a", "b"] * 20, name=name)
    assert "(it holds a.csv, b.csv); rename them" in new(data)[1]


def test_a_table_of_any_suffix_is_named_and_tagged_sentences_are_not_taken_for_one(new, data):
    (data / "train.txt").write_text("text\tlabel\n" + "w1 w2\ta\nw3 w4\tb\n" * 9)
    assert new(data)[0]["data"]["files"] == {"train": "train.txt"}
    (data / "train.txt").rename(data / "train.tsv")
    assert "files" not in new(data, "--force")[0]["data"]
    (data / "train.tsv").write_text("text\tO\n\n" + CONLL)
    (data.parent / "mine.json").unlink()
    assert "could be names of columns" in new(data)[1]
    assert new(data, "--kind", "tagging")[0]["task"]["kind"] == "tagging"


def test_a_test_split_without_labels_is_left_alone(new, tmp_path):
    make_texts(tmp_path / "data", {"train": 12, "dev": 6})
    write_jsonl(tmp_path / "data" / "test.jsonl", [{"text": "w1"}])
    _, said = new()
    assert "test: no row has a label" in said and "test 1 rows" not in said


def test_of_large_files_the_first_rows_are_looked_at_and_it_is_said(new, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LOOKED", 10)
    rows = [{"text": f"w{i} w2", "label": "ab"[i % 2] if i < 10 else "c"} for i in range(30)]
    write_jsonl(tmp_path / "data" / "train.jsonl", rows)
    write_jsonl(tmp_path / "data" / "dev.jsonl", [{"text": "w1", "label": "c"}, {"text": "w2", "label": "a"}])
    raw, said = new()
    assert "train: the first 10 of 30 rows were looked at" in said and "labels" not in raw["task"]
