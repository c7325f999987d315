"""Choice among the user's own candidates: which of several texts goes with a given one.

``data.path`` is a folder with ``train``, ``dev`` and optionally ``test`` files, or a hub id. The choices stand in columns of
their own, or in one column as a list (or as ARC has them, ``{"text": [...], "label": [...]}``).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import Field

from prompt_tuning.formats import Row
from prompt_tuning.metrics.classes import accuracy
from prompt_tuning.section import FOLDER_NAME, Section
from prompt_tuning.tasks.labels import label_name
from prompt_tuning.tasks.types import Pair, Task


class Options(Section):
    """Settings of a choice task."""

    name: str = Field("choice", pattern=FOLDER_NAME, max_length=100, description="Name in results.")
    text: str = Field("text", description="Column of the text that all choices share.")
    choices: list[str] = Field(
        ["choice1", "choice2"], min_length=1, description="Columns of the choices, or the one column that lists them."
    )
    label: str = Field(
        "label",
        description="Column of the right choice: its column, its number from 0, its letter from A, or its text.",
    )
    most_choices: int = Field(5, ge=2, le=26, description="Most choices of a row, where one column lists them.")
    hub_config: str | None = Field(None, description="Configuration of a hub data set.")


def build(options: Options) -> Task:
    """The task that ``options`` describe."""
    column = options.choices[0] if len(options.choices) == 1 else None
    labels = tuple(options.choices) if column is None else tuple(str(i) for i in range(options.most_choices))

    def texts(row: Row) -> list[Any]:
        return list(row[column]) if column is not None else [row[choice] for choice in options.choices]

    def rows(row: Row) -> Iterator[Row]:
        found, letters = dict(row), None
        if column is not None and isinstance(row.get(column), dict):
            found[column], letters = row[column]["text"], row[column].get("label")
        if options.label in row and all(choice in found for choice in options.choices):
            found[options.label] = _right_choice(row[options.label], texts(found), letters, labels)
        yield found

    return Task(
        name=options.name,
        kind="choice",
        labels=labels,
        metrics={"accuracy": accuracy},
        columns=(options.text, *options.choices),
        templates={"pair": lambda row: tuple[Pair, ...]((row[options.text], choice) for choice in texts(row))},
        label_column=options.label,
        word_columns=() if column is None else (column,),
        expand=rows,
    )


def _right_choice(value: Any, texts: list[Any], letters: list[str] | None, labels: tuple[str, ...]) -> Any:
    """The number of the right choice, from what a row says of it; the value itself where that is no letter or text.

    Raises :class:`ValueError` where it could mean two.
    """
    name = label_name(value)
    if name is None or (name in labels and not name.isdecimal()):
        return value
    if letters is not None and value in letters:
        return letters.index(value)
    by_text = [i for i, text in enumerate(texts) if isinstance(text, str) and text.strip() == name]
    by_number = int(name) if name.isascii() and name.isdecimal() and len(name) < 4 else None
    if len(name) == 1 and name.isascii() and name.isalpha() and ord(name.upper()) - ord("A") < len(texts):
        by_number = ord(name.upper()) - ord("A")
    if not by_text or isinstance(value, (int, float)):
        return value if by_number is None else by_number
    if len(by_text) > 1 or (by_number is not None and by_number < len(texts) and by_text != [by_number]):
        raise ValueError(
            f"label {value!r} could mean more than one choice; write the column's name or the number from 0"
        )
    return by_text[0]
