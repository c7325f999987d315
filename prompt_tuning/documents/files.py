"""Where a document's rows gather while they are made, and the files that they become."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.formats import STEMS
from prompt_tuning.formats.tables import TABLES
from prompt_tuning.storage.atomic import alone, write_json, write_text
from prompt_tuning.storage.lines import json_line

Rows = list[dict[str, Any]]

MANIFEST = "synthesis.json"
"""What the training rows beside it were made from, by what and how."""
DEV_SHARE = 10
"""Of so many rows one becomes dev where nobody has written one."""


class Folder:
    """A document's data folder: ``train.jsonl`` and ``synthesis.json`` to be, and the passages done so far in a partial file."""

    def __init__(self, path: Path, identity: dict[str, Any]) -> None:
        self.path, self.identity = path, identity
        self.partial = path / "train.jsonl.partial"

    @contextmanager
    def alone(self) -> Iterator[None]:
        """Wait until no other process fills this folder."""
        with alone(self.partial):
            yield
            if not self.partial.exists():
                self.partial.with_suffix(".lock").unlink(missing_ok=True)

    def is_complete(self) -> bool:
        """Whether the rows are there, made just so. Raises :class:`UserError` where there are others."""
        found = [self.path / f"{stem}{suffix}" for stem in STEMS["train"] for suffix in TABLES]
        there = [file for file in found if file.exists()]
        if not there:
            return False
        try:
            if json.loads((self.path / MANIFEST).read_text(encoding="utf-8")) == self.identity:
                return True
            why = "from another document, by another model or otherwise"
        except (OSError, ValueError):
            why = "not by promptfleet synthesise"
        raise UserError(f"{there[0]} is there, made {why}; move it away, or name another data.path")

    def done(self) -> list[Rows]:
        """Rows of the passages that an interrupted start has done, in order; what it left of another is forgotten."""
        if not self.partial.exists():
            return []
        passages: list[Rows] = []
        lines = self.partial.read_bytes().split(b"\n")
        for number, line in enumerate(lines[:-1]):  # behind the last line break is half a line, or nothing
            try:
                content = json.loads(line)
            except ValueError:
                break
            if number == 0:
                if content != self.identity:
                    raise UserError(
                        f"{self.partial} was begun from another document, by another model or otherwise; remove it to start anew"
                    )
            else:
                passages.append(content["rows"])
        self.partial.write_bytes(b"\n".join([*lines[: len(passages) + 1], b""]) if passages else b"")
        return passages

    def add(self, rows: Rows) -> None:
        """Keep the rows of the next passage."""
        is_new = not self.partial.exists() or not self.partial.stat().st_size
        with self.partial.open("ab") as file:
            if is_new:
                file.write(json_line(self.identity))
            file.write(json_line({"rows": rows}))

    def finish(self, passages: list[Rows]) -> dict[str, int]:
        """Write the files; rows by split."""
        rows = [{**row, "document": self.identity["document"]["sha256"]} for own in passages for row in own]
        if len(rows) < 2:
            raise UserError(
                f"{self.path}: the model has asked and answered {len(rows)} questions, too few to learn from; try a larger model"
            )
        dev = [self.path / f"{stem}{suffix}" for stem in STEMS["dev"] for suffix in TABLES]
        parts = {"train": rows}
        if not any(file.exists() for file in dev):
            parts = {
                "dev": rows[:: min(DEV_SHARE, len(rows))],
                "train": [row for place, row in enumerate(rows) if place % min(DEV_SHARE, len(rows))],
            }
        write_json(self.path / MANIFEST, self.identity)
        for split, own in parts.items():
            write_text(self.path / f"{split}.jsonl", b"".join(json_line(row) for row in own).decode())
        self.partial.unlink(missing_ok=True)
        return {split: len(own) for split, own in parts.items()}
