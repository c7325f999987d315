"""Rows of a task's splits: local files, or a hub data set.

Every row keeps the file and line it came from, so that a bad one can be named.
"""

from __future__ import annotations

import csv
import difflib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError, reason
from prompt_tuning.files import expand
from prompt_tuning.problems import show
from prompt_tuning.tasks import STEMS, LocatedRow, Reader, Row, Task

SPLITS = ("train", "dev", "test")


def read_split(task: Task, path: str | None, split: str, hub_config: str | None = None) -> list[LocatedRow] | None:
    """Rows of one split, or ``None`` where the source has no such split. Raises :class:`UserError`."""
    if path is None or not (Path(path).exists() or path.startswith((".", "/", "~"))):
        return _read_hub(task, path, split, hub_config)
    file = _split_files(task, path).get(split)
    return None if file is None else read_rows(file, task)


def extra_splits(task: Task, path: str | None) -> list[str]:
    """Names ``test/...`` of the splits beside train, dev and test, sorted."""
    if path is not None and (Path(path).exists() or path.startswith((".", "/", "~"))):
        return sorted(set(_split_files(task, path)) - set(SPLITS))
    return sorted(task.hub_splits if path is None else ())


def _split_files(task: Task, path: str) -> dict[str, Path]:
    """The file of each split in a folder. Raises :class:`UserError` where two could be meant."""
    folder = expand(path)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise UserError(f"data.path={path}: {what}; give the folder that holds train.jsonl, dev.jsonl, ...")
    found: dict[str, Path] = {}
    for base in [*(folder / name for name in task.files.folders), folder]:
        here: dict[str, list[Path]] = {}
        for split, patterns in task.files.patterns.items():
            for pattern in patterns:
                for name, file in _matches(base, pattern if task.files.read else f"{pattern}{{suffix}}"):
                    here.setdefault(split.format(name=name), []).append(file)
        for split, files in here.items():
            if split in found:
                continue
            if len(files) > 1:
                names = " and ".join(file.name for file in files)
                raise UserError(f"{base}: {names} both look like the {split} split; keep one")
            found[split] = files[0]
    return found


def _matches(folder: Path, pattern: str) -> list[tuple[str, Path]]:
    """Files below a folder that match a glob, with what stands at its ``{name}``; ``{suffix}`` is that of any table."""
    if pattern.endswith("{suffix}"):
        return [found for suffix in TABLES for found in _matches(folder, pattern.replace("{suffix}", suffix))]
    files = sorted(file for file in folder.glob(pattern.replace("{name}", "*")) if file.is_file())
    shape = re.escape(pattern).replace(r"\{name\}", "(?P<name>[^/]*)", 1).replace(r"\{name\}", "(?P=name)")
    shape = shape.replace(r"\*", "[^/]*")
    named = [(re.fullmatch(shape, file.relative_to(folder).as_posix()), file) for file in files]
    return [(match.groupdict().get("name", ""), file) for match, file in named if match]


def read_rows(file: Path, task: Task | None = None) -> list[LocatedRow]:
    """All rows of a file: JSONL, CSV, TSV or Parquet as its suffix says, or as the task reads it. Raises :class:`UserError`."""
    read: Reader | None = TABLES.get(file.suffix)
    if task is not None and task.files.read is not None and file.suffix not in (".jsonl", ".csv", ".parquet"):
        read = task.files.read
    if read is None:
        raise UserError(f"{file}: unknown kind of file; give {', '.join(TABLES)}")
    try:
        return list(read(file))
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


def _tsv(file: Path) -> Iterator[LocatedRow]:
    return _csv(file, delimiter="\t", quoting=csv.QUOTE_NONE, quotechar=None)


def _csv(file: Path, **dialect: Any) -> Iterator[LocatedRow]:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.DictReader(lines, strict=True, **dialect)
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


TABLES = {".jsonl": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}


def _read_hub(task: Task, path: str | None, split: str, hub_config: str | None) -> list[LocatedRow] | None:
    from datasets import get_dataset_split_names, load_dataset

    repository, configuration = (path, hub_config) if path is not None else (task.hub or (None, None))
    wanted = STEMS.get(split, ())
    if path is None and split in task.hub_splits:
        repository, configuration, only = task.hub_splits[split]
        wanted = (only,)
    if repository is None:
        if path is None and task.origin is not None:
            raise UserError(
                f"task {task.name!r} has no data set on the hub: {task.origin}; then set data.path to its folder"
            )
        raise UserError(f"task {task.name!r} has no data set of its own: set data.path to a folder or a hub id")
    # Script-based repositories no longer load; the hub keeps Parquet copies of them under this revision.
    revision = "refs/convert/parquet" if path is None else None
    try:
        names = get_dataset_split_names(repository, configuration, revision=revision)
        name = next((n for n in names if n in wanted), None)
        if name is None:
            return None
        rows = load_dataset(repository, configuration, split=name, revision=revision)
    except Exception as error:  # the hub client raises dozens of kinds; each means that it is not to be had
        what = f"data set {repository!r} is" if path is None else f"data.path={path}: no such folder, and"
        raise UserError(
            f"{what} not to be had from the hub ({reason(error)});"
            " check the id and the network, or set data.path to a local folder"
        ) from None
    return [(f"{repository}:{name} row {number}", _named(row, rows.features)) for number, row in enumerate(rows, 1)]


def _named(row: dict[str, Any], features: Any) -> dict[str, Any]:
    """A hub row with the names of its classes instead of their numbers, in lists too."""
    from datasets import ClassLabel

    named = dict(row)
    for column, feature in features.items():
        inner = getattr(feature, "feature", None)
        if isinstance(feature, ClassLabel) and row[column] is not None and row[column] >= 0:
            named[column] = feature.names[row[column]]
        elif isinstance(inner, ClassLabel) and row[column] is not None:
            named[column] = [inner.names[value] for value in row[column]]
    return named


def check_columns(task: Task, where: str, row: Row, *, labelled: bool = False) -> None:
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
        value = row[column]
        kind, name = (int, "whole number") if column in task.number_columns else (str, "text")
        is_right = isinstance(value, kind) and not isinstance(value, bool)
        if column in task.word_columns:
            name = "list of words"
            is_right = isinstance(value, list) and all(isinstance(word, str) for word in value)
        if not is_right:
            raise UserError(f"{where}: column `{column}` of task {task.name!r} is {show(value)}, not a {name}")
