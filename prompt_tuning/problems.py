"""Problems of a run file as sentences: where, the value met, what to do."""

from __future__ import annotations

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, ValidationError


def sentences(error: ValidationError, model: type[BaseModel], where: str = "") -> list[str]:
    """Every problem that a model found; ``where`` names the fleet member it belongs to."""
    return [sentence for item in error.errors() for sentence in _sentences(item, model, where)]


def _sentences(item: Any, model: type[BaseModel], where: str) -> list[str]:
    """One entry of pydantic's as path, value met and remedy; our own validators may join several by line ends."""
    location = [part for part in item["loc"] if not str(part).startswith(("function-", "literal["))]
    dotted = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
    place = f"{where}: {dotted}" if where and dotted else where or dotted
    if item["type"] == "extra_forbidden":
        known = _keys_at(model, location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, 1)
        remedy = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        return [f"{place}: unknown key (value {show(item['input'])}); {remedy}"]
    if item["type"] == "missing":
        return [f"{place}: missing; it has no default"]
    message = item["msg"].removeprefix("Value error, ")
    if not location or item["type"] == "value_error":
        return [f"{place}: {line}" if place and place not in line else line for line in message.splitlines()]
    remedy = f"{message[0].lower()}{message[1:]}".replace("input should be", "give")
    return [f"{place}: {show(item['input'])} does not fit: {remedy}"]


def show(value: Any) -> str:
    """A value in JSON, cut to a line."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(model: type[BaseModel], location: list[Any]) -> list[str]:
    for part in location:
        field = model.model_fields.get(str(part))
        annotation = field.annotation if field else None
        found = [t for t in (annotation, *get_args(annotation)) if isinstance(t, type) and issubclass(t, BaseModel)]
        if not found:
            return []
        model = found[0]
    return [field.alias or name for name, field in model.model_fields.items()]


def difference(old: Any, new: Any, where: str = "") -> str:
    """The first place where two unequal JSON values differ, as a phrase."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in sorted({*old, *new}):
            if old.get(key) != new.get(key):
                return difference(old.get(key), new.get(key), f"{where}.{key}".lstrip("."))
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, (a, b) in enumerate(zip(old, new, strict=True)):
            if a != b:
                return difference(a, b, f"{where}[{index}]")
    return f"{where}: {show(old)} there, {show(new)} now"
