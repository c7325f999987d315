"""Scores of finished members, read from run folders: one row for each task, recipe, split and metric."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import re
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from prompt_tuning.errors import UserError
from prompt_tuning.settings.identity import recipe
from prompt_tuning.storage.records import MemberRecord, MemberResult, split_metrics, tested_splits

if TYPE_CHECKING:
    from rich.console import Console

Json = dict[str, Any]


@dataclass
class Group:
    """Members that differ in their seed alone: one recipe on one task."""

    task: str
    label: str
    method: str
    backbone: str
    results: list[MemberResult] = field(default_factory=list)
    folders: list[Path] = field(default_factory=list)
    published: list[Json] = field(default_factory=list)

    @property
    def finished(self) -> list[MemberResult]:
        """Results of members that were evaluated."""
        return [result for result in self.results if result["best"] is not None]

    def splits(self) -> list[str]:
        """dev, then the test splits that any member was tested on."""
        return ["dev", *sorted({split for result in self.finished for split in tested_splits(result)})]

    def metrics(self) -> list[str]:
        """The selecting one first."""
        names = [name for one in self.finished for name in (one.get("selects_by"), *split_metrics(one, "dev"))]
        return list(dict.fromkeys(name for name in names if name is not None))

    def values(self, split: str, metric: str) -> list[float]:
        """One a member."""
        found = [split_metrics(result, split) for result in self.finished]
        return [metrics[metric] for metrics in found if metric in metrics]


@dataclass(frozen=True)
class Row:
    """One score beside what it is to be compared with; metrics as fractions of 1, published ones in per cent."""

    group: Group
    split: str
    metric: str
    values: list[float]
    head: float | None
    majority: float | None
    paper: float | None
    rerun: float | None


def read_groups(folders: list[Path]) -> list[Group]:
    """Every member's result below some folders, by recipe. Raises :class:`UserError` if there is none."""
    groups: dict[str, Group] = {}
    for folder in folders:
        for record in sorted({*folder.glob("run.json"), *folder.glob("**/run.json")}):
            for member in _read(record).get("members", []):
                result = _read(record.parent / "members" / member["name"] / "result.json")
                if result:
                    _file(groups, record.parent, member, cast(MemberResult, result))
    if not groups:
        names = ", ".join(map(str, folders))
        raise UserError(
            f"{names}: no finished member there; give run folders, such as runs/quickstart, or one that holds several"
        )
    return sorted(groups.values(), key=lambda group: (group.task, group.method != "deep_prompt", group.label))


def _read(file: Path) -> Json:
    """A JSON object; {} where there is none yet, or one half written."""
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _file(groups: dict[str, Group], folder: Path, member: MemberRecord, result: MemberResult) -> None:
    config = member["config"]
    label = re.sub(r"-?seed\d+$", "", member["name"])
    label = re.sub(rf"^{re.escape(result['task'])}[-_]", "", label)
    label = result["method"] if label in ("", result["task"]) else label
    key = hashlib.sha256(json.dumps([label, recipe(config)], sort_keys=True).encode()).hexdigest()
    if key not in groups:
        published = (config.get("published") or []) if result["method"] == "deep_prompt" else []
        backbone = config["backbone"]["path"]
        groups[key] = Group(result["task"], label, result["method"], backbone, published=published)
    groups[key].results.append(result)
    groups[key].folders.append(folder / "members" / member["name"])


def rows(groups: list[Group]) -> Iterator[Row]:
    """All scores, the head alone and the majority class beside each."""
    for group in groups:
        heads = [other for other in groups if _is_head_of(other, group)]
        for split in group.splits():
            for metric in group.metrics():
                values = group.values(split, metric)
                if not values:
                    continue
                alone = [value for other in heads for value in other.values(split, metric)]
                majority = group.finished[0]["majority"].get(split, {}).get(metric)
                numbers = {
                    entry["by"]: entry["value"]
                    for entry in group.published
                    if entry["metric"] == metric and entry["split"] == split
                }
                yield Row(
                    group,
                    split,
                    metric,
                    values,
                    statistics.fmean(alone) if alone else None,
                    majority,
                    numbers.get("paper"),
                    numbers.get("rerun"),
                )


def _is_head_of(other: Group, group: Group) -> bool:
    return other.method == "head" and other.task == group.task and other.backbone == group.backbone


