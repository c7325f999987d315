"""What lies in a folder of one's own data: the file of each split, and its rows."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from prompt_tuning.data.read import Source, split_files, stream_rows
from prompt_tuning.errors import UserError
from prompt_tuning.formats import STEMS, LocatedRow
from prompt_tuning.formats.tables import TABLES, undecodable_line
from prompt_tuning.storage.atomic import expand
from prompt_tuning.tasks.find import find_task
from prompt_tuning.tasks.types import Task

LOOKED = 20_000
"""Rows of a split that are looked at, the first ones; those behind them are counted."""
_ALSO = {"train": ("training", "trn"), "dev": ("development", "eval"), "test": ("testing", "tst")}
_NO_DATA = (".md", ".rst", ".py", ".pdf", ".zip", ".gz", ".tar", ".lock", ".html")
SHOWN = 8
"""Names at most in a sentence."""


@dataclass(frozen=True)
class Files:
    """The file of each split, and what a run file's ``data`` says of them."""

    by_split: dict[str, Path]
    section: dict[str, Any]
    why: str


@dataclass(frozen=True)
class Split:
    """The rows of a split that were looked at, and how many there are."""

    file: Path
    rows: list[LocatedRow]
    total: int

    @property
    def is_whole(self) -> bool:
        """Whether all rows were looked at."""
        return len(self.rows) == self.total


def find_files(data: str, named: Mapping[str, str] | None = None) -> Files:
    """The files below a folder, or one file as the training split; ``named``: as data.files would have them.

    Raises :class:`UserError` where none, or more than one, could be the training split.
    """
    place = expand(data)
    if named:
        folder = place if place.is_dir() else Path()
        section: dict[str, Any] = ({"path": data} if place.is_dir() else {}) | {"files": dict(named)}
        return Files({split: folder / expand(name) for split, name in named.items()}, section, "given with --set")
    if place.is_file():
        return Files({"train": place}, {"files": {"train": data}}, "one file, from which rows to select on are taken")
    if not place.is_dir():
        raise UserError(
            f"--data {data}: no such file or folder; give the folder that holds train.jsonl, dev.jsonl, ..."
        )
    try:
        # Patterns of tagging: the loader's names with any suffix.
        found = split_files(find_task({"kind": "tagging"}), Source(data))
    except UserError as error:
        raise UserError(f'{error}, here as --set \'data.files={{"train": "...", "dev": "..."}}\'') from None
    by_split = {split: file for split, (file, _) in found.items()}
    if "train" in by_split:
        return Files(by_split, {"path": data}, "named as the loader expects")
    return _by_other_names(data, place)


def _by_other_names(data: str, folder: Path) -> Files:
    """Files whose names have a split's in them, or the only file there is. Raises :class:`UserError`."""
    files = [
        file
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.startswith(".") and file.suffix.lower() not in _NO_DATA
    ]
    meant: dict[str, list[Path]] = {}
    for file in files:
        words = set(re.split(r"[^a-z]+", file.stem.lower()))
        splits = [split for split in STEMS if words & {*STEMS[split], *_ALSO[split]}]
        if len(splits) == 1:
            meant.setdefault(splits[0], []).append(file)
    if "train" not in meant and len(files) == 1:
        meant = {"train": files}
    if "train" not in meant or any(len(own) > 1 for own in meant.values()):
        names = ", ".join(file.name for file in files[:SHOWN]) + (", ..." if len(files) > SHOWN else "")
        raise UserError(
            f"--data {data}: no file there is called train.jsonl, train.csv or the like (it holds {names or 'no file'});"
            ' rename them to train, dev and test, or name them with --set \'data.files={"train": "...", "dev": "..."}\''
        )
    by_split = {split: meant[split][0] for split in STEMS if split in meant}
    given = {split: file.name for split, file in by_split.items()}
    said = ", ".join(f"{name} for {split}" for split, name in given.items())
    return Files(by_split, {"path": data, "files": given}, f"by their names, {said}")


def data_section(files: Files, task: Task) -> dict[str, Any]:
    """``data`` of a run file: with names of files where the task's own patterns would not find the same ones."""
    if "files" in files.section:
        return files.section
    found = {split: file for split, (file, _) in split_files(task, Source(files.section["path"])).items()}
    if found == files.by_split:
        return files.section
    folder = expand(files.section["path"])
    names = {split: str(file.relative_to(folder)) for split, file in files.by_split.items()}
    return {**files.section, "files": names}


def layout_of(file: Path, kind: str | None) -> str:
    """How the rows of a training file are written: ``table``, ``columns`` (CoNLL's) or ``questions`` (SQuAD's).

    Raises :class:`UserError` where two readings are plausible and ``kind`` does not tell.
    """
    if file.suffix == ".json":
        _, first = next(iter(_guarded(file, stream_rows(file))), ("", {}))
        return "questions" if "paragraphs" in first else "table"
    if file.suffix in TABLES and file.suffix != ".tsv":
        if file.suffix == ".csv":
            _check_commas(file)
        return "table"
    first_line, has_gaps = _lines_of(file)
    is_table = first_line.startswith(("{", "[")) or "\t" in first_line
    if kind is not None:
        return "columns" if kind == "tagging" and not first_line.startswith(("{", "[")) else "table"
    if not has_gaps or first_line.startswith(("{", "[")):
        if is_table:
            return "table"
        raise UserError(
            f"{file}: neither a table (JSON lines, CSV, or columns between tabs) nor one word and its tag a line with an empty"
            " line between sentences; save it as one of these"
        )
    names = {name.strip().lower() for name in first_line.split("\t")}
    if is_table and names & {"text", "sentence", "label", "source", "target", "question"}:
        raise UserError(
            f"{file}: its first line could be names of columns ({', '.join(sorted(names))}), and its empty lines could part"
            " tagged sentences; say which with --kind classification (or another) or --kind tagging"
        )
    return "columns"


def _check_commas(file: Path) -> None:
    """Raise :class:`UserError` for a table that parts its columns otherwise than by commas, as some programs save CSV."""
    first, _ = _lines_of(file)
    other = next(
        (name for mark, name in ((";", "semicolons"), ("\t", "tabs")) if mark in first and "," not in first), None
    )
    if other is not None:
        raise UserError(
            f"{file}: its columns are parted by {other}; save it with commas, or with tabs as {file.stem}.tsv"
        )


def _lines_of(file: Path) -> tuple[str, bool]:
    """The first line that is not empty ("" where there is none), and whether an empty one stands between two that are not."""
    first, is_gap, has_gaps = "", False, False
    try:
        with file.open(encoding="utf-8-sig") as lines:
            for line in islice(lines, LOOKED):
                if line.strip():
                    has_gaps |= is_gap and bool(first)
                    first, is_gap = first or line.rstrip("\n"), False
                else:
                    is_gap = True
    except UnicodeDecodeError as error:
        raise UserError(f"{file}{undecodable_line(file)}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    return first, has_gaps


def _guarded(file: Path, rows: Iterable[LocatedRow]) -> Iterable[LocatedRow]:
    """The rows of a file of which at least one is needed."""
    is_empty = True
    for row in rows:
        is_empty = False
        yield row
    if is_empty:
        raise UserError(f"{file}: holds no rows; give it some, one example each")


def look(file: Path, task: Task | None) -> Split:
    """The rows of a file as the task reads them; ``None``: as a table. Raises :class:`UserError`."""
    rows = iter(_guarded(file, stream_rows(file, task)))
    kept = list(islice(rows, LOOKED))
    return Split(file, kept, len(kept) + sum(1 for _ in rows))
