"""Every mistake in data ends in one clear message, which names file and line; nothing is lost, no traceback is shown."""

from __future__ import annotations

import json

import pytest

from launcher import run as worker
from tests.support.failures import failure, write

GOOD = '{"text": "w1", "label": "class0"}\n{"text": "w2", "label": "class1"}\n'
DATA_MISTAKES = [
    ("train.jsonl", GOOD + '{"text": \n', "train.jsonl:3: not JSON"),
    ("train.jsonl", GOOD + '["w1"]\n', 'train.jsonl:3: the line holds ["w1"]'),
    ("train.jsonl", "3\n", "train.jsonl:1: the line holds 3"),
    ("train.jsonl", GOOD + "[" * 100_000, "train.jsonl:3: JSON nested too deeply"),
    (
        "train.jsonl",
        GOOD + '{"text": "w1", "label": ' + "1" * 5000 + "}",
        "train.jsonl:3: a number has too many digits",
    ),
    (
        "train.jsonl",
        '{"txt": "w1", "label": "a"}\n',
        "train.jsonl:1: no column `text`, which task 'texts' needs; did you",
    ),
    ("train.jsonl", '{"x": "w1", "label": "a"}\n', "it has: x, label"),
    ("train.jsonl", GOOD + '{"text": null, "label": "b"}\n', "train.jsonl:3: column `text` of task 'texts' is null"),
    (
        "train.jsonl",
        GOOD + '{"text": 3, "label": "class0"}\n',
        "train.jsonl:3: column `text` of task 'texts' is 3, not",
    ),
    ("train.jsonl", GOOD + '{"text": ["w"], "label": "class0"}\n', 'is ["w"], not a text'),
    (
        "train.jsonl",
        GOOD + '{"text": "w1 \\ud800", "label": "class0"}\n',
        "train.jsonl:3: character 4 of a text is half",
    ),
    ("train.jsonl", '{"text": "w1", "label": "a"}\n', "1 label(s) (a); at least two are needed"),
    ("train.jsonl", GOOD + '{"text": "w1", "label": null}\n', "train.jsonl:3: column `label` of task 'texts' is null"),
    ("train.jsonl", GOOD + '{"text": "w1"}\n', "train.jsonl:3: no column `label`"),
    ("train.jsonl", GOOD + '{"text": "w1", "label": -1}\n', "train.jsonl:3: no label in column `label`; to use -1"),
    ("train.jsonl", GOOD + '{"text": "w1", "label": 0.5}\n', "train.jsonl:3: label 0.5 is neither"),
    ("train.jsonl", GOOD + '{"text": "w1", "label": {"a": 1}}\n', 'train.jsonl:3: label {"a": 1} is neither'),
    ("train.jsonl", "", "the train split of"),
    ("dev.jsonl", "\n \n", "is empty; give it rows"),
    ("dev.jsonl", GOOD + '{"text": "w1", "label": "other"}\n', "dev.jsonl:3: label 'other' is none of class0, class1"),
    ("dev.jsonl", GOOD + '{"text": "w1"}\n', "dev.jsonl:3: no label in column `label`; every row of the dev split"),
    ("test.jsonl", GOOD + '{"text": "w1"}\n', "test.jsonl:3: no label in column `label`; every row of the test split"),
    ("dev.csv", "text,label\nw1,class0\n", "dev.jsonl and dev.csv both look like the dev split; keep one"),
    ("val.csv", "text,label\nw1,class0\n", "dev.jsonl and val.csv both look like the dev split; keep one"),
]


@pytest.mark.parametrize(("name", "content", "expected"), DATA_MISTAKES, ids=[e for _, _, e in DATA_MISTAKES])
def test_bad_data_is_named_by_file_and_line(raw, tmp_path, capsys, name, content, expected):
    (tmp_path / "data" / name).write_text(content)
    assert expected in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
    assert not list((tmp_path / "out").rglob("step-*"))


def test_odd_but_right_files_are_read(raw, tmp_path):
    """A byte-order mark, Windows line ends, empty lines and a line of a megabyte are no mistakes."""
    rows = [{"text": f"w{i}", "label": f"class{i % 3}"} for i in range(5)] + [
        {"text": "w1 " * 350_000, "label": "class0"}
    ]
    text = "\r\n\r\n".join(json.dumps(row) for row in rows)
    (tmp_path / "data" / "train.jsonl").write_bytes(b"\xef\xbb\xbf" + text.encode())
    assert worker.main(["--config", str(write(tmp_path, raw)), "--output", str(tmp_path / "out"), "--dry-run"]) == 0


def test_files_that_are_not_text(raw, tmp_path, capsys):
    (tmp_path / "data" / "train.jsonl").write_bytes(b'{"text": "caf\xe9"}\n')
    assert "train.jsonl:1: not UTF-8" in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


TABLES = [
    ("train.csv", b"text,label\nw1,class0\nw2, and more,class1\n", "train.csv:3: not 2 fields, as the header has"),
    ("train.csv", b"text,label\nw1,class0\nw2\n", "train.csv:3: not 2 fields"),
    ("train.csv", b'text,label\nw1,class0\n"w2,class1\n', "train.csv:3: not CSV"),
    (
        "train.csv",
        b"text;label\nw1;class0\n",
        "train.csv:2: no column `text`, which task 'texts' needs; it has: text;label",
    ),
    ("train.csv", b"text,label,text\nw1,class0,w2\n", 'train.csv:1: two columns are called "text"'),
    ("train.csv", b"text,label\nw1,\nw2,class0\n", "train.csv:2: no label in column `label`"),
    ("train.csv", b"text,label\n", "the train split of"),
    ("train.csv", b"text,label\nw1,class0\ncaf\xe9,class1\n", "train.csv:3: not UTF-8"),
    ("train.parquet", b"PAR1 but nothing more", "train.parquet: not Parquet"),
    ("train.parquet", b"", "train.parquet: not Parquet"),
]


@pytest.mark.parametrize(("name", "content", "expected"), TABLES, ids=[e for _, _, e in TABLES])
def test_bad_tables_are_named(raw, tmp_path, capsys, name, content, expected):
    (tmp_path / "data" / "train.jsonl").unlink()
    (tmp_path / "data" / name).write_bytes(content)
    assert expected in failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")


def test_missing_splits(raw, tmp_path, capsys):
    (tmp_path / "data" / "dev.jsonl").unlink()
    message = failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
    assert (
        "the dev split of" in message
        and "is missing; give dev.jsonl, dev.json, dev.ndjson, dev.csv, dev.tsv or dev.parquet" in message
    )


def test_missing_data_folder(raw, tmp_path, capsys):
    for path, expected in ((tmp_path / "nowhere", "no such folder"), (__file__, "a file"), ("~nobody/x", "no such")):
        raw["data"]["path"] = str(path)
        message = failure(capsys, "--config", write(tmp_path, raw), "--output", tmp_path / "out")
        assert f"data.path={path}: {expected}" in message
