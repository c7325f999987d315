"""Rows of one file, pipe or standard input, one by one, as often as wanted.

What can be read only once is copied to a temporary file first, so that all formats and a second look work there too.
"""

from __future__ import annotations

import errno
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prompt_tuning.data.read import stream_rows
from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.tasks.types import Task

STANDARD = "-"
"""Name of standard input and standard output."""
_STDIN = ("/dev/stdin", "/dev/fd/0", "/proc/self/fd/0", STANDARD)


@dataclass(frozen=True)
class Source:
    """Where rows come from: a regular ``file``, and the name that messages give it."""

    file: Path
    name: str
    task: Task

    def rows(self) -> Iterator[LocatedRow]:
        """All rows from the first on. Raises :class:`UserError` naming file and line."""
        try:
            for where, row in stream_rows(self.file, self.task):
                yield self._named(where), row
        except UserError as error:
            raise UserError(self._named(str(error))) from None

    def _named(self, text: str) -> str:
        return text.replace(str(self.file), self.name)


@contextmanager
def open_source(name: str, task: Task, suffix: str | None = None) -> Iterator[Source]:
    """The rows of what ``name`` stands for: a file, a pipe, a device, or ``-`` for standard input.

    ``suffix`` says how to read it whatever it is called; without one a pipe whose name has none holds JSON lines.
    Raises :class:`UserError` for what cannot be read.
    """
    suffix = None if suffix is None else f".{suffix.removeprefix('.')}"
    if suffix is not None and not re.fullmatch(r"\.\w+", suffix):
        raise UserError(f"--format {suffix[1:]!r}: not the end of a file's name; give jsonl, csv, tsv or parquet")
    path, is_standard = Path(name), name in _STDIN
    if not is_standard and (path.is_file() or not path.exists()) and suffix is None:
        yield Source(path, name, task)
        return
    if not is_standard and path.is_dir():
        raise UserError(f"{name}: a folder; give one of its files")
    with tempfile.TemporaryDirectory(prefix="promptfleet-") as folder:
        file = Path(folder) / f"rows{suffix or path.suffix or '.jsonl'}"
        if not is_standard and (path.is_file() or not path.exists()):
            file.symlink_to(path.absolute())
        else:
            _copy(name, is_standard, file)
        yield Source(file, "standard input" if is_standard else name, task)


def _copy(name: str, is_standard: bool, file: Path) -> None:
    """Copy all that a pipe, a device or standard input holds."""
    if is_standard and sys.stdin is None:
        raise UserError("standard input is closed; give --input a file")
    try:
        with file.open("wb") as copy:
            if is_standard:
                shutil.copyfileobj(sys.stdin.buffer, copy)
            else:
                with Path(name).open("rb") as stream:
                    shutil.copyfileobj(stream, copy)
    except OSError as error:
        what = f"no room for a copy in {file.parent.parent}" if error.errno == errno.ENOSPC else error.strerror
        raise UserError(f"{'standard input' if is_standard else name}: cannot be read: {what}; give a file") from None
