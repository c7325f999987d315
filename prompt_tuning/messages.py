"""What is wrong with settings, as sentences: where, the value met, what to do."""

from __future__ import annotations

import difflib
import json
from typing import Any, get_args

from pydantic import BaseModel, ValidationError

MISSING = "missing; it has no default"
_NOT = {
    "int_type": "is not a whole number",
    "int_from_float": "is not a whole number",
    "float_type": "is not a number",
    "bool_type": "is neither true nor false",
    "string_type": "is not a text",
    "list_type": "is not a list",
    "dict_type": "is not an object",
    "model_type": "is not an object",
    "finite_number": "is not a finite number",
    "string_too_short": "is empty; give a value or leave the key out",
    "string_pattern_mismatch": "is no name; start with a letter or digit and use only letters, digits, `_`, `.` and `-`",
}
_BOUND = {
    "greater_than": ("gt", "give a number greater than"),
    "greater_than_equal": ("ge", "give a number of at least"),
    "less_than": ("lt", "give a number less than"),
    "less_than_equal": ("le", "give a number of at most"),
    "too_short": ("min_length", "the least number of entries is"),
    "string_too_long": ("max_length", "the greatest number of characters is"),
}
_PLAIN_TYPES: dict[str, tuple[type, ...]] = {"int_type": (int,), "float_type": (int, float), "bool_type": (bool,)}


def sentences(error: ValidationError, model: type[BaseModel], also: tuple[str, ...] = ()) -> list[tuple[str, str]]:
    """Every problem as dotted path and sentence; ``also`` are keys known at the top beside the model's own.

    The path is empty where the sentence names it itself. A ValueError of several lines is several problems.
    """
    found = []
    for item in error.errors():
        if any(str(part).startswith("literal[") for part in item["loc"]):
            continue  # the branch of a union that was not meant
        location = [part for part in item["loc"] if not str(part).startswith("list[")]
        path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
        if item["type"] == "value_error":
            lines = str(item["ctx"]["error"]).splitlines()
            found += [("" if path and line.startswith((f"{path}=", f"{path}.")) else path, line) for line in lines]
        else:
            known = _keys_at(model, location[:-1]) + (list(also) if len(location) == 1 else [])
            found.append((path, _sentence(item, known)))
    return found


def _sentence(item: Any, known: list[str]) -> str:
    kind, value, context = item["type"], show(item["input"]), item.get("ctx", {})
    if kind == "extra_forbidden":
        near = difflib.get_close_matches(str(item["loc"][-1]), known, 1)
        remedy = f"did you mean `{near[0]}`?" if near else f"known keys: {', '.join(known)}"
        return f"unknown key (value {value}); {remedy}"
    if kind == "missing":
        return MISSING
    if kind == "literal_error":
        choices = context["expected"].replace("'", "").replace(" or ", ", ").split(", ")
        near = difflib.get_close_matches(str(item["input"]), choices, 1)
        return f"{value} is unknown; {f'did you mean {near[0]!r}? ' if near else ''}choose {context['expected']}"
    if kind in _BOUND:
        bound, words = _BOUND[kind]
        return f"{value} is out of range; {words} {context[bound]:.20g}"
    if kind in _NOT:
        return f"{value} {_NOT[kind]}{_unquoted(kind, item['input'])}"
    return f"{value} does not fit: {item['msg'][:1].lower()}{item['msg'][1:]}"


def _unquoted(kind: str, value: Any) -> str:
    """The hint for "5" where 5 is meant."""
    if not isinstance(value, str) or kind not in _PLAIN_TYPES:
        return ""
    try:
        inner = json.loads(value.lower())
    except (ValueError, RecursionError):
        return ""
    meant = isinstance(inner, _PLAIN_TYPES[kind]) and isinstance(inner, bool) == (kind == "bool_type")
    return f"; write {json.dumps(inner)} without quotes" if meant else ""


def show(value: Any) -> str:
    """A value in JSON, cut to a line."""
    try:
        text = json.dumps(value, default=str)
    except ValueError:  # a number of thousands of digits
        text = "a number out of all bounds"
    return text if len(text) <= 60 else text[:57] + "..."


def _keys_at(model: type[BaseModel], location: list[Any]) -> list[str]:
    for part in location:
        if isinstance(part, int):
            continue
        field = model.model_fields.get(str(part))
        kinds = [field.annotation if field else None]
        for _ in range(2):  # inside an optional, and inside a list of it
            kinds += [inner for kind in kinds for inner in get_args(kind)]
        found = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
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
