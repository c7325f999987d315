"""Run files laid over one another: how they are read, extended, merged and overridden by dotted keys."""

from __future__ import annotations

import copy
import difflib
import json
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.messages import show

Json = dict[str, Any]


def read_json(path: Path) -> Json:
    """Parse a JSON object from a file, or raise :class:`UserError` with file, line and column."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.json")], 1)
        hint = f"; did you mean {path.parent / near[0]}?" if near else "; give the path of a run file"
        raise UserError(f"{path}: no such file{hint}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give a JSON file") from None
    except ValueError as error:
        raise UserError(f"{str(path)!r}: no path of a file ({error})") from None
    try:
        raw = json.loads(text, object_pairs_hook=_once_each)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}:{error.colno}: not JSON: {error.msg}") from None
    except RecursionError:
        raise UserError(f"{path}: JSON nested too deeply") from None
    except _Twice as error:
        raise UserError(f"{path}: key `{error}` stands twice in one object; keep one") from None
    except ValueError:
        raise UserError(f"{path}: a number has too many digits") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: the file holds {show(raw)}; it must be a JSON object: {{...}}")
    return raw


class _Twice(Exception):
    pass


def _once_each(pairs: list[tuple[str, Any]]) -> Json:
    result = dict(pairs)
    if len(result) < len(pairs):
        keys = [key for key, _ in pairs]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise _Twice(twice)
    return result


def merge(base: Json, over: Json) -> Json:
    """Deep copy of ``base`` with ``over`` laid on top; objects merge key by key, all else is replaced."""
    result = copy.deepcopy(base)
    for key, value in over.items():
        both = isinstance(value, dict) and isinstance(result.get(key), dict)
        # A task object describes one data set, and init one text: laying one over another would mix two.
        result[key] = merge(result[key], value) if both and key not in ("task", "init") else copy.deepcopy(value)
    return result


def extend(raw: Json, path: Path, chain: tuple[Path, ...] = ()) -> Json:
    """``raw`` over the files that it extends. Raises :class:`UserError`, also for a circle."""
    raw = dict(raw)
    target = raw.pop("extends", None)
    if target is None:
        return copy.deepcopy(raw)
    if not isinstance(target, str) or "\0" in target:
        raise UserError(f"{path}: `extends` is {show(target)}; give the path of a run file, relative to this one")
    parent = path.parent / target
    if parent.resolve() in chain:
        raise UserError(f"{path}: `extends` runs in a circle through {parent}")
    try:
        inherited = read_json(parent)
    except UserError as error:
        raise UserError(f"{path}: `extends`: {error}") from None
    return merge(extend(inherited, parent, (*chain, parent.resolve())), raw)


def parse_set(item: str) -> tuple[str, Any]:
    """Dotted key and value of ``section.key=value``; a value that is not JSON is a text. Raises :class:`UserError`."""
    dotted, equals, text = item.partition("=")
    if not equals or not all(dotted.split(".")):
        raise UserError(f"--set {show(item)}: write section.key=value, for example --set optimizer.lr=0.01")
    if dotted == "extends":
        raise UserError("--set extends: a run file is extended before it is overridden; set its keys one by one")
    try:
        return dotted, json.loads(text)
    except json.JSONDecodeError:
        return dotted, text
    except RecursionError:
        raise UserError(f"--set {dotted}: JSON nested too deeply") from None
    except ValueError:
        raise UserError(f"--set {dotted}: the value has a number of too many digits") from None


def put(target: Json, dotted: str, value: Any, label: str) -> None:
    """Set a key, making objects on the way. Raises :class:`UserError`, which begins with ``label``."""
    *sections, key = dotted.split(".")
    for depth, section in enumerate(sections, 1):
        inner = target.get(section)
        if inner is not None and not isinstance(inner, dict):
            raise UserError(f"{label}: `{'.'.join(sections[:depth])}` is {show(inner)}, not an object")
        target[section] = dict(inner or {})
        target = target[section]
    target[key] = copy.deepcopy(value)
