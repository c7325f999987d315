"""How a run shows that it is alive in a notebook: a curve of its losses, drawn again as it goes on."""

from __future__ import annotations

import html
import sys
import time
from types import TracebackType
from typing import Any

from prompt_tuning.fleet.member import Member
from prompt_tuning.report.progress import Progress

WIDTH, HEIGHT, MARGIN = 640, 220, 36
SECONDS = 1.0
"""Least time between two drawings."""
NAMED = 10
"""Most members that the legend names."""


def open_progress(total: int, start: int, visible: bool) -> Progress:
    """A curve where people look at a notebook, else a bar or log lines."""
    shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
    if visible and shell is not None and hasattr(shell, "kernel"):
        return Curve(total, start)
    return Progress(total, start, visible)


class Curve(Progress):
    """Losses by step, a line for each member, and what its newest evaluation on dev gave."""

    def __init__(self, total: int, start: int) -> None:
        super().__init__(total, start, visible=False)
        self.step, self.drawn, self.began = start, 0.0, time.monotonic()
        self.losses: dict[str, list[tuple[int, float]]] = {}
        self.dev: dict[str, str] = {}
        self.handle: Any = None

    def __enter__(self) -> Curve:
        self._draw()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()

    def show(self, step: int, losses: dict[str, float]) -> None:
        """Add a step's losses."""
        self.step = step
        for name, loss in losses.items():
            self.losses.setdefault(name, []).append((step, loss))
        if time.monotonic() - self.drawn > SECONDS:
            self._draw()

    def evaluated(self, member: Member, metrics: dict[str, float]) -> None:
        """Report an evaluation."""
        super().evaluated(member, metrics)
        self.dev[member.name] = ", ".join(f"{name} {value:.4f}" for name, value in metrics.items())
        self._draw()

    def _draw(self) -> None:
        from IPython.display import HTML, display

        page = HTML(self.page())
        if self.handle is None:
            self.handle = display(page, display_id=True)
        else:
            self.handle.update(page)
        self.drawn = time.monotonic()

    def page(self) -> str:
        """The curve and its legend, as HTML."""
        points = [point for own in self.losses.values() for point in own]
        most = max((loss for _, loss in points), default=1.0) or 1.0
        lines = "".join(
            f'<polyline fill="none" stroke="{_colour(i)}" stroke-width="1.5" points="{self._points(own, most)}"/>'
            for i, own in enumerate(self.losses.values())
        )
        low, left = HEIGHT - MARGIN, MARGIN + 8
        return (
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" role="img" aria-label="training losses" font-size="12"'
            f' font-family="sans-serif" fill="currentColor"><path d="M{left} 12V{low}H{WIDTH - 12}" fill="none" stroke="currentColor"/>'
            f'<text x="{left - 4}" y="20" text-anchor="end">{most:.3g}</text><text x="{left - 4}" y="{low}" text-anchor="end">0</text>'
            f'<text x="{left}" y="{low + 18}">loss by step</text>'
            f'<text x="{WIDTH - 12}" y="{low + 18}" text-anchor="end">{self.step} of {self.total}{self._left()}</text>{lines}</svg>'
            f"<div>{self._legend()}</div>"
        )

    def _points(self, own: list[tuple[int, float]], most: float) -> str:
        left, width, height = MARGIN + 8, WIDTH - MARGIN - 20, HEIGHT - MARGIN - 12
        ends = max(1, self.total)
        every = max(1, len(own) // WIDTH)  # no more points than there are places
        return " ".join(
            f"{left + width * step / ends:.1f},{12 + height * (1 - loss / most):.1f}" for step, loss in own[::every]
        )

    def _left(self) -> str:
        done = self.step - self.start
        if not done or self.step >= self.total:
            return ""
        seconds = (time.monotonic() - self.began) / done * (self.total - self.step)
        return f", {seconds:.0f} s left" if seconds < 120 else f", {seconds / 60:.0f} min left"

    def _legend(self) -> str:
        names = [
            f'<span style="color:{_colour(i)}">&#9644;</span> {html.escape(name)} {html.escape(self.dev.get(name, ""))}'
            for i, name in enumerate(self.losses)
        ]
        more = [f"and {len(names) - NAMED} more"] if len(names) > NAMED else []
        return "<br>".join([*names[:NAMED], *more])


def _colour(number: int) -> str:
    """Colours far apart, of which no two follow each other in hue (golden angle)."""
    return f"hsl({number * 137.5 % 360:.0f} 65% 50%)"
