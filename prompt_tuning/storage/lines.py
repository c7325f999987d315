"""Lines of JSON, written as they come: to a partial file beside the wanted one, or straight into a pipe or a device."""

from __future__ import annotations

import fcntl
import json
import math
import os
import re
import shutil
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from prompt_tuning.errors import UserError
from prompt_tuning.storage.atomic import write_json

_DESCRIPTORS = {"-": 1, "/dev/stdout": 1, "/dev/stderr": 2}


def json_line(value: Mapping[str, Any]) -> bytes:
    """One line of valid UTF-8 JSON; a number that is not finite is null, half a surrogate pair stays an escape."""
    try:
        text = json.dumps(value, ensure_ascii=False, default=str, allow_nan=False)
    except ValueError:
        value = finite(value)
        text = json.dumps(value, ensure_ascii=False, default=str)
    try:
        return text.encode() + b"\n"
    except UnicodeEncodeError:
        return json.dumps(value, default=str).encode() + b"\n"


def finite(value: Any) -> Any:
    """``value`` with None for every number in it that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def start_of_line(row: Mapping[str, Any]) -> bytes:
    """How the line of ``row`` with further keys behind its own begins."""
    return json_line(row)[:-2] + (b", " if row else b"")


@dataclass(frozen=True)
class Target:
    """Where lines go: a regular ``file``, links followed, or an open ``descriptor``, or else the stream called ``name``."""

    name: str
    file: Path | None = None
    descriptor: int | None = None
    option: str = "--output"
    """What has named it, for messages."""

    @property
    def partial(self) -> Path:
        """Where the lines of a file gather until it is complete."""
        assert self.file is not None
        return self.file.with_name(f"{self.file.name}.partial")

    @property
    def record(self) -> Path:
        """Where the identity of those lines stands."""
        return self.partial.with_name(f"{self.partial.name}.json")

    @property
    def is_terminal(self) -> bool:
        """Whether the lines are seen as they come."""
        return self.descriptor is not None and os.isatty(self.descriptor)


def find_target(name: str) -> Target:
    """What ``name`` stands for, checked before any work is done. Raises :class:`UserError` where nothing can be written."""
    open_one = re.fullmatch(r"/(?:dev|proc/self)/fd/(\d+)", name)
    descriptor = int(open_one[1]) if open_one else _DESCRIPTORS.get(name)
    if descriptor is not None:
        if descriptor == 1 and sys.stdout is None:
            raise UserError("standard output is closed; give --output a file")
        try:
            os.fstat(descriptor)
        except (OSError, OverflowError):
            raise UserError(f"--output {name}: there is no open file of this number; choose another") from None
        return Target(name, descriptor=descriptor)
    path = Path(name)
    try:
        if path.is_dir():
            raise UserError(f"--output {name}: a folder; give a file in it, such as {path / 'predictions.jsonl'}")
        if path.exists() and not path.is_file():
            if not os.access(path, os.W_OK):
                raise UserError(f"--output {name}: may not be written to; choose another")
            return Target(name)
        file = Path(os.path.realpath(path))
        folder = file.parent
        if not folder.exists():
            raise UserError(f"--output {name}: there is no folder {folder}; create it or choose another")
        if not folder.is_dir():
            raise UserError(f"--output {name}: {folder} is not a folder; choose another")
        if len(os.fsencode(file.name)) > 230:  # beside it come names with .partial.json and more behind
            raise UserError(f"--output {name}: the name is too long; choose a shorter one")
    except (OSError, RuntimeError) as error:
        raise UserError(f"--output {name}: {getattr(error, 'strerror', None) or error}; choose another") from None
    if not os.access(folder, os.W_OK | os.X_OK) or (file.exists() and not os.access(file, os.W_OK)):
        what = file if file.exists() and os.access(folder, os.W_OK | os.X_OK) else folder
        raise UserError(f"--output {name}: {what} may not be written to; choose another")
    return Target(name, file)


class Lines:
    """An open target; ``count``: its lines so far, those of an earlier run included."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream, self.count = stream, 0

    def keep(self, starts: Iterable[bytes]) -> int:
        """Keep the complete lines of an earlier run that begin as they should now, up to the first that does not."""
        size = 0
        self.stream.seek(0)
        for start in starts:
            line = self.stream.readline()
            if not line.endswith(b"\n") or not line.startswith(start):
                break
            size += len(line)
            self.count += 1
        self.stream.seek(size)
        self.stream.truncate()
        return self.count

    def write(self, lines: Sequence[bytes]) -> None:
        """Write lines and hand them to the operating system."""
        self.stream.write(b"".join(lines))
        self.stream.flush()
        self.count += len(lines)


@contextmanager
def open_lines(target: Target, identity: dict[str, Any], starts: Iterable[bytes]) -> Iterator[Lines]:
    """Write to a target; a file appears once the block has ended without error, and else stays as it was.

    The lines of a file that an earlier run with the same ``identity`` left unfinished are kept where they begin as
    ``starts`` says. Raises :class:`UserError` where another process writes the same file, or where it cannot be written.
    """
    if target.file is None:
        with _stream(target) as stream:
            yield Lines(stream)
        return
    partial, record = target.partial, target.record
    if partial.exists() and not record.exists():
        raise UserError(f"{partial}: not left by an earlier run of this command; move it away")
    try:
        is_known = recorded(target) == identity
        with os.fdopen(os.open(partial, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as stream:
            _lock(stream, target)
            lines = Lines(stream)
            write_json(record, identity)
            lines.keep(starts if is_known else ())
            try:
                yield lines
            except BaseException:
                if not lines.count:
                    partial.unlink(missing_ok=True)
                    record.unlink(missing_ok=True)
                raise
            stream.flush()
            os.fsync(stream.fileno())
            if target.file.exists():
                shutil.copymode(target.file, partial)
            partial.replace(target.file)
            record.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{target.option} {target.name}: cannot be written: {error.strerror or error}") from None


def recorded(target: Target) -> Any:
    """The identity of the lines that an unfinished run has left for a target; None: there is none that can be read."""
    try:
        return json.loads(target.record.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _lock(stream: BinaryIO, target: Target) -> None:
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(
            f"{target.partial}: another process is writing it; wait for it or choose another {target.option}"
        ) from None
    except OSError:
        pass  # a file system without locks


@contextmanager
def _stream(target: Target) -> Iterator[BinaryIO]:
    if target.descriptor == 1:
        sys.stdout.flush()
        yield sys.stdout.buffer
        return
    try:
        number = os.open(target.name, os.O_WRONLY) if target.descriptor is None else os.dup(target.descriptor)
        with os.fdopen(number, "wb") as stream:
            yield stream
    except BrokenPipeError:
        raise
    except OSError as error:
        raise UserError(f"--output {target.name}: cannot be written: {error.strerror or error}") from None