COLUMNS = (
    "task", "recipe", "split", "metric", "score", "seeds", "head alone", "majority", "paper", "rerun", "trained", "kB",
)  # fmt: skip
TEXTS = ("task", "recipe", "split", "metric", "placement")
NARROW = ("task", "recipe", "split", "metric", "score", "head alone", "majority")


def cells(row: Row) -> list[str]:
    """A row as text, in the order of :data:`COLUMNS`; scores as fractions, published ones in per cent as printed."""
    finished, number = row.group.finished, len(row.group.results)
    return [
        row.group.task,
        row.group.label,
        row.split,
        row.metric,
        spread(row.values),
        str(number) if len(row.values) == number else f"{len(row.values)}/{number}",
        "-" if row.head is None or row.group.method == "head" else f"{row.head:.4f}",
        "-" if row.majority is None else f"{row.majority:.4f}",
        "-" if row.paper is None else f"{row.paper:.1f} %",
        "-" if row.rerun is None else f"{row.rerun:.1f} %",
        _range([result["trainable_parameters"] for result in finished]),
        _range([round(result["exported_bytes"] / 1000) for result in finished if result["exported_bytes"] is not None]),
    ]


def as_markdown(groups: list[Group]) -> str:
    """The table for documents."""
    lines = ["| " + " | ".join(COLUMNS) + " |", "|" + "|".join("---" if c in TEXTS else "---:" for c in COLUMNS) + "|"]
    return "\n".join(lines + ["| " + " | ".join(cells(row)) + " |" for row in rows(groups)]) + "\n"


def as_csv(groups: list[Group]) -> str:
    """The table for programs: mean, spread and number of seeds apart, full precision."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(
        ["task", "recipe", "method", "backbone", "split", "metric", "mean", "standard_deviation", "seeds", "head_alone",
         "majority", "paper_percent", "rerun_percent", "trainable_parameters", "exported_bytes", "seconds"]
    )  # fmt: skip
    for row in rows(groups):
        group, finished = row.group, row.group.finished
        writer.writerow(
            [group.task, group.label, group.method, group.backbone, row.split, row.metric, statistics.fmean(row.values),
             statistics.stdev(row.values) if len(row.values) > 1 else "", len(row.values), _or_empty(row.head),
             _or_empty(row.majority), _or_empty(row.paper), _or_empty(row.rerun), finished[0]["trainable_parameters"],
             finished[0]["exported_bytes"], statistics.fmean([result["seconds"] for result in finished])]
        )  # fmt: skip
    return text.getvalue()


def _or_empty(value: float | None) -> Any:
    return "" if value is None else value


def print_report(folders: list[Path], title: str) -> None:
    """The table on the terminal: mean and spread over seeds."""
    from rich.console import Console

    console = Console()
    shown = COLUMNS if console.width >= 130 or not console.is_terminal else NARROW
    groups = read_groups(folders)
    lines = [
        [cell for column, cell in zip(COLUMNS, cells(row), strict=True) if column in shown] for row in rows(groups)
    ]
    console = print_table(f"{title}: mean ± standard deviation over seeds", shown, lines)
    if shown is NARROW:
        console.print("A wider terminal shows published numbers and sizes too; `promptfleet report` writes all of it.")
    for group in groups:
        missing = len(group.results) - len(group.finished)
        if missing:
            console.print(f"{group.task} {group.label}: {missing} of {len(group.results)} members have no evaluation")


def print_table(title: str, columns: Sequence[str], lines: Sequence[Sequence[str]]) -> Console:
    """A table on the terminal, numbers to the right; the console that fits it.

    A narrow terminal wraps the lines of a table, which can be read; cells cut inside a word can not.
    """
    from rich.console import Console
    from rich.table import Table

    widest = sum(max(map(len, column)) + 3 for column in zip(columns, *lines, strict=True)) + 1
    terminal = Console()
    console = Console(width=max(widest, terminal.width if terminal.is_terminal else 0))
    table = Table(title=title, title_justify="left")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="left" if column in TEXTS else "right")
    for line in lines:
        table.add_row(*line)
    console.print(table)
    return console


def spread(values: list[float]) -> str:
    """Mean and standard deviation, four digits."""
    if not values or not all(map(math.isfinite, values)):
        return "-"
    mean = statistics.fmean(values)
    return f"{mean:.4f}" if len(values) == 1 else f"{mean:.4f} ± {statistics.stdev(values):.4f}"


def _range(values: list[int]) -> str:
    if not values:
        return "-"
    low, high = min(values), max(values)
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
