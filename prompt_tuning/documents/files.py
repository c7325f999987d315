"""The files that a document's rows become, and where passages gather until all are there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.formats import STEMS
from prompt_tuning.formats.tables import TABLES
from prompt_tuning.storage.atomic import write_json, write_text
from prompt_tuning.storage.lines import Target, json_line, recorded
from prompt_tuning.tasks.own.document import TEACHER

Identity = dict[str, Any]
"""What rows are made from, by what and how."""

MANIFEST = "synthesis.json"
"""The identity of the training rows beside it."""
DEV_SHARE = 10
"""Of so many rows one becomes dev where nobody has written one."""


def gathering(folder: Path) -> Target:
    """Where passages gather, a line each: with the number of one its rows."""
    return Target(str(folder), folder / "passages.jsonl", option="data.path")


def is_complete(folder: Path, identity: Identity) -> bool:
    """Whether the rows are there, made just so. Raises :class:`UserError` where others are, or were begun."""
    begun = recorded(gathering(folder))
    if begun not in (None, identity):
        raise UserError(
            f"{gathering(folder).partial} was begun from another document, by another model or otherwise; remove it to start anew"
        )
    there = _files_of(folder, "train")
    if not there or begun is not None:  # cut off while it wrote the files, it writes them again
        return False
    try:
        if json.loads((folder / MANIFEST).read_text(encoding="utf-8")) == identity:
            return True
        why = "from another document, by another model or otherwise"
    except (OSError, ValueError):
        why = "not by promptfleet synthesise"
    raise UserError(f"{there[0]} is there, made {why}; move it away, or name another data.path")


def write_splits(folder: Path, identity: Identity) -> dict[str, int]:
    """From the passages that have gathered to train, dev where people have written none, and the manifest; rows by split."""
    lines = gathering(folder).partial.read_bytes().splitlines()
    digest = identity["document"]["sha256"]
    rows = [{**row, "document": digest} for line in lines for row in json.loads(line)["rows"]]
    if len(rows) < 2:
        raise UserError(
            f"{folder}: the model has asked and answered {len(rows)} questions, too few to learn from; try a larger model"
        )
    parts = {"train": rows}
    if not any(map(_is_of_people, _files_of(folder, "dev"))):
        every = min(DEV_SHARE, len(rows))
        parts = {"dev": rows[::every], "train": [row for place, row in enumerate(rows) if place % every]}
    for split, own in parts.items():
        write_text(folder / f"{split}.jsonl", b"".join(json_line(row) for row in own).decode())
    write_json(folder / MANIFEST, identity)
    return {split: len(own) for split, own in parts.items()}


def _files_of(folder: Path, split: str) -> list[Path]:
    found = [folder / f"{stem}{suffix}" for stem in STEMS[split] for suffix in TABLES]
    return [file for file in found if file.exists()]


def _is_of_people(file: Path) -> bool:
    """Whether a dev file is not what :func:`write_splits` has written when it was cut off."""
    with file.open("rb") as lines:
        return f'"{TEACHER}": '.encode() not in lines.readline()
