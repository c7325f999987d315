"""How far the runs of a folder are, as a table: read from their files, whatever started them."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Container
from pathlib import Path
from typing import Any

from launcher.runs.journal import queued, read_starts
from launcher.runs.state import State, read_state
from prompt_tuning.errors import UserError

COLORS = {"finished": "green", "failed": "red", "running": "cyan", "stopped": "yellow"}


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser("status", help="how far the runs of some folders are, and where they run")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or a suite's folder")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """The driver's verb: print one row a run. Raises :class:`UserError` where there is none."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    rows = [row for folder in options.runs for row in read_rows(Path(folder))]
    if not rows:
        raise UserError(f"{', '.join(options.runs)}: no run there; give run folders or the folder of a suite")
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)  # a log file has no width of its own
    table = Table("run", "state", "step", "where", "last line of its log")
    for name, state, where in rows:
        color = COLORS.get(state.word, "default")
        table.add_row(
            escape(name), f"[{color}]{state.word}[/]", str(state.step), escape(where), escape(state.last_line)
        )
    console.print(table)
    counts = Counter(state.word for _, state, _ in rows)
    print(f"{len(rows)} runs: " + ", ".join(f"{number} {word}" for word, number in counts.most_common()))
    return 0


def read_rows(folder: Path) -> list[tuple[str, State, str]]:
    """Name, state and place of the run in a folder, or of all runs of a suite's folder. Raises :class:`UserError`."""
    last = {record["fleet"]: record for record in read_starts(folder)}
    try:
        in_queue = queued(folder)
    except UserError as error:
        print(f"what is in SLURM's queue is not known: {error}", file=sys.stderr)
        in_queue = {}
    rows = []
    for name, run in _runs(folder, last):
        fleet, state = run.resolve().name, read_state(run)
        where = state.owner or ", ".join(last.get(fleet, {}).get("hosts", [])) or last.get(fleet, {}).get("slurm", "")
        if fleet in in_queue and state.word in ("waiting", "stopped"):
            state = State("queued", state.step, None, state.last_line)
            where = f"SLURM: {in_queue[fleet]}"
        rows.append((name, state, where))
    return rows


def _runs(folder: Path, starts: Container[str]) -> list[tuple[str, Path]]:
    """The runs of a folder, by name: itself, where one has been started or submitted in it, or those below it."""
    if (folder / "run.json").exists() or folder.resolve().name in starts:
        return [(str(folder), folder)]
    try:
        planned = json.loads((folder / "suite.json").read_text(encoding="utf-8"))["fleets"]
    except (OSError, ValueError, KeyError, TypeError):
        planned = []
    names = {*map(str, planned), *(record.parent.name for record in folder.glob("*/run.json"))}
    return [(name, folder / name) for name in sorted(names)]
