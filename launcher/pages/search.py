"""Searches in a report: recipes of one task that differ in some settings, the best first, and whether it is the best."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from launcher.pages.scores import Group, print_table

FEWEST = 3
"""Recipes that make a search."""


@dataclass(frozen=True)
class Search:
    """Recipes of one task, method and backbone, the best first."""

    task: str
    metric: str
    keys: tuple[str, ...]
    """Dotted keys in which they differ."""
    groups: tuple[Group, ...]

    def score(self, group: Group) -> float:
        """Mean of a recipe's best scores on dev."""
        return statistics.fmean(group.values("dev", self.metric))

    def settings(self, group: Group) -> list[Any]:
        """What a recipe has for each of ``keys``; None where it says nothing."""
        flat = dict(_flat(group.results[0]["overrides"]))
        return [flat.get(key) for key in self.keys]

    def cells(self, group: Group) -> list[str]:
        """A recipe as text: settings, score, seeds, steps."""
        settings = ["-" if value is None else f"{value}" for value in self.settings(group)]
        steps = sorted({result["steps"] for result in group.finished})
        ran = f"{steps[0]}" if len(steps) == 1 else f"{steps[0]} to {steps[-1]}"
        return [*settings, f"{self.score(group):.4f}", str(len(group.finished)), ran]

    @property
    def verdict(self) -> str:
        """Which is best, and whether the second best is worse by more than chance."""
        best, second = self.groups[:2]
        named = ", ".join(
            f"{key}={value}" for key, value in zip(self.keys, self.settings(best), strict=True) if value is not None
        )
        text = f"best: {named or best.label}, {self.metric} {self.score(best):.4f} on dev"
        gap, error = self.score(best) - self.score(second), _error(self, best, second)
        if error is None:
            return f"{text}; whether it is the best, several seeds of the first few would say"
        if gap == 0:
            return f"{text}; the second best has the same score"
        if gap < error:
            return f"{text}; the two best differ by {gap:.4f}, less than one standard error ({error:.4f})"
        return (
            f"{text}; the second is {gap:.4f} behind, {gap / error:.1f} standard errors"
            if error
            else f"{text}; the second is {gap:.4f} behind, with every seed"
        )


def searches(groups: list[Group]) -> Iterator[Search]:
    """The searches among recipes."""
    sets: dict[tuple[str, str, str], list[Group]] = {}
    for group in groups:
        if group.finished and group.metrics():
            sets.setdefault((group.task, group.method, group.backbone), []).append(group)
    for (task, _, _), some in sets.items():
        metric = some[0].metrics()[0]
        some = [group for group in some if group.values("dev", metric)]
        overrides = [dict(_flat(group.results[0]["overrides"])) for group in some]
        keys = dict.fromkeys(key for own in overrides for key in own if key != "train.seed")
        varied = tuple(key for key in keys if len({repr(own.get(key)) for own in overrides}) > 1)
        if len(some) >= FEWEST and varied:
            ranked = sorted(some, key=lambda group: -statistics.fmean(group.values("dev", metric)))
            yield Search(task, metric, varied, tuple(ranked))


def _error(search: Search, best: Group, second: Group) -> float | None:
    """Standard error of the difference of two recipes' mean scores, from their seeds; None where one has a single seed."""
    found = [group.values("dev", search.metric) for group in (best, second)]
    if min(map(len, found)) < 2:
        return None
    return math.sqrt(sum(statistics.variance(values) / len(values) for values in found))


def _flat(overrides: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a task of one's own is one value."""
    for key, value in overrides.items():
        if isinstance(value, dict) and key != "task":
            yield from _flat(value, f"{before}{key}.")
        else:
            yield f"{before}{key}", value


def print_search(search: Search, most: int = 10) -> None:
    """A search on the terminal."""
    lines = [search.cells(group) for group in search.groups[:most]]
    columns = [*search.keys, search.metric, "seeds", "steps"]
    console = print_table(f"{search.task}: the best of {len(search.groups)} recipes", columns, lines)
    console.print(f"{search.task}: {search.verdict}", soft_wrap=True)
