"""Runs all benchmarks in order and writes their tables into docs/performance.md.

    python benchmarks/performance.py

Everything between the two marker lines of that page is replaced; the prose around them stays. Each benchmark runs in a process
of its own, one after the other; on a quiet machine of two cores all of them take about an hour. --only runs some of them
anew and takes the others' numbers from --folder, where an earlier call has left their JSON. The GPU section runs the same
benchmarks with --device cuda where torch sees a device, and says so where it sees none.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Started as a file, Python puts benchmarks/ on the path, and not the root of the project.
    sys.path[0] = str(ROOT)

import argparse
import json
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.report import describe
from benchmarks.step_time import COMPARISONS

BEGIN, END = (
    "<!-- measured by benchmarks/performance.py: begin -->",
    "<!-- measured by benchmarks/performance.py: end -->",
)


@dataclass(frozen=True)
class Section:
    """A benchmark with its arguments, and what the page calls it."""

    title: str
    script: str
    arguments: tuple[str, ...] = ()


LARGE = ("--assembly", "--members", "64", "--backbones", "random-24x1024", "--prompt-length", "128", "--tasks", "wic")
WIDE = ("--backbones", "random-12x768")
AGAINST_PEFT = ("--comparisons", *(name for name in COMPARISONS if not name.startswith("full")))
AGAINST_FULL = ("--comparisons", *(name for name in COMPARISONS if name.startswith("full")))
SECTIONS = {
    "memory": Section("Memory", "memory"),
    "step_minilm": Section("A step of one member: MiniLM", "step_time", ("--backbones", "minilm")),
    "step_256": Section(
        "A step of one member: width 768, 256 tokens",
        "step_time",
        (*WIDE, "--lengths", "256", "--repeats", "2", *AGAINST_PEFT),
    ),
    "step_128": Section(
        "A step of one member: width 768, 128 tokens", "step_time", (*WIDE, "--lengths", "128", "--repeats", "2")
    ),
    "full_256": Section(
        "A step of one member against full fine-tuning: width 768, 256 tokens",
        "step_time",
        (*WIDE, "--lengths", "256", "--repeats", "2", *AGAINST_FULL),
    ),
    "fleet_minilm": Section("Fleets: MiniLM", "fleet", ("--backbones", "minilm", "--repeats", "3")),
    "fleet_768": Section("Fleets: width 768", "fleet", (*WIDE, "--repeats", "2")),
    "padding": Section("Share of real tokens", "padding", ("--repeats", "2")),
    "partial_depth": Section("Prompts in the upper layers", "partial_depth", ("--repeats", "3")),
    "assembly": Section("Many long prompts", "fleet", (*LARGE, "--repeats", "2", "--dtypes", "float32")),
    "search": Section("A search", "search"),
    "evaluation": Section("Prediction", "evaluation", ("--full", "--sample", "125")),
}
"""By the names of their JSON files, in the order of the page."""
ON_GPU = tuple(name for name in SECTIONS if name not in ("padding", "partial_depth"))


def arguments() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument(
        "--only", nargs="*", choices=list(SECTIONS), help="run these anew (default: all; none: only write)"
    )
    options.add_argument("--folder", type=Path, default=ROOT / "runs" / "performance", help="of the JSON (%(default)s)")
    options.add_argument("--page", type=Path, default=ROOT / "docs" / "performance.md", help="(default: %(default)s)")
    options.add_argument("--threads", type=int, default=1, help="of each benchmark (default: %(default)s)")
    options.add_argument("--data", help="passed on to each benchmark")
    options.add_argument(
        "--smallest", metavar="BACKBONE", help="folder of a tiny BERT, with smallest sizes, as a trial"
    )
    return options.parse_args()


def run(name: str, device: str, options: argparse.Namespace) -> None:
    """Run one benchmark; its JSON goes to the folder."""
    section = SECTIONS[name]
    command = [sys.executable, str(ROOT / "benchmarks" / f"{section.script}.py"), *section.arguments]
    command += ["--threads", str(options.threads), "--device", device]
    command += ["--json", str(file_of(name, device, options)), *(["--data", options.data] if options.data else [])]
    print(f"{name} on {device}", flush=True)
    started = time.monotonic()
    done = subprocess.run(command)
    if done.returncode:
        sys.exit(f"{name} ended with {done.returncode}; the page is as it was")
    print(f"{name} took {time.monotonic() - started:.0f} s", flush=True)


def file_of(name: str, device: str, options: argparse.Namespace) -> Path:
    """Where a benchmark's JSON is."""
    return options.folder / f"{name}_{device}.json"


def markdown(report: dict[str, Any]) -> list[str]:
    """Tables, notes and machine of one benchmark."""
    lines = []
    for table in report["tables"]:
        lines += [f"**{table['title']}**", "", f"| {' | '.join(table['columns'])} |"]
        lines += ["|" + "---|" * len(table["columns"])]
        lines += [f"| {' | '.join(row)} |" for row in table["rows"]] + [""]
    lines += [f"- {note}" for note in report["notes"]] + [f"- {describe(report['machine'])}"]
    return [*lines, f"- Rounds: {report['settings']['repeats']}.", ""]


