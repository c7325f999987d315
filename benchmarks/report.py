"""What a benchmark says: tables that people, JSON and docs/performance.md share, and the machine that it ran on."""

from __future__ import annotations

import json
import platform
import sys
import time
from argparse import Namespace
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import torch
from rich.console import Console
from rich.table import Table


class Report:
    """Collects a benchmark's numbers and tables; what other programs do meanwhile is watched from its making to its end."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.numbers: dict[str, Any] = {}
        self.tables: list[dict[str, Any]] = []
        self.notes: list[str] = []
        self._started, self._busy, self._own = time.monotonic(), _busy_seconds(), _own_seconds()

    def table(self, title: str, columns: list[str]) -> list[list[str]]:
        """A new table; returns its rows, to be filled."""
        rows: list[list[str]] = []
        self.tables.append({"title": title, "columns": columns, "rows": rows})
        return rows

    def note(self, text: str) -> None:
        """A sentence below the tables."""
        self.notes.append(text)

    def finish(self) -> None:
        """Print everything, and write the JSON that the options ask for."""
        console = Console(width=None if sys.stdout.isatty() else 140)
        for content in self.tables:
            table = Table(title=content["title"])
            for place, column in enumerate(content["columns"]):
                table.add_column(column, justify="right" if place and _is_numeric(content["rows"], place) else "left")
            for row in content["rows"]:
                table.add_row(*row)
            console.print(table)
        machine = self._machine()
        for text in (*self.notes, describe(machine)):
            console.print(text, highlight=False)
        if self.options.json:
            settings = {name: value for name, value in vars(self.options).items() if name not in ("json", "data")}
            whole = {
                "settings": settings,
                "machine": machine,
                **self.numbers,
                "tables": self.tables,
                "notes": self.notes,
            }
            Path(self.options.json).write_text(json.dumps(whole, indent=2) + "\n", encoding="utf-8")

    def _machine(self) -> dict[str, Any]:
        elapsed = time.monotonic() - self._started
        others = (_busy_seconds() - self._busy) - (_own_seconds() - self._own)
        found = {
            "processor": _processor(),
            "cores": psutil.cpu_count(),
            "threads": torch.get_num_threads(),
            "other_programs_cores": max(0.0, others / elapsed),
            "seconds": elapsed,
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft") if find_spec(name)},
        }
        if self.options.device == "cuda":
            found["gpu"] = torch.cuda.get_device_name()
        return found


def describe(machine: dict[str, Any]) -> str:
    """The machine in one sentence."""
    versions = ", ".join(f"{name} {machine[name]}" for name in ("torch", "transformers", "peft") if name in machine)
    gpu = f"{machine['gpu']}, " if "gpu" in machine else ""
    return (
        f"{gpu}{machine['processor']}, {machine['threads']} of {machine['cores']} cores, {versions};"
        f" other programs used {machine['other_programs_cores']:.2f} cores on average."
    )


def range_of(ratio: dict[str, float]) -> str:
    """A ratio with its quartiles."""
    return f"{ratio['median']:.2f} ({ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f})"


def milliseconds(seconds: float) -> str:
    """For tables."""
    return f"{1000 * seconds:,.0f}"


def _is_numeric(rows: list[list[str]], place: int) -> bool:
    return all(row[place][:1].isdigit() or not row[place] for row in rows)


def _processor() -> str:
    """Name, family and model, which tell cloud machines apart that call themselves the same."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    units = [unit for unit in ("avx512f", "avx512_bf16", "amx_bf16") if unit in fields.get("flags", "").split()]
    where = f"family {fields.get('cpu family')}, model {fields.get('model')}, {', '.join(units) or 'no AVX-512'}"
    return f"{fields.get('model name', platform.machine())} ({where})"


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return float(times.user + times.nice + times.system)


def _own_seconds() -> float:
    """Of this process and of children that have ended."""
    times = psutil.Process().cpu_times()
    return float(times.user + times.system + times.children_user + times.children_system)
