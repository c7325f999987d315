"""Rows of a task's splits: local files, or a hub data set.

Every row keeps the file and line it came from, so that a bad one can be named.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from prompt_tuning.data.hub import read_hub_split
from prompt_tuning.data.rows import Rows
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow, Reader
from prompt_tuning.formats.tables import TABLES, holds_rows, undecodable_line
from prompt_tuning.storage.atomic import expand
from prompt_tuning.storage.digests import content_digest
from prompt_tuning.tasks.types import Task

SPLITS = ("train", "dev", "test")


def read_split(task: Task, path: str | None, split: str, hub_config: str | None = None) -> Rows | None:
    """Rows of one split, or ``None`` where the source has no such split. Raises :class:`UserError`."""
    if path is None or not is_local(path):
        return read_hub_split(task, path, split, hub_config)
    file = _split_files(task, path).get(split)
    return None if file is None else Rows(partial(stream_rows, file, task), partial(content_digest, file))


def is_local(path: str | None) -> bool:
    """Whether ``data.path`` means a folder of this machine, there or not, and no hub id."""
    return path is not None and (Path(path).exists() or path.startswith((".", "/", "~")))


def extra_splits(task: Task, path: str | None) -> list[str]:
    """Names ``test/...`` of the splits beside train, dev and test, sorted."""
    if path is not None and is_local(path):
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
                    # Another task's folder below the same root is no language of this one.
                    if "{name}" not in split or not task.hub_splits or split.format(name=name) in task.hub_splits:
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
    if read is None:
        raise UserError(f"{file}: unknown kind of file; give {', '.join(TABLES)}")
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
