"""The table at the end of a run."""

from __future__ import annotations

import statistics
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_report(result: dict[str, Any], folder: Path) -> None:
    """Print one line for each task and method: mean and spread over members, beside the majority class."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=150)  # a log file has no width of its own
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for member in result["members"]:
        groups.setdefault((member["task"], member["method"]), []).append(member)
    table = Table(title=f"{result['name']}: mean ± standard deviation over members", title_justify="left")
    columns = ("task", "method", "members", "metric", "dev", "test", "trained", "of backbone", "exported bytes")
    for column in columns:
        table.add_column(column, justify="left" if column in ("task", "method", "metric") else "right")
    shown: set[str] = set()
    for (task, method), members in groups.items():
        good = [member for member in members if member["best"] is not None]
        metric = next(iter(good[0]["best"]["metrics"])) if good else "-"
        table.add_row(
            task,
            method,
            f"{len(good)}/{len(members)}" if len(good) < len(members) else str(len(members)),
            metric,
            _spread([member["best"]["metrics"][metric] for member in good]),
            _spread([member["test"][metric] for member in good if member["test"] is not None]),
            _range([member["trainable_parameters"] for member in members]),
            "all"
            if method == "full"
            else f"{100 * members[0]['trainable_parameters'] / members[0]['backbone_parameters']:.3f} %",
            _range([member["exported_bytes"] for member in good]),
        )
        if task not in shown and good:
            shown.add(task)
            majority = members[0]["majority"]
            values = [f"{majority[s][metric]:.4f}" if s in majority else "-" for s in ("dev", "test")]
            table.add_row(task, "majority class", "-", metric, *values, "0", "0 %", "-")
    console.print(table)
    console.print(f"Results and prompts: {folder}")


def _spread(values: list[float]) -> str:
    if not values:
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.4f}" if len(values) == 1 else f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def _range(values: list[int]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
