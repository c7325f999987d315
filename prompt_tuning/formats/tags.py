"""Tags of words: the ways to write spans as tags, turned into one, IOB2 (B- starts a span, I- continues it)."""

from __future__ import annotations

OUTSIDE = "O"
"""The tag of a word outside all spans."""

_IOB = {"L": "I", "E": "I", "M": "I", "U": "B", "S": "B"}
"""What BILOU and BIOES write for a span's end and for a span of one word."""


def names_span(tag: str) -> bool:
    """Whether a tag is written in one of the schemes: a prefix (``B-``, ``I-``, ``L-``, ``E-``, ``M-``, ``U-``, ``S-``) and a type."""
    prefix, dash, name = tag.partition("-")
    return bool(dash and name) and (prefix in _IOB or prefix in ("B", "I"))


def to_iob2(tags: list[str]) -> list[str]:
    """Tags in IOB2, from IOB1, IOB2, BILOU or BIOES.

    A span starts at ``B-``, and at an ``I-`` that follows another type or no span, which is how IOB1 writes it. Tags that
    are none of these stay as they are.
    """
    result = []
    previous = ""
    for tag in tags:
        prefix, _, name = tag.partition("-")
        if not names_span(tag):
            previous = ""
            result.append(tag)
            continue
        prefix = _IOB.get(prefix, prefix)
        if name != previous:
            prefix = "B"
        result.append(f"{prefix}-{name}")
        previous = name
    return result


def brackets_to_iob2(cells: list[str]) -> list[str]:
    """Tags of a column of the CoNLL shared tasks: ``(A0*``, ``*``, ``*)``. Raises :class:`ValueError` if it does not close."""
    result, current, opens = [], "", False
    for number, cell in enumerate(cells, 1):
        body, closes = (cell[:-1], True) if cell.endswith(")") else (cell, False)
        if body.startswith("("):
            if current:
                raise ValueError(f"word {number}: {cell!r} opens inside {current!r}")
            current, opens = body[1:].removesuffix("*"), True
            if not current or not body.endswith("*") or "(" in current:
                raise ValueError(f"word {number}: {cell!r} is not like (A0*, * or *)")
        elif body != "*":
            raise ValueError(f"word {number}: {cell!r} is not like (A0*, * or *)")
        if closes and not current:
            raise ValueError(f"word {number}: {cell!r} closes nothing")
        result.append(f"{'B' if opens else 'I'}-{current}" if current else "O")
        opens = False
        if closes:
            current = ""
    if current:
        raise ValueError(f"{current!r} never closes")
    return result


def spans(tags: list[str]) -> list[tuple[str, int, int]]:
    """Spans (type, first word, last word) of IOB2 tags, read leniently: an ``I-`` of a new type starts one."""
    found: list[tuple[str, int, int]] = []
    for index, tag in enumerate(to_iob2(tags)):
        prefix, _, name = tag.partition("-")
        if prefix == "B" and name:
            found.append((name, index, index))
        elif prefix == "I" and name:
            found[-1] = (name, found[-1][1], index)
    return found
