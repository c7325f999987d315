"""Prediction: rows a second beside a plain loop around PEFT, and what many rows take.

    python benchmarks/evaluation.py --json evaluation.json

By turns in one process, on rows of WiC and BoolQ, from rows to probabilities with tokenising: ours, which is what
`promptfleet predict` calls for each of its chunks; and PEFT's prefix tuning in a loop whose batches are padded to their longest
row, once in the order of the rows and once sorted by length. Both sides have the same prompt, and their answers are compared.

Then `promptfleet predict` reads WiC's rows, over and over until they are as many as --rows, as a command of its own: a tenth of
them and all. The rate is taken between the two, which leaves the start out. Its memory is anonymous memory, sampled every
5 ms from outside. What `predict()` takes for many rows at once, whose answers then all lie in memory, stands beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Started as a file, Python puts benchmarks/ on the path, and not the root of the project.
    sys.path[0] = str(ROOT)

    from launcher.ranks.environment import share_processor

    # Before torch is imported, as the worker does.
    share_processor()

import itertools
import json
import os
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from benchmarks import ours, theirs, timing
from benchmarks.peak import peak_of
from benchmarks.report import Report, range_of
from benchmarks.work import Work, add_backbones, backbone, check, data_folder, parser, quiet
from model_parallel.memory import process_memory
from prompt_tuning.errors import UserError
from prompt_tuning.formats import Row
from prompt_tuning.predict import attach
from prompt_tuning.prompt.export import load_prompt
from prompt_tuning.report.results import export_member

DTYPES = ("float32", "bfloat16")
LONG = ("wic", "bfloat16")
"""What many rows are of, and the precision of their backbone."""
MANY = 100_000
LARGER = 30
"""Than at the start, a prompt's prefix and the weights of its head."""


def rows_of(work: Work, count: int) -> list[Row]:
    """So many rows without labels, the task's over and over."""
    lines = (Path(work.data) / "train.jsonl").read_text(encoding="utf-8").splitlines()
    own = [{key: value for key, value in json.loads(line).items() if key != "label"} for line in lines]
    return list(itertools.islice(itertools.cycle(own), count))


def prompt_of(work: Work, dtype: str, folder: Path) -> Path:
    """The exported prompt of a task: untrained, and so large that an answer without it, or with another, would be another."""
    place = folder / f"{work.task}-{dtype}"
    if not place.exists():
        member = ours.build(work, dtype, False).members[0]
        with torch.no_grad():
            member.prompt.prefix.embedding.mul_(LARGER)
            member.prompt.head.weight.mul_(LARGER)
        export_member(place, member)
    return place


def compare(work: Work, dtype: str, folder: Path, sample: int, repeats: int) -> dict[str, Any]:
    """Seconds, ratios, share of padding and differences of answers on some rows for each round."""
    exported = load_prompt(prompt_of(work, dtype, folder))
    model, peft = attach(exported, device=work.device), theirs.peft_model(work, dtype, False).eval()
    theirs.copy_prompt(exported.prompt, peft)
    rows = rows_of(work, (repeats + 1) * sample)
    parts = [rows[start : start + sample] for start in range(0, len(rows), sample)]
    tasks = {
        "ours": _on_each(model.predict, parts),
        "PEFT": _on_each(theirs.predictor(peft, work, False), parts),
        "PEFT, sorted": _on_each(theirs.predictor(peft, work, True), parts),
    }
    seconds, answers = timing.by_turns(tasks, repeats, work.device)
    chances = [[list(one["probabilities"].values()) for one in part] for part in answers["ours"]]
    others = {name: answers[name] for name in tasks if name != "ours"}
    apart = [np.abs(np.array(a) - b).max() for a, (b, _) in zip(chances, others["PEFT"], strict=True)]
    return {
        "task": work.task,
        "dtype": dtype,
        "seconds": seconds,
        "rows_per_second": {name: sample / timing.median(own) for name, own in seconds.items()},
        "ratios": {name: timing.ratio(seconds[name], seconds["ours"]) for name in others},
        "padding": {name: float(np.mean([share for _, share in found])) for name, found in others.items()},
        "largest_difference": float(max(apart)),
    }


def _on_each(answer: Callable[[list[Row]], Any], parts: list[list[Row]]) -> Callable[[], Any]:
    """A task that answers the next part whenever it is called."""
    coming = iter(parts)
    return lambda: answer(next(coming))


def command(work: Work, prompt: Path, folder: Path, count: int, threads: int) -> dict[str, Any]:
    """Seconds and peak memory of `promptfleet predict` over so many rows."""
    source, output = folder / "rows.jsonl", folder / "predictions.jsonl"
    source.write_text("".join(f"{json.dumps(row)}\n" for row in rows_of(work, count)), encoding="utf-8")
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    if work.device == "cpu":
        environment["CUDA_VISIBLE_DEVICES"] = ""
    call = [sys.executable, "-m", "launcher.cli", "predict", "--prompt", str(prompt)]
    before, started, peak = _of_children(), time.perf_counter(), 0
    process = subprocess.Popen([*call, "--input", str(source), "--output", str(output)], cwd=ROOT, env=environment)
    while process.poll() is None:
        peak = max(peak, process_memory(Path(f"/proc/{process.pid}/status")).get("anonymous", 0))
        time.sleep(0.005)
    if process.returncode:
        raise UserError(f"promptfleet predict ended with {process.returncode}; its message is above")
    with output.open("rb") as lines:
        answered = sum(1 for _ in lines)
    if answered != count:
        raise RuntimeError(f"promptfleet predict wrote {answered} lines for {count} rows")
    on_the_clock = time.perf_counter() - started
    is_processors = work.device == "cpu" and threads == 1
    return {"rows": count, "seconds": _of_children() - before if is_processors else on_the_clock, "bytes": peak}


