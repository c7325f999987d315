"""A progress bar over rows, on a terminal."""

from __future__ import annotations

import sys
from types import TracebackType


class RowsBar:
    """How many rows are done, where standard error is a terminal.

    ``total`` None: nobody knows how many there are. ``is_hidden``: the rows themselves go to a terminal too.
    """

    def __init__(self, total: int | None, start: int = 0, is_hidden: bool = False, title: str = "rows") -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("{task.description}"), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn())
        is_hidden = is_hidden or sys.stderr is None or not sys.stderr.isatty()
        self.bar = Progress(*columns, console=Console(stderr=True), disable=is_hidden)
        self.bar.add_task(title, total=total, completed=start)

    def __enter__(self) -> RowsBar:
        self.bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.bar.stop()

    def show(self, done: int) -> None:
        """Report how many rows are done."""
        self.bar.update(self.bar.task_ids[0], completed=done)
