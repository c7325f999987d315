"""The parts of a split joined end to end: in memory, or in files from which they are mapped."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import numpy as np

from prompt_tuning.kinds import Kind
from prompt_tuning.tokens.arrays import from_arrays, is_ends, to_arrays
from prompt_tuning.tokens.features import NO_TAG, Features

Described = dict[str, Any]
"""What files do not say of a split: types and shapes of its arrays, and numbers."""


class Parts:
    """Takes the features of a split part by part; ``folder`` None: keeps them in memory."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder
        self.num_examples = 0
        self._arrays: dict[str, list[np.ndarray]] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._types: dict[str, str] = {}
        self._totals: Counter[str] = Counter()
        self._remarks: dict[str, tuple[int, int]] = {}
        self._rows_per_example = 1
        self._files: dict[str, IO[bytes]] = {}
        self._open = ExitStack()
        if folder is not None:
            folder.mkdir()

    def add(self, features: Features) -> None:
        """Join a part, of one example or more."""
        arrays = _arrays_of(features)
        before = self._shapes.get("tokens", (0,))[0]
        if "tags" in arrays and before and "tags" not in self._shapes:
            self._append("tags", np.full(before, NO_TAG, np.int32))
        if "tags" in self._shapes and "tags" not in arrays:
            arrays["tags"] = np.full(len(features.tokens), NO_TAG, np.int32)
        for name, array in arrays.items():
            if is_ends(name):
                counted = array.astype(np.int64)[1 if name in self._shapes else 0 :] + self._totals[name]
                self._totals[name] += int(array[-1])
                array = counted
            self._append(name, array)
        for remark, (some, count) in features.remarks.items():
            old = self._remarks.get(remark, (0, 0))
            self._remarks[remark] = (old[0] + some, old[1] + count)
        self._rows_per_example = features.rows_per_example
        self.num_examples += len(features)

    def _append(self, name: str, array: np.ndarray) -> None:
        rows, *rest = self._shapes.get(name, (0, *array.shape[1:]))
        self._shapes[name] = (rows + len(array), *rest)
        self._types[name] = array.dtype.str
        if self.folder is None:
            self._arrays.setdefault(name, []).append(array)
            return
        if name not in self._files:
            self._files[name] = self._open.enter_context((self.folder / f"{name}.bin").open("wb"))
        self._files[name].write(np.ascontiguousarray(array).data)

    def joined(self, kind: Kind) -> Features:
        """The whole split, in memory."""
        arrays = {name: parts[0] if len(parts) == 1 else np.concatenate(parts) for name, parts in self._arrays.items()}
        return _features_of(arrays, kind, self._rows_per_example, self._remarks)

    def written(self, kind: Kind) -> Described:
        """Close the files; what has to be known to open them again."""
        assert self.folder is not None
        self._open.close()
        described: Described = {
            "arrays": {name: {"type": self._types[name], "shape": list(shape)} for name, shape in self._shapes.items()},
            "rows_per_example": self._rows_per_example,
            "remarks": {remark: list(numbers) for remark, numbers in self._remarks.items()},
            "known": {},
        }
        features = self.mapped(kind, described)
        described["known"] = {"digest": features.digest, "largest_token": features.largest_token}
        return described

    def mapped(self, kind: Kind, described: Described) -> Features:
        """The whole split, mapped from the files."""
        assert self.folder is not None
        return mapped(self.folder, kind, described)


def in_one(parts: Sequence[Features], kind: Kind) -> Features:
    """Features behind each other."""
    if len(parts) == 1:
        return parts[0]
    whole = Parts()
    for features in parts:
        whole.add(features)
    return whole.joined(kind)


def mapped(folder: Path, kind: Kind, described: Mapping[str, Any]) -> Features:
    """A split that :class:`Parts` wrote, its arrays mapped. Raises :class:`ValueError` where a file is not as written."""
    arrays = {}
    for name, array in described["arrays"].items():
        file, shape, dtype = folder / f"{name}.bin", tuple(array["shape"]), np.dtype(array["type"])
        size = dtype.itemsize * int(np.prod(shape))
        if file.stat().st_size != size:
            raise ValueError(f"{file} has {file.stat().st_size} bytes, not {size}")
        arrays[name] = np.asarray(np.memmap(file, dtype, "r", shape=shape)) if size else np.zeros(shape, dtype)
    remarks = {remark: (some, count) for remark, (some, count) in described["remarks"].items()}
    return _features_of(arrays, kind, described["rows_per_example"], remarks, described["known"])


def _arrays_of(features: Features) -> dict[str, np.ndarray]:
    own = {name: getattr(features, name) for name in ("tokens", "token_types", "offsets", "labels", "tags")}
    notes = {} if features.notes is None else to_arrays(features.notes, "notes.")
    return {name: array for name, array in own.items() if array is not None} | notes


def _features_of(
    arrays: Mapping[str, np.ndarray],
    kind: Kind,
    rows_per_example: int,
    remarks: Mapping[str, tuple[int, int]],
    known: Mapping[str, Any] | None = None,
) -> Features:
    has_notes = kind.notes is not None and any(name.startswith("notes.") for name in arrays)
    return Features(
        tokens=arrays["tokens"],
        token_types=arrays.get("token_types"),
        offsets=arrays["offsets"],
        rows_per_example=rows_per_example,
        labels=arrays["labels"],
        tags=arrays.get("tags"),
        notes=from_arrays(kind.notes, arrays, "notes.") if kind.notes is not None and has_notes else None,
        remarks=remarks,
        known=known or {},
    )
