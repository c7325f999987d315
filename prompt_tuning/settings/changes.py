"""What a key of a run file changes, as its field says; without a word it is the experiment, the numbers themselves."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Literal, get_args

from pydantic import BaseModel

Change = Literal["experiment", "parallel", "launch", "people"]
"""The numbers; rounding and memory alone; where and how a run goes on; nothing that a run does."""

PARALLEL: dict[str, Any] = {"changes": "parallel"}
LAUNCH: dict[str, Any] = {"changes": "launch"}
PEOPLE: dict[str, Any] = {"changes": "people"}


def keys_that_change(model: type[BaseModel], *changes: Change, prefix: str = "") -> Iterator[str]:
    """The dotted keys of a section, and of the sections in it, that change one of these; a section as a whole is one key."""
    for name, field in model.model_fields.items():
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        key = f"{prefix}{field.alias or name}"
        if extra.get("changes", "experiment") in changes:
            yield key
        else:
            for kind in (field.annotation, *get_args(field.annotation)):
                if isinstance(kind, type) and issubclass(kind, BaseModel):
                    yield from keys_that_change(kind, *changes, prefix=f"{key}.")


def without(settings: dict[str, Any], model: type[BaseModel], *changes: Change) -> dict[str, Any]:
    """Settings as a section has them, but for the keys that change one of these."""
    kept = dict(settings)
    for key in keys_that_change(model, *changes):
        section, _, inner = key.rpartition(".")
        if not section:
            kept.pop(inner, None)
        elif isinstance(kept.get(section), dict):
            kept[section] = {name: value for name, value in kept[section].items() if name != inner}
    return kept
