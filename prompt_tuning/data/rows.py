"""The rows of a split, read anew each time they are gone through, so that none has to stay in memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice

import numpy as np

from prompt_tuning.formats import LocatedRow
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.rows import first_examples


@dataclass(frozen=True)
class Rows:
    """Rows of a file or hub data set, or a part of them."""

    read: Callable[[], Iterable[LocatedRow]]
    mark: Callable[[], str]
    """What tells their source from one of other content."""
    is_document: bool = False
    """Whether their file is taken into memory whole, as a JSON document is, each time they are read."""

    def __iter__(self) -> Iterator[LocatedRow]:
        return iter(self.read())

    def first(self, task: Task, limit: int | None) -> Rows:
        """Those of the first ``limit`` examples."""
        return self if limit is None else replace(self, read=partial(first_examples, task, self, limit))

    def where(self, chosen: np.ndarray) -> Rows:
        """Those whose place in ``chosen`` [rows] is true."""

        def read() -> Iterator[LocatedRow]:
            return (row for row, is_chosen in zip(self, chosen.tolist(), strict=True) if is_chosen)

        return replace(self, read=read)

    def count(self, limit: int | None = None) -> int:
        """How many there are, counted up to a limit."""
        return sum(1 for _ in islice(self, limit))
