"""Rows of a task's splits: local files, or a hub data set.

Every row keeps the file and line it came from, so that a bad one can be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from prompt_tuning.data.hub import read_hub_split
from prompt_tuning.data.rows import Rows
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow, Reader
from prompt_tuning.formats.tables import TABLES, holds_rows, table_of_any_name, undecodable_line
from prompt_tuning.storage.atomic import expand
from prompt_tuning.storage.digests import content_digest
from prompt_tuning.tasks.types import Task

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class Source:
    """Where a task's rows are: ``data.path``, ``data.files`` and the configuration of a hub data set."""

    path: str | None = None
    files: Mapping[str, str] | None = None
    hub_config: str | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return self.path or ("data.files" if self.files else "the hub")


def read_split(task: Task, source: Source, split: str) -> Rows | None:
    """Rows of one split, or ``None`` where the source has no such split. Raises :class:`UserError`."""
    if not is_local(source):
        return read_hub_split(task, source.path, split, source.hub_config)
    found = split_files(task, source).get(split)
    if found is None:
        return None
    file, part = found
    return Rows(
        partial(_rows_of_part, file, task, part),
        lambda: f"{content_digest(file)} {part} {file.suffix}",
        is_document=file.suffix == ".json",
    )


def _rows_of_part(file: Path, task: Task, part: str | None) -> Iterator[LocatedRow]:
    """The rows of a file; ``part``: those alone whose column of that purpose, where they have it, holds this."""
    for where, row in stream_rows(file, task):
        if part is None or task.files.parted_by is None or row.get(task.files.parted_by[0], part) == part:
            yield where, row


def is_local(source: Source) -> bool:
    """Whether a source means files of this machine, there or not, and no hub id."""
    path = source.path
    return bool(source.files) or (path is not None and (Path(path).exists() or path.startswith((".", "/", "~"))))


def extra_splits(task: Task, source: Source) -> list[str]:
    """Names ``test/...`` of the splits beside train, dev and test, sorted."""
    if is_local(source):
        return sorted(set(split_files(task, source)) - set(SPLITS))
    return sorted(task.hub_splits if source.path is None else ())


def split_files(task: Task, source: Source) -> dict[str, tuple[Path, str | None]]:
    """The file of each split, and the part of it where several share one. Raises :class:`UserError` where two could be
    meant."""
    if source.files:
        folder = expand(source.path) if source.path else Path()
        return {split: (folder / expand(name), None) for split, name in source.files.items()}
    assert source.path is not None
    folder = expand(source.path)
    if not folder.is_dir():
        what = "a file" if folder.exists() else "no such folder"
        raise UserError(
            f"data.path={source.path}: {what}; give the folder that holds train.jsonl, dev.jsonl, ..., or data.files"
        )
    found: dict[str, tuple[Path, str | None]] = {}
    for base in [*(folder / name for name in task.files.folders), folder]:
        here: dict[str, list[Path]] = {}
        for split, patterns in task.files.patterns.items():
            for pattern in patterns:
                for name, file in _matches(base, pattern if task.files.read else f"{pattern}{{suffix}}"):
                    # Another task's folder below the same root is no language of this one.
                    if "{name}" not in split or not task.hub_splits or split.format(name=name) in task.hub_splits:
                        here.setdefault(split.format(name=name), []).append(file)
        for split, files in here.items():
            if len(files) > 1:
                names = " and ".join(file.name for file in files)
                raise UserError(f"{base}: {names} both look like the {split} split; keep one, or name it in data.files")
            for own, part in _parts(task, split):
                found.setdefault(own, (files[0], part))
    return found


def _parts(task: Task, split: str) -> list[tuple[str, str | None]]:
    """The splits that a file of a split holds, and the part of its rows that each is."""
    if task.files.parted_by is None:
        return [(split, None)]
    if split == "test":
        return [(name, name.partition("/")[2]) for name in task.hub_splits]
    return [(split, task.files.parted_by[1] if split == "dev" else None)]


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
    return list(stream_rows(file, task))


def stream_rows(file: Path, task: Task | None = None) -> Iterator[LocatedRow]:
    """The rows of :func:`read_rows` one by one; errors are raised where they are met."""
    read: Reader | None = TABLES.get(file.suffix)
    if (
        task is not None
        and task.files.read is not None
        and file.suffix not in (".jsonl", ".ndjson", ".csv", ".parquet")
    ):
        read = task.files.read
    read = read or table_of_any_name
    try:
        # Questions come in SQuAD's layout or as rows; any other reader of a task's own is for columns of text.
        if file.suffix == ".json" and (task is None or task.kind != "span" or holds_rows(file)):
            read = TABLES[".json"]
        yield from read(file)
    except FileNotFoundError:
        raise UserError(f"{file}: no such file") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{file}{undecodable_line(file)}: not UTF-8 ({error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{file}: cannot be read: {error.strerror}") from None
