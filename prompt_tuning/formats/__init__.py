"""File formats: from a file to rows that know the line they came from. One file each.

Nothing here knows a task; tasks say which reader their files need.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Row = Mapping[str, Any]

LocatedRow = tuple[str, dict[str, Any]]
"""``file:line`` (or hub row) and the row's columns."""

Reader = Callable[[Path], Iterable[LocatedRow]]

STEMS: Mapping[str, tuple[str, ...]] = {
    "train": ("train",),
    "dev": ("dev", "val", "valid", "validation"),
    "test": ("test",),
}
"""What files (without suffix) and hub splits are called."""