def _works(reports: dict[str, Any], *start: str, **wanted: Any) -> list[dict[str, Any]]:
    """What the reports whose names start so have measured, where it is as wanted."""
    works = [work for name, report in reports.items() if name.startswith(start) for work in report["works"]]
    return [work for work in works if all(work[name] == value for name, value in wanted.items())]


def _ratio(backbone: str, comparison: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda reports: [
        work["ratios"][comparison]["median"]
        for work in _works(reports, "step", backbone=backbone, max_length=256)
        if comparison in work["ratios"]
    ]


def _share(label: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda reports: [
        100 * work["shares_of_matrix_product"][label]
        for work in _works(reports, "step", backbone="random-12x768", max_length=256)
    ]


def _memory(top: str, bottom: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda reports: [work["bytes"][top] / work["bytes"][bottom] for work in _works(reports, "memory")]


def _fleet(other: str) -> Callable[[dict[str, Any]], list[float]]:
    return lambda reports: [work["ratios"][other]["median"] for work in _works(reports, "fleet")]


BARS: tuple[tuple[str, str, Callable[[dict[str, Any]], list[float]]], ...] = (
    *(
        (f"{name}, 256 tokens, {comparison}: times faster than PEFT", bar, _ratio(name, comparison))
        for comparison, bar in (
            ("equal, float32, no dropout", "2.0"),
            ("equal, float32, dropout", "2.0"),
            ("equal, bfloat16, no dropout", "2.7"),
            ("equal, bfloat16, dropout", "2.7"),
        )
        for name in ("minilm", "random-12x768")
    ),
    ("random-12x768, 256 tokens, recommended against PEFT's defaults", "7", _ratio("random-12x768", "recommended")),
    (
        "random-12x768, float32: share of the matrix product's rate, %",
        "70",
        _share("PromptFleet, float32, dropout off"),
    ),
    (
        "random-12x768, bfloat16: share of the matrix product's rate, %",
        "50",
        _share("PromptFleet, bfloat16, dropout off"),
    ),
    ("memory over PEFT's", "at most 0.6", _memory("ours", "PEFT")),
    ("memory with activation checkpointing over that without", "below 1", _memory("ours, checkpointing", "ours")),
    ("fleet of 8: times faster than 8 runs of ours", "2.5", _fleet("separate")),
    ("fleet of 8: times faster than 8 runs of PEFT, equal settings", "6", _fleet("PEFT")),
    ("fleet of 8: times faster than 8 runs of PEFT, defaults", "6", _fleet("PEFT, defaults")),
    (
        "64 members, 24 layers, P=128: assembling, % of the step",
        "below 2",
        lambda reports: [100 * work["shares"]["median"] for work in _works(reports, "assembly")],
    ),
    (
        "search of 16: steps that halving takes, % of the whole search's",
        "below 50",
        lambda reports: [100 * work["share_of_steps"] for work in _works(reports, "search")],
    ),
)
"""What is measured, what the project wants of it, and where it is found in the reports; several values: of all rows."""


def overview(reports: dict[str, Any]) -> list[str]:
    """What was measured beside what the project wants."""
    lines = ["### Wanted and measured", "", "| | wanted | measured |", "|---|---|---|"]
    for title, bar, find in BARS:
        values = find(reports)
        if values:
            lines.append(f"| {title} | {bar} | {_span(values)} |")
    return [*lines, ""] if len(lines) > 4 else []


def _span(values: list[float]) -> str:
    low, high = (f"{value:.0f}" if value > 20 else f"{value:.2f}" for value in (min(values), max(values)))
    return low if low == high else f"{low} to {high}"


def page(options: argparse.Namespace) -> str:
    """The measured part of the page."""
    lines, overviews = [], []
    for device in ("cpu", "cuda"):
        names = [name for name in SECTIONS if file_of(name, device, options).is_file()]
        reports = {name: json.loads(file_of(name, device, options).read_text(encoding="utf-8")) for name in names}
        if device == "cuda":
            lines += ["## On a GPU", ""]
            if not names:
                lines += [
                    "The machine that measured this page has none; there the same benchmarks run with `--device cuda`.",
                    "",
                ]
        else:
            overviews = overview(reports)
            missing = [name for name in SECTIONS if name not in reports]
            overviews += [f"Not measured yet: {', '.join(missing)} (`--only`).", ""] if missing else []
        for name, report in reports.items():
            lines += [f"{'##' if device == 'cpu' else '###'} {SECTIONS[name].title}", "", *markdown(report)]
    return "\n".join([BEGIN, "", *overviews, *lines]) + END


def main() -> None:
    options = arguments()
    options.folder.mkdir(parents=True, exist_ok=True)
    old = options.page.read_text(encoding="utf-8") if options.page.is_file() else f"{BEGIN}\n{END}\n"
    if old.count(BEGIN) != 1 or old.count(END) != 1:
        sys.exit(f"{options.page}: needs one line {BEGIN!r} and one line {END!r}, between which the tables go")
    names = list(SECTIONS) if options.only is None else options.only
    for name in names:
        run(name, "cpu", options)
    if torch.cuda.is_available():
        for name in [name for name in names if name in ON_GPU]:
            run(name, "cuda", options)
    before, _, rest = old.partition(BEGIN)
    options.page.write_text(before + page(options) + rest.partition(END)[2], encoding="utf-8")
    print(f"wrote {options.page}")


if __name__ == "__main__":
    main()
