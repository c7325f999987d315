"""What files hold, told apart by content; large ones are read once and remembered by their place, size and times."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from prompt_tuning.storage.atomic import sha256, write_json

LARGE = 100_000_000
"""Bytes of a file from which on its digests are kept between runs."""


def user_cache() -> Path | None:
    """The user's folder for what can be made again; None: there is no home."""
    try:
        return Path.home() / ".cache" / "promptfleet"
    except RuntimeError:
        return None


def content_digest(file: Path) -> str:
    """SHA-256 of a file, as hex digits."""
    known = recall(file, "files")
    if known is None or "sha256" not in known:
        known = {"sha256": sha256(file)}
        remember(file, "files", known)
    return str(known["sha256"])


def recall(file: Path, group: str) -> dict[str, Any] | None:
    """What :func:`remember` keeps of a large file that has not changed since."""
    place = _place(file, group)
    if place is None:
        return None
    try:
        known = json.loads(place.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None  # not there, or damaged: read the file again
    return known if isinstance(known, dict) else None


def remember(file: Path, group: str, facts: dict[str, Any]) -> None:
    """Keep what was found out about a large file."""
    place = _place(file, group)
    if place is None:
        return
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        write_json(place, facts)
    except OSError:
        pass  # no room or no right to write there: the next start reads the file again


def _place(file: Path, group: str) -> Path | None:
    """Where facts of a file are kept, named by what changes when its content does; None: not worth it."""
    facts = file.resolve().stat()
    cache = user_cache()
    if facts.st_size < LARGE or cache is None:
        return None
    marks = f"{file.resolve()} {facts.st_dev} {facts.st_ino} {facts.st_size} {facts.st_mtime_ns} {facts.st_ctime_ns}"
    return cache / group / f"{hashlib.sha256(marks.encode()).hexdigest()}.json"
