"""Sequences of unequal pieces as flat arrays, which can be mapped from a file and joined end to end.

A *record* is a dataclass whose fields are arrays, other records such as :class:`Ragged` or :class:`Values`, or numbers that all
its parts share.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, get_type_hints, overload

import numpy as np

ENDS = ("ends", "offsets", "first_window")
"""Fields [pieces + 1] that count up from 0 where pieces end; joined parts go on counting."""


def ends_of(lengths: Sequence[int] | np.ndarray) -> np.ndarray:
    """Where pieces of some lengths begin and end: int64 [pieces + 1]."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.asarray(lengths, np.int64))])


@dataclass(frozen=True, eq=False)
class Ragged(Sequence[np.ndarray]):
    """Arrays of unequal length: piece ``i`` is ``flat[ends[i]:ends[i + 1]]``."""

    flat: np.ndarray
    ends: np.ndarray

    @staticmethod
    def of(pieces: Sequence[np.ndarray]) -> Ragged:
        """Some arrays, copied end to end."""
        flat = np.concatenate(pieces) if len(pieces) else np.zeros(0, np.int64)
        return Ragged(flat, ends_of([len(piece) for piece in pieces]))

    def __len__(self) -> int:
        return len(self.ends) - 1

    @overload
    def __getitem__(self, index: int) -> np.ndarray: ...
    @overload
    def __getitem__(self, index: slice) -> list[np.ndarray]: ...
    def __getitem__(self, index: int | slice) -> np.ndarray | list[np.ndarray]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self.flat[self.ends[place] : self.ends[place + 1]]


@dataclass(frozen=True, eq=False)
class Values(Sequence[Any]):
    """Values that JSON can hold, lists as tuples, one behind the other as UTF-8 text."""

    text: Ragged

    @staticmethod
    def of(values: Iterable[Any]) -> Values:
        """Some values, written as JSON."""
        return Values(Ragged.of([np.frombuffer(json.dumps(value).encode(), np.uint8) for value in values]))

    def __len__(self) -> int:
        return len(self.text)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return _with_tuples(json.loads(self.text[index].tobytes()))

    def __iter__(self) -> Iterator[Any]:
        return (self[i] for i in range(len(self)))


def _with_tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(map(_with_tuples, value))
    return {key: _with_tuples(item) for key, item in value.items()} if isinstance(value, dict) else value


def to_arrays(record: Any, prefix: str = "") -> dict[str, np.ndarray]:
    """The arrays of a record by dotted field."""
    found: dict[str, np.ndarray] = {}
    for field in fields(record):
        value = getattr(record, field.name)
        if isinstance(value, np.ndarray):
            found[f"{prefix}{field.name}"] = value
        elif is_dataclass(value):
            found.update(to_arrays(value, f"{prefix}{field.name}."))
    return found


def from_arrays(kind: type[Any], arrays: Mapping[str, np.ndarray], prefix: str = "") -> Any:
    """The record of a type that :func:`to_arrays` took apart."""
    values, types = {}, get_type_hints(kind)
    for field in fields(kind):
        name = f"{prefix}{field.name}"
        if is_dataclass(types[field.name]):
            values[field.name] = from_arrays(types[field.name], arrays, f"{name}.")
        elif name in arrays:
            values[field.name] = arrays[name]
    return kind(**values)


def is_ends(name: str) -> bool:
    """Whether the array of a dotted field counts up where pieces end."""
    return name.rpartition(".")[2] in ENDS
