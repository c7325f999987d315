"""Rows of JSONL, CSV and Parquet files; the mistakes in them are in errors/test_data_files.py."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from prompt_tuning.data.read import Source, read_rows, read_split
from prompt_tuning.errors import UserError
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tokens.rows import check_columns

TEXTS = find_task({"kind": "classification"})
ROWS = [{"text": 'a, "b"\nc', "label": "x"}, {"text": "d é 漢 \u2028 \x85 e", "label": "y"}]


def write_csv(file, end="\r\n", start=""):
    cells = [["text", "label"], *([row["text"], row["label"]] for row in ROWS)]
    lines = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in cells]
    file.write_bytes((start + end.join(lines) + end).encode())


def test_three_kinds_of_file_give_the_same_rows(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS))
    write_csv(tmp_path / "a.csv")
    parquet.write_table(arrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    for suffix in ("jsonl", "csv", "parquet"):
        assert [row for _, row in read_rows(tmp_path / f"a.{suffix}")] == ROWS, suffix


def test_rows_know_their_line(tmp_path):
    (tmp_path / "a.jsonl").write_text('\n{"text": "a"}\n\n\n{"text": "b"}\n')
    assert [Path(where).name for where, _ in read_rows(tmp_path / "a.jsonl")] == ["a.jsonl:2", "a.jsonl:5"]
    write_csv(tmp_path / "a.csv")
    assert [Path(where).name for where, _ in read_rows(tmp_path / "a.csv")] == ["a.csv:3", "a.csv:4"]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_byte_order_marks_and_line_ends_do_not_matter(tmp_path, start, end):
    text = start + end.join(json.dumps(row) for row in ROWS) + end + end
    (tmp_path / "a.jsonl").write_bytes(text.encode())
    assert [row for _, row in read_rows(tmp_path / "a.jsonl")] == ROWS
    write_csv(tmp_path / "a.csv", end, start)
    assert [row for _, row in read_rows(tmp_path / "a.csv")] == ROWS


def test_a_csv_field_may_be_large(tmp_path):
    """The csv module's own limit is 131072 characters."""
    (tmp_path / "a.csv").write_text(f"text,label\n{'w ' * 100_000},x\n")
    assert len(read_rows(tmp_path / "a.csv")[0][1]["text"]) == 200_000


@pytest.mark.parametrize("name", ["dev", "val", "valid", "validation"])
def test_the_dev_split_has_many_names(tmp_path, name):
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(ROWS[0]))
    assert len(list(read_split(TEXTS, Source(str(tmp_path)), "dev"))) == 1
    assert read_split(TEXTS, Source(str(tmp_path)), "train") is None
    assert read_split(TEXTS, Source(str(tmp_path)), "test") is None


def test_a_tasks_own_folder_comes_first(tmp_path):
    boolq = find_task("boolq")
    (tmp_path / "train.jsonl").write_text('{"question": "outer"}')
    assert next(iter(read_split(boolq, Source(str(tmp_path)), "train")))[1] == {"question": "outer"}
    (tmp_path / "BoolQ").mkdir()
    (tmp_path / "BoolQ" / "train.jsonl").write_text('{"question": "inner"}')
    assert next(iter(read_split(boolq, Source(str(tmp_path)), "train")))[1] == {"question": "inner"}


def test_relative_folders_are_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.jsonl").write_text(json.dumps(ROWS[0]))
    for path in ("data", "./data"):
        assert len(list(read_split(TEXTS, Source(path), "train"))) == 1


def test_other_kinds_of_file_are_refused(tmp_path):
    (tmp_path / "rows.txt").write_text("text label\n")
    with pytest.raises(
        UserError, match=r"parted by tabs; .* call it \.jsonl, \.json, \.ndjson, \.csv, \.tsv, \.parquet"
    ):
        read_rows(tmp_path / "rows.txt")
    for name in ("rows.jsonl", "none.txt"):
        with pytest.raises(UserError, match="no such file"):
            read_rows(tmp_path / name)


@pytest.mark.parametrize(
    ("index", "is_good"), [(0, True), ("0", False), (1.0, False), (True, False), (None, False), ([1], False)]
)
def test_number_columns_hold_whole_numbers(index, is_good):
    row = {"text": "a b", "span1_text": "a", "span2_text": "b", "span2_index": index}
    if is_good:
        check_columns(find_task("wsc"), "here", row)
        return
    with pytest.raises(UserError, match=r"here: column `span2_index` of task 'wsc' is (.*not a whole number|null)"):
        check_columns(find_task("wsc"), "here", row)
