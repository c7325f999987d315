"""How a label in a file is read: the same way in every split, as it is meant or not at all."""

from __future__ import annotations

import difflib
import math
import re
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any

_WHOLE = re.compile(r"-?[0-9]+\.0+")


def label_name(value: Any) -> str | None:
    """The name that a raw label stands for; None where a row has none (null, NaN, nothing but blanks).

    Blanks around a name do not count, and a whole number is one however it is written: 1, 1.0, "1" and "1.0 ".
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    name = str(value).strip()
    if _WHOLE.fullmatch(name):
        name = name.partition(".")[0]
    return name or None


def label_index(value: Any, labels: tuple[str, ...], is_named: bool) -> int | None:
    """Index of a raw label in ``labels``; None for an unlabelled row (as :func:`label_name`, or -1 unless named so).

    ``is_named``: the task names its labels itself. Then their case does not count, and numbers that are no names are
    indices; labels that were collected from data are names alone. Raises :class:`KeyError` for one that is none of them.
    """
    name, names = label_name(value), [label_name(label) for label in labels]
    if name is None:
        return None
    if name in names:
        return names.index(name)
    if name == "-1":
        return None
    if is_named:
        by_number = any((label or "").lstrip("-").isdigit() for label in names)
        if name.isascii() and name.isdecimal() and len(name) < 10 and int(name) < len(labels) and not by_number:
            return int(name)
        folded = [(label or "").lower() for label in names]
        if name.lower() in folded:
            return folded.index(name.lower())
    raise KeyError(value)


def why_unknown(value: Any, labels: tuple[str, ...], is_named: bool) -> str:
    """What to say of a label that is none of ``labels``: a phrase that follows its place."""
    name = label_name(value) or ""
    known = ", ".join(labels[:20]) + (", ..." if len(labels) > 20 else "")
    near = difflib.get_close_matches(name.casefold(), [label.casefold() for label in labels], 1)
    hint = ""
    if near:
        hint = f"; did you mean {next(label for label in labels if label.casefold() == near[0])!r}?"
    elif name.lstrip("-").isdigit():
        count = (
            f"count from 0, up to {len(labels) - 1}"
            if is_named
            else "stand for classes only where the task's `labels` name them"
        )
        hint = f"; numbers {count}"
    return f"label {value!r} is none of {known}{hint}"


def one_spelling(spellings: Mapping[str, Iterable[str]]) -> list[str]:
    """A sentence for each label that is written in several ways, from names to the ways."""
    several = {name: sorted(ways) for name, ways in spellings.items()}
    return [
        f"{', '.join(map(repr, ways))} are read as one label, {name!r}"
        for name, ways in several.items()
        if len(ways) > 1
    ]


def near_equal(counts: Mapping[str, int]) -> list[str]:
    """A sentence for each group of labels that differ in case, blanks or the form of a character alone."""
    groups: dict[str, list[str]] = {}
    for name in counts:
        folded = " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())
        groups.setdefault(folded, []).append(name)
    return [
        " and ".join(f"{name!r} ({counts[name]} rows)" for name in sorted(group)) + " are different classes, as written"
        for group in groups.values()
        if len(group) > 1
    ]
