"""The reference page of run files, generated from their schema; ``promptfleet schema --markdown`` prints it."""

from __future__ import annotations

import json
import types
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from prompt_tuning.settings.schema import RunFile

HEAD = """# Run files

A run file is a JSON object. `extends` names another run file, relative to this one, whose keys it takes over; objects merge
key by key. Every key can be set on the command line: `--set optimizer.lr=0.01`. Unknown keys are errors.
`promptfleet validate FILE` checks a file; `docs/run-file.schema.json` is its JSON Schema, for editors.

This page is generated: `promptfleet schema --markdown > docs/run-file.md`.
"""


def markdown() -> str:
    """The page."""
    fields = RunFile.model_fields.items()
    text = [HEAD, "## Top level", *_table([(name, field) for name, field in fields if _section(field) is None])]
    for name, field in fields:
        section = _section(field)
        if section is not None:
            text += [f"\n## `{name}`", *_table(list(section.model_fields.items()))]
    return "\n".join(text) + "\n"


def json_schema() -> str:
    """The JSON Schema of a run file; in an extending file nothing is required."""
    schema = RunFile.model_json_schema()
    schema.pop("required", None)
    schema["properties"]["extends"] = {"type": "string", "description": "Run file whose keys this one takes over."}
    return json.dumps(schema, indent=2) + "\n"


def _table(fields: list[tuple[str, FieldInfo]]) -> list[str]:
    rows = ["", "| key | type | default | meaning |", "|---|---|---|---|"]
    for name, field in fields:
        default = "required" if field.is_required() else f"`{_json(field.default)}`"
        rows.append(f"| `{field.alias or name}` | {_type(field.annotation)} | {default} | {field.description or ''} |")
        inner = _section(field)
        if inner is not None:
            keys = [(f"{name}.{key}", part) for key, part in inner.model_fields.items()]
            rows += _table(keys)[3:]
    return rows


def _section(field: FieldInfo) -> type[BaseModel] | None:
    for kind in (field.annotation, *get_args(field.annotation)):
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            return kind
    return None


def _json(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return repr(value) if isinstance(value, float) else str(value)


def _type(annotation: Any) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return ", ".join(f"`{_json(a)}`" for a in arguments)
    if origin in (Union, types.UnionType):
        return " or ".join(_type(a) for a in arguments if a is not type(None))
    if origin is list:
        return f"list of {_type(arguments[0])}"
    if origin is dict:
        return "object"
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "object"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", "any").lower())