def _of_children() -> float:
    """Processor seconds of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def at_once(work: Work, dtype: str, folder: Path, count: int) -> Callable[[], int]:
    """A task that predicts so many rows in one call; returns how many answers it has."""
    model, rows = attach(load_prompt(prompt_of(work, dtype, folder)), device=work.device), rows_of(work, count)
    return lambda: len(model.predict(rows))


def main() -> None:
    options = parser(__doc__, repeats=2, batch_size=16)
    add_backbones(options, "minilm")
    options.add_argument(
        "--tasks", nargs="+", choices=("wic", "boolq"), default=["wic", "boolq"], help="(default: both)"
    )
    options.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="(default: both)")
    options.add_argument("--length", type=int, default=256, help="most tokens of a text (default: %(default)s)")
    options.add_argument("--sample", type=int, default=250, help="rows of a round (default: %(default)s)")
    options.add_argument("--rows", type=int, default=20_000, help="of promptfleet predict (default: %(default)s)")
    options.add_argument("--full", dest="rows", action="store_const", const=MANY, help=f"as --rows {MANY}")
    chosen = options.parse_args()
    quiet()
    try:
        check(chosen)
        if chosen.sample < 1 or chosen.rows < 100:
            raise UserError(f"--sample {chosen.sample}, --rows {chosen.rows}: give at least 1 and 100")
        report = Report(chosen)
        steps = chosen.repeats + 1
        data = {task: data_folder(chosen, task, steps * chosen.sample) for task in chosen.tasks}
        data[LONG[0]] = data_folder(chosen, LONG[0], 1)
        report.numbers["works"] = []
        for name in chosen.backbones:
            with backbone(name, chosen.length + chosen.prompt_length) as path, tempfile.TemporaryDirectory() as folder:
                sizes = (chosen.length, chosen.prompt_length, chosen.batch_size, 1, chosen.device)
                works = {task: Work(path, Path(name).name, own, task, *sizes) for task, own in data.items()}
                many = _many(works[LONG[0]], Path(folder), chosen.rows, chosen.threads)
                rates = [
                    compare(works[task], dtype, Path(folder), chosen.sample, chosen.repeats)
                    for task in chosen.tasks
                    for dtype in chosen.dtypes
                ]
                report.numbers["works"].append({"backbone": Path(name).name, "rates": rates, **many})
    except UserError as error:
        sys.exit(str(error))
    _tell(report)
    report.finish()


def _many(work: Work, folder: Path, rows: int, threads: int) -> dict[str, Any]:
    """What many rows take, by the command and in one call. Before any other work: a forked process needs a quiet parent."""
    dtype, calls = LONG[1], []
    for count in (rows // 100, rows // 20):
        task = partial(at_once, work, dtype, folder, count)
        calls.append({"rows": count, "bytes": peak_of(task, work.device, threads, f"predict() of {count} rows")[0]})
    commands = [command(work, prompt_of(work, dtype, folder), folder, count, threads) for count in (rows // 10, rows)]
    few, all_rows = commands
    more, longer = all_rows["rows"] - few["rows"], all_rows["seconds"] - few["seconds"]
    return {
        "commands": commands,
        # Of few rows the start, which differs from command to command, may take longer than all the rest.
        "rows_per_second": more / longer if longer > 0 else None,
        "bytes_per_row": (all_rows["bytes"] - few["bytes"]) / more,
        "calls": calls,
        "bytes_per_row_of_a_call": (calls[1]["bytes"] - calls[0]["bytes"]) / (calls[1]["rows"] - calls[0]["rows"]),
    }


def _tell(report: Report) -> None:
    options = report.options
    sizes = f"at most {options.length} tokens, P={options.prompt_length}, {options.device}"
    rates = report.table(
        f"Rows a second, {sizes}, PEFT in batches of {options.batch_size}",
        [
            "rows",
            "ours",
            "PEFT",
            "times faster (quartiles)",
            "padding, %",
            "PEFT, sorted by length",
            "times faster than sorted (quartiles)",
            "padding when sorted, %",
        ],
    )
    many = report.table(f"promptfleet predict, {', '.join(LONG)}, {sizes}", ["rows", "seconds", "peak, MiB"])
    for found in report.numbers["works"]:
        for one in found["rates"]:
            cells = [f"{found['backbone']}, {one['task']}, {one['dtype']}", f"{one['rows_per_second']['ours']:,.0f}"]
            for name, ratio in one["ratios"].items():
                share = f"{100 * one['padding'][name]:.0f}"
                cells += [f"{one['rows_per_second'][name]:,.0f}", range_of(ratio), share]
            rates.append(cells)
            report.note(f"{cells[0]}: probabilities differ from PEFT's by at most {one['largest_difference']:.1e}.")
        for one in found["commands"]:
            peak = f"{one['bytes'] / 2**20:,.0f}"
            many.append([f"{found['backbone']}, {one['rows']:,}", f"{one['seconds']:,.0f}", peak])
        first, last = found["calls"]
        rate = found["rows_per_second"]
        answered = (
            "took no longer for the more rows: too few to tell a rate"
            if rate is None
            else f"answered {rate:,.0f} rows a second"
        )
        report.note(
            f"{found['backbone']}: between the two, promptfleet predict {answered},"
            f" and its peak grew by {found['bytes_per_row']:.0f} bytes a row."
        )
        report.note(
            f"{found['backbone']}: predict() of {first['rows']:,} and of {last['rows']:,} rows in one call took"
            f" {first['bytes'] / 2**20:,.0f} and {last['bytes'] / 2**20:,.0f} MiB,"
            f" {found['bytes_per_row_of_a_call'] / 1024:.1f} KiB a row, answers included."
        )


if __name__ == "__main__":
    main()
