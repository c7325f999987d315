"""Tables of rows: JSONL, CSV, TSV and Parquet."""

from __future__ import annotations

import csv
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.messages import show


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
                    remedy = "a text with commas stands in quotes"
                    if dialect:
                        remedy = "columns are parted by tabs, so a text has none; quotes mean nothing there"
                    raise UserError(f"{file}:{reader.line_num}: not {have} fields, as the header has; {remedy}")
                yield f"{file}:{reader.line_num}", row
        except csv.Error as error:
            raise UserError(f"{file}:{reader.reader.line_num}: not CSV: {error}") from None


def undecodable_line(file: Path) -> str:
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
        number = 0
        for batch in parquet.ParquetFile(file).iter_batches(1000):
            for row in batch.to_pylist():
                number += 1
                yield f"{file}:row {number}", row
    except (arrow.ArrowException, OSError) as error:
        raise UserError(f"{file}: not Parquet: {error}") from None


def _json(file: Path) -> Iterator[LocatedRow]:
    """Rows of a ``.json`` file, as its content says: one object a line, or one list of objects (also under ``data``)."""
    with file.open(encoding="utf-8-sig") as lines:
        first = next((line for line in lines if line.strip()), "")
    try:
        is_lines = isinstance(json.loads(first), dict)
    except (ValueError, RecursionError):
        is_lines = False
    content: Any = None
    if not is_lines or first.lstrip().startswith("["):
        content = _document(file)
    elif "data" in json.loads(first):
        try:
            content = _document(file)
        except UserError:
            content = None  # more lines follow, so it is a row that has such a column
    items = content.get("data") if isinstance(content, dict) else content
    if is_lines and not isinstance(items, list):
        yield from _jsonl(file)
        return
    if not isinstance(items, list):
        raise UserError(f"{file}: holds {show(content)}; give one object a line, or one list of objects")
    for number, row in enumerate(items):
        if not isinstance(row, dict):
            raise UserError(f"{file}: entry {number} of the list is {show(row)}, not an object")
        yield f"{file}[{number}]", row


def table_of_any_name(file: Path) -> Iterator[LocatedRow]:
    """Rows of a file whose suffix says nothing, by its first line: an object of JSON, or names of columns between tabs."""
    with file.open(encoding="utf-8-sig") as lines:
        first = next((line for line in lines if line.strip()), "").lstrip(" ")
    if first.startswith(("{", "[")):
        return _json(file)
    if "\t" in first:
        return _tsv(file)
    raise UserError(
        f"{file}: neither JSON nor columns parted by tabs; give one object a line, or call it {', '.join(TABLES)}"
    )


def holds_rows(file: Path) -> bool:
    """Whether a ``.json`` file is a list, or an object a line, rather than one object in a layout of its own."""
    with file.open(encoding="utf-8-sig") as lines:
        first = next((line for line in lines if line.strip()), "").strip()
    if first.startswith("["):
        return True
    try:
        row = json.loads(first)
    except (ValueError, RecursionError):
        return False
    return isinstance(row, dict) and "data" not in row


def _document(file: Path) -> Any:
    try:
        return json.loads(file.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(f"{file}:{error.lineno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{file}: JSON nested too deeply") from None
    except ValueError:
        raise UserError(f"{file}: a number has too many digits; write it as a text") from None


TABLES = {".jsonl": _jsonl, ".json": _json, ".ndjson": _jsonl, ".csv": _csv, ".tsv": _tsv, ".parquet": _parquet}
