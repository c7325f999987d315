"""Classes or amounts: the columns of texts with labels."""

from __future__ import annotations

from typing import Any

from launcher.first_run.columns import Column
from launcher.first_run.files import SHOWN
from launcher.first_run.names import AMOUNTS, LABELS, PAIRS, TEXTS, Columns, columns_there, named
from launcher.first_run.reasons import Recognised
from prompt_tuning.errors import UserError
from prompt_tuning.messages import show

Json = dict[str, Any]

FEW, MANY = 2, 20
"""Whole numbers that are classes without a doubt, up to; and may be, up to."""


def labelled(columns: Columns, given: Json, where: str) -> Recognised:
    """Classification or regression."""
    label = given.get("label") or _label_of(columns, given, where)
    column = columns[label]
    if not column.filled:
        remedy = "fill it, or name another with --set task.label=COLUMN"
        raise UserError(f"{where}: column {show(label)} is empty in all {len(column.values)} rows; {remedy}")
    if not column.is_flat:
        first = next(value for value in column.filled if not isinstance(value, (str, int, float)))
        raise UserError(f"{where}: column {show(label)} holds {show(first)}; a label is one text or number a row")
    texts = _texts_of({name: own for name, own in columns.items() if name != label}, given, where)
    kind, why = _kind_of(column, given.get("kind"), where)
    return Recognised({"kind": kind, **texts, "label": label}, why)


def _label_of(columns: Columns, given: Json, where: str) -> str:
    """The column of labels: `label`, the only one of a usual name, or the only one whose values repeat or are numbers."""
    others = {name: own for name, own in columns.items() if name not in given.values()}
    plain = named(others, "label")
    if plain is not None:
        return plain
    usual = [name for name in others if name.strip().lower() in LABELS]
    likely = usual or [
        name
        for name, own in others.items()
        if not own.is_identifier and own.words < 4 and (own.repeats or own.numbers is not None)
    ]
    if len(likely) == 1:
        return likely[0]
    if likely:
        raise UserError(
            f"{where}: columns {', '.join(map(show, likely[:SHOWN]))} could each be the label; say which with --set task.label=COLUMN"
        )
    raise UserError(
        f"{where}: no column looks like labels (a few names or numbers that repeat); {columns_there(columns)}; name it with --set"
        " task.label=COLUMN, or the kind with --kind (generation: texts to be written)"
    )


def _texts_of(columns: Columns, given: Json, where: str) -> Json:
    """The column of texts, or the two of pairs."""
    if "text" in given:
        pair = given.get("text_pair")
        found = [given["text"], *([pair] if pair is not None else [])]
    else:
        found = _usual_texts(columns) or [
            name
            for name, own in columns.items()
            if own.words >= 2 and not own.is_identifier and len(own.counts) > len(own.filled) / 3
        ]
        if len(found) > 1 and tuple(name.strip().lower() for name in found) not in PAIRS:
            raise UserError(
                f"{where}: columns {', '.join(map(show, found[:SHOWN]))} could each be the text; say which with --set"
                " task.text=COLUMN, and --set task.text_pair=COLUMN where texts come in pairs"
            )
    if not found:
        raise UserError(
            f"{where}: no column looks like texts; {columns_there(columns)}; name it with --set task.text=COLUMN"
        )
    for name in found:
        if not columns[name].filled:
            raise UserError(
                f"{where}: column {show(name)} is empty in all rows; name another with --set task.text=COLUMN"
            )
    return dict(zip(("text", "text_pair"), found, strict=False))


def _usual_texts(columns: Columns) -> list[str]:
    texts = {name: own for name, own in columns.items() if own.words > 0 or not own.filled}
    for first, second in PAIRS:
        pair = [name for name in (named(texts, first), named(texts, second)) if name is not None]
        if len(pair) == 2:
            return pair
    plain = named(texts, "text")
    return [plain] if plain is not None else [name for name in texts if name.strip().lower() in TEXTS]


def _kind_of(label: Column, kind: str | None, where: str) -> tuple[str, str]:
    """Classification or regression, and why. Raises :class:`UserError` where it may be either, or neither."""
    name, num, rows = f"`{label.name}`", len(label.counts), len(label.filled)
    if kind == "regression" and label.numbers is None:
        odd = next((value for value in label.filled if Column("", [value]).numbers is None), None)
        raise UserError(
            f"{where}: column {show(label.name)} holds {show(odd)}, which is no number; kind regression learns numbers"
        )
    if kind is not None:
        return kind, f"{name}, as --kind says; {num} different values in {rows} rows"
    if num == 1:
        raise UserError(
            f"{where}: column {show(label.name)} holds {show(label.filled[0])} in every row; there is nothing to learn"
        )
    ask = "; say which with --kind classification or --kind regression"
    if label.numbers is None:
        if num > rows / 2 and rows > 4:
            raise UserError(
                f"{where}: column {show(label.name)} has {num} different texts in {rows} rows, and a class met once cannot be learnt;"
                " say what it is with --kind classification, or --kind generation where it is to be written"
            )
        return "classification", f"{name} holds {num} names in {rows} rows"
    is_whole = all(number.is_integer() for number in label.numbers)
    if is_whole and num <= FEW:
        return "classification", f"{name} holds {num} whole numbers in {rows} rows, read as names of classes"
    if num > MANY and (not is_whole or num > rows / 2):
        return "regression", f"{name} holds {num} different numbers in {rows} rows"
    if is_whole and num <= MANY and label.name.strip().lower() not in AMOUNTS:
        return (
            "classification",
            f"{name} holds {num} whole numbers in {rows} rows, read as names of classes, not as amounts",
        )
    values = ", ".join(list(label.counts)[:5])
    raise UserError(
        f"{where}: column {show(label.name)} holds {num} different numbers in {rows} rows ({values}{', ...' if num > 5 else ''}), which"
        f" could be classes or amounts{ask}"
    )
