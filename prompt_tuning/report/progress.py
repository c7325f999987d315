"""How a run shows that it is alive: a bar on a terminal, a log line at evaluations elsewhere."""

from __future__ import annotations

import logging
import sys
from types import TracebackType

from prompt_tuning.fleet.member import Member

logger = logging.getLogger(__name__)


def size(num_bytes: int) -> str:
    """Bytes in the unit that people would use."""
    for unit, factor in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if num_bytes >= factor:
            return f"{num_bytes / factor:.1f} {unit}"
    return f"{num_bytes} B"


class Progress:
    """Steps of the longest member, with the mean loss of those that run."""

    def __init__(self, total: int, start: int, visible: bool) -> None:
        self.total, self.start = total, start
        self.bar = None
        if visible and sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn("step"), MofNCompleteColumn(), BarColumn(), TextColumn("{task.fields[note]}"))
            self.bar = Bar(*columns, TimeRemainingColumn(), console=Console(stderr=True))

    def __enter__(self) -> Progress:
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task("step", total=self.total, completed=self.start, note="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def show(self, step: int, losses: dict[str, float]) -> None:
        """Report a step."""
        if self.bar is not None and losses:
            mean = sum(losses.values()) / len(losses)
            self.bar.update(self.bar.task_ids[0], completed=step, note=f"loss {mean:.4f}")

    def evaluated(self, member: Member, metrics: dict[str, float]) -> None:
        """Report an evaluation."""
        numbers = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        mark = " (best)" if member.best is not None and member.best.step == member.step else ""
        logger.info("%s: step %d of %d, dev %s%s", member.name, member.step, member.total_steps, numbers, mark)
