"""Rows of a task's splits: local JSONL, CSV and Parquet files, or a hub data set.

Every row keeps the file and line it came from, so that a bad one can be named.
"""

from __future__ import annotations

import csv
import difflib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError, reason
from prompt_tuning.files import expand
from prompt_tuning.problems import show
from prompt_tuning.tasks import Task

SPLITS = ("train", "dev", "test")
_FILE_NAMES = {"train": ("train",), "dev": ("dev", "val", "valid", "validation"), "test": ("test",)}
_SUFFIXES = (".jsonl", ".csv", ".parquet")

LocatedRow = tuple[str, dict[str, Any]]
"""``file:line`` (or hub row) and the row's columns."""


def read_split(task: Task, path: str | None, split: str, hub_config: str | None = None) -> list[LocatedRow] | None:
    """Rows of one split, or ``None`` where the source has no such split. Raises :class:`UserError`."""
    if path is None or not (Path(path).exists() or path.startswith((".", "/", "~"))):
        return _read_hub(task, path, split, hub_config)
    folder = expand(path)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise UserError(f"data.path={path}: {what}; give the folder that holds train.jsonl, dev.jsonl, ...")
    if task.folder and (folder / task.folder).is_dir():
        folder = folder / task.folder
    found = [folder / (name + suffix) for name in _FILE_NAMES[split] for suffix in _SUFFIXES]
    found = [file for file in found if file.is_file()]
    if len(found) > 1:
        raise UserError(f"{folder}: {' and '.join(f.name for f in found)} both look like the {split} split; keep one")
    return read_rows(found[0]) if found else None


def read_rows(file: Path) -> list[LocatedRow]:
    """All rows of a JSONL, CSV or Parquet file; the kind is told by the suffix. Raises :class:`UserError`."""
    readers = {".jsonl": _jsonl, ".csv": _csv, ".parquet": _parquet}
    if file.suffix not in readers:
        raise UserError(f"{file}: unknown kind of file; give {', '.join(readers)}")
    try:
        return list(readers[file.suffix](file))
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}{_undecodable(file)}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None


def _jsonl(file: Path) -> Iterator[LocatedRow]:
    with file.open(encoding="utf-8-sig") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except json.JSONDecodeError as error:
                raise UserError(f"{file}:{number}: not JSON: {error.msg}; every line is one JSON object") from None
            except RecursionError:
                raise UserError(
                    f"{file}:{number}: JSON nested too deeply; every line is one flat JSON object"
                ) from None
            except ValueError:
                raise UserError(f"{file}:{number}: a number has too many digits; write it as a text") from None
            if not isinstance(row, dict):
                raise UserError(f"{file}:{number}: the line holds {show(row)}; every line is one JSON object: {{...}}")
            yield f"{file}:{number}", row


def _csv(file: Path) -> Iterator[LocatedRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True)
        try:
            twice = [name for i, name in enumerate(reader.fieldnames or []) if name in (reader.fieldnames or [])[:i]]
            if twice:
                raise UserError(f"{file}:1: two columns are called {show(twice[0])}; every column has its own name")
            for row in reader:
                if None in row or None in row.values():
                    have = len(reader.fieldnames or [])
                    raise UserError(
                        f"{file}:{reader.line_num}: not {have} fields, as the header has; quote commas in texts"
                    )
                yield f"{file}:{reader.line_num}", row
        except csv.Error as error:
            raise UserError(f"{file}:{reader.reader.line_num}: not CSV: {error}") from None


def _undecodable(file: Path) -> str:
    """The first line that is not UTF-8, as ``:line``."""
    with file.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                line.decode()
            except UnicodeDecodeError:
                return f":{number}"
    return ""


def _parquet(file: Path) -> Iterator[LocatedRow]:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    try:
        rows = parquet.read_table(file).to_pylist()
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not Parquet: {error}") from None
    for number, row in enumerate(rows, 1):
        yield f"{file}:row {number}", row


def _read_hub(task: Task, path: str | None, split: str, hub_config: str | None) -> list[LocatedRow] | None:
    from datasets import ClassLabel, get_dataset_split_names, load_dataset

    repository, configuration = (path, hub_config) if path is not None else (task.hub or (None, None))
    if repository is None:
        raise UserError(f"task {task.name!r} has no data set of its own: set data.path to a folder or a hub id")
    # Script-based repositories no longer load; the hub keeps Parquet copies of them under this revision.
    revision = "refs/convert/parquet" if path is None else None
    try:
        names = get_dataset_split_names(repository, configuration, revision=revision)
        name = next((n for n in names if n in _FILE_NAMES[split]), None)
        if name is None:
            return None
        rows = load_dataset(repository, configuration, split=name, revision=revision)
    except Exception as error:  # the hub client raises dozens of kinds; each means that it is not to be had
        what = f"data set {repository!r} is" if path is None else f"data.path={path}: no such folder, and"
        raise UserError(
            f"{what} not to be had from the hub ({reason(error)});"
            " check the id and the network, or set data.path to a local folder"
        ) from None
    feature = rows.features.get(task.label_column)
    located = []
    for number, row in enumerate(rows, 1):
        value = row.get(task.label_column)
        if isinstance(feature, ClassLabel) and value is not None and value >= 0:
            row = {**row, task.label_column: feature.names[value]}
        located.append((f"{repository}:{name} row {number}", row))
    return located


def check_columns(task: Task, where: str, row: dict[str, Any], *, labelled: bool = False) -> None:
    """Raise :class:`UserError` if a row lacks a column of the task, or has nothing or the wrong kind of thing in it."""
    for column in (*task.columns, *([task.label_column] if labelled else [])):
        if column not in row:
            near = difflib.get_close_matches(column, map(str, row), 1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(map(str, row)) or 'none'}"
            raise UserError(f"{where}: no column `{column}`, which task {task.name!r} needs; {hint}")
        if row[column] is None:
            raise UserError(f"{where}: column `{column}` of task {task.name!r} is null; fill it or remove the row")
        if column == task.label_column:
            continue
        kind, name = (int, "whole number") if column in task.number_columns else (str, "text")
        if not isinstance(row[column], kind) or isinstance(row[column], bool):
            raise UserError(f"{where}: column `{column}` of task {task.name!r} is {show(row[column])}, not a {name}")
