"""What the columns of a table hold."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.formats import LocatedRow
from prompt_tuning.messages import show
from prompt_tuning.tasks.labels import label_name


@dataclass(frozen=True)
class Column:
    """A column of a table: its values in the rows that were looked at, None where a row has nothing in it."""

    name: str
    values: list[Any]

    @cached_property
    def filled(self) -> list[Any]:
        """The values that are there."""
        return [value for value in self.values if value not in (None, "") and value == value]

    @cached_property
    def counts(self) -> Counter[str]:
        """How often each value stands there, as labels are read."""
        return Counter(name for name in map(label_name, self.filled) if name is not None)

    @cached_property
    def is_flat(self) -> bool:
        """Whether all values are texts or numbers."""
        return bool(self.filled) and all(isinstance(value, (str, int, float)) for value in self.filled)

    @cached_property
    def numbers(self) -> list[float] | None:
        """The values as numbers; None: some are none."""
        if not self.is_flat or any(isinstance(value, bool) for value in self.filled):
            return None
        try:
            found = [float(value) for value in self.filled]
        except ValueError:
            return None
        return found if all(map(math.isfinite, found)) else None

    @cached_property
    def words(self) -> float:
        """Words of a text, on average; 0 where the values are no texts."""
        if not self.filled or not all(isinstance(value, str) for value in self.filled) or self.numbers is not None:
            return 0.0
        return sum(len(value.split()) for value in self.filled) / len(self.filled)

    @cached_property
    def is_identifier(self) -> bool:
        """Whether it numbers or names the rows."""
        if self.name.strip().lower() in ("", "id", "idx", "index", "guid", "uid", "uuid", "unnamed: 0", "row_id"):
            return True
        is_whole = self.numbers is not None and all(number.is_integer() for number in self.numbers)
        one_each = len(self.filled) > 2 and len(self.counts) == len(self.filled)
        if is_whole and one_each and self.numbers is not None:
            return sorted(self.numbers) == list(
                range(int(min(self.numbers)), int(min(self.numbers)) + len(self.numbers))
            )
        return self.name.lower().endswith(("_id", "-id")) and one_each

    @property
    def repeats(self) -> bool:
        """Whether its values are few, and stand there more than once."""
        return self.is_flat and 2 <= len(self.counts) <= len(self.filled) / 2


def columns_of(rows: list[LocatedRow]) -> dict[str, Column]:
    """The columns of a table by name."""
    names = list(dict.fromkeys(name for _, row in rows for name in row))
    return {name: Column(name, [row.get(name) for _, row in rows]) for name in names}


def check_header(file: Path, columns: Mapping[str, Column], known: set[str]) -> None:
    """Raise :class:`UserError` where the first line of a CSV or TSV holds a row and no names."""
    if file.suffix not in (".csv", ".tsv") or known & {name.strip().lower() for name in columns}:
        return
    for name, column in columns.items():
        is_value = name in column.counts and column.repeats
        is_number = re.fullmatch(r"\s*-?[0-9]+(\.[0-9]+)?\s*", name) is not None
        if is_value or is_number or len(name.split()) > 4:
            raise UserError(
                f"{file}:1: the first line looks like a row and not like names of columns ({', '.join(map(show, columns))});"
                " write a line of names above it, such as text,label"
            )
