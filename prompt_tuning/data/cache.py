"""Tokenised data sets on disk: made once on a host, mapped by its other ranks and by later starts.

An entry is a folder named by everything that its content follows from: the source files' content, the task, template,
tokenizer and limits, and this program's own code on the way from rows to tokens. It can be deleted at any time.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import logging
import shutil
from collections.abc import Mapping
from contextlib import AbstractContextManager
from functools import cache
from pathlib import Path
from typing import Any

from prompt_tuning.data.parts import Described, mapped
from prompt_tuning.kinds import Kind
from prompt_tuning.storage.atomic import alone, write_json
from prompt_tuning.storage.digests import user_cache
from prompt_tuning.tokens.features import Features

logger = logging.getLogger(__name__)

Entry = tuple[tuple[str, ...], dict[str, Features]]
"""Labels in the order of the logits, and features by split."""


class Cache:
    """The place of one data set in a folder of tokenised ones."""

    def __init__(self, folder: Path, facts: Mapping[str, Any]) -> None:
        marks = {**facts, "code": _code()}
        key = hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()
        self.path = folder / key[:32]

    def find(self, kind: Kind) -> Entry | None:
        """What is there; None: nothing, or something damaged, which is removed."""
        try:
            described = json.loads((self.path / "data.json").read_text(encoding="utf-8"))
            splits = {
                one["split"]: mapped(self.path / str(number), kind, one)
                for number, one in enumerate(described["splits"])
            }
            return tuple(described["labels"]), splits
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            logger.warning("%s is damaged (%s) and is made anew", self.path, error)
            shutil.rmtree(self.path, ignore_errors=True)
            return None

    def alone(self) -> AbstractContextManager[None]:
        """Wait until no other process makes this entry. Raises :class:`OSError` where nothing can be written."""
        return alone(self.path)


def describe(folder: Path, labels: tuple[str, ...], splits: Mapping[str, Described]) -> None:
    """Write what the files of an entry do not say; splits stay in their order."""
    listed = [{"split": split, **described} for split, described in splits.items()]
    write_json(folder / "data.json", {"labels": list(labels), "splits": listed})


def default_folder() -> Path | None:
    """Where tokenised data lie if nobody says otherwise; None: nowhere."""
    home = user_cache()
    return None if home is None else home / "data"


@cache
def _code() -> str:
    """A digest of all code that tokens follow from."""
    found = hashlib.sha256()
    for name in ("tokenizers", "transformers"):
        found.update(f"{name} {importlib.metadata.version(name)} ".encode())
    package = Path(__file__).resolve().parents[1]
    for folder in ("data", "formats", "kinds", "tasks", "tokens"):
        for file in sorted((package / folder).rglob("*.py")):
            found.update(file.read_bytes())
    return found.hexdigest()
