"""The task's own rows in rows of files, checked, and the sequences that a template makes of them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow, Row
from prompt_tuning.messages import show
from prompt_tuning.tasks.types import Task, Template


def check_columns(task: Task, where: str, row: Row, *, labelled: bool = False) -> None:
    """Raise :class:`UserError` if a row lacks a column of the task, or has nothing or the wrong kind of thing in it."""
    for column in (*task.columns, *([task.label_column] if labelled else [])):
        if column not in row:
            near = difflib.get_close_matches(column, map(str, row), 1)
            hint = f"did you mean `{near[0]}`?" if near else f"it has: {', '.join(map(str, row)) or 'none'}"
            raise UserError(f"{where}: no column `{column}`, which task {task.name!r} needs; {hint}")
        if row[column] is None:
            raise UserError(f"{where}: column `{column}` of task {task.name!r} is null; fill it or remove the row")
        if column == task.label_column:
            continue
        value = row[column]
        kind, name = (int, "whole number") if column in task.number_columns else (str, "text")
        is_right = isinstance(value, kind) and not isinstance(value, bool)
        if column in task.word_columns:
            name = "list of words"
            is_right = isinstance(value, list) and all(isinstance(word, str) for word in value)
        if not is_right:
            raise UserError(f"{where}: column `{column}` of task {task.name!r} is {show(value)}, not a {name}")


class Example(dict[str, Any]):
    """A row that is one of the task's own already, and is not expanded again."""


def expanded(task: Task, where: str, raw: Row) -> list[Row]:
    """The task's own rows in a row of a file. Raises :class:`UserError` where it has another shape."""
    if isinstance(raw, Example):
        return [raw]
    try:
        return list(task.expand(raw))
    except KeyError as error:
        raise UserError(f"{where}: the row does not fit task {task.name!r}: it lacks {show(error.args[0])}") from None
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise _misfit(task, where, error) from None


def first_examples(task: Task, rows: Iterable[LocatedRow], limit: int | None) -> Iterator[LocatedRow]:
    """The rows of a file that hold the first ``limit`` examples of the task; the last one is cut where it holds more.

    What is behind them is not read.
    """
    if limit is None:
        yield from rows
        return
    count, latest = 0, None
    for where, raw in rows:
        own = expanded(task, where, raw)
        fitting = 0
        for row in own:
            example = (count,) if task.example is None else task.example(row)
            count += example != latest
            if count > limit:
                break
            latest, fitting = example, fitting + 1
        if fitting == len(own):
            yield where, raw
        else:
            yield from ((where, Example(row)) for row in own[:fitting])
        if count >= limit:
            break


def own_rows(task: Task, rows: Iterable[LocatedRow], labelled: bool = False) -> Iterator[LocatedRow]:
    """The task's own rows, checked; ``labelled``: each must have a label."""
    for where, raw in rows:
        for row in expanded(task, where, raw):
            check_columns(task, where, row, labelled=labelled)
            yield where, dict(row)


def sequences(task: Task, where: str, build: Template, row: Row) -> tuple[Any, ...]:
    """The sequences that a template makes of a row. Raises :class:`UserError` where it does not fit."""
    try:
        return build(row)
    except (TypeError, ValueError, LookupError, AttributeError) as error:
        raise _misfit(task, where, error) from None


def _misfit(task: Task, where: str, error: Exception) -> UserError:
    return UserError(f"{where}: the row does not fit task {task.name!r}: {error}")


def template_of(task: Task, template: str | None) -> Template:
    """The template of a name; None: the task's first."""
    return task.all_templates()[task.template_name(template)]


def checked_text(where: str, text: Any) -> str:
    """``text`` if it is one that can be encoded. Raises :class:`UserError`."""
    if not isinstance(text, str):
        raise UserError(f"{where}: {show(text)} is not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise UserError(
            f"{where}: character {error.start + 1} of a text is half of a surrogate pair; repair it"
        ) from None
    return text
