"""What `promptfleet plan` counts beside what training takes: peaks of memory, and the fastest placement.

    python benchmarks/planner.py --rounds 3

Random backbones of three shapes are trained for some steps in every placement that two processes allow, each on texts of one
length, in processes of their own; the planner is asked before. Memory is the anonymous memory of a process at its peak, imports
and loading included, with malloc told to return freed tensors at once. Placements are timed by turns.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Started as a file, Python puts benchmarks/ on the path, and not the root of the project.
    sys.path[0] = str(ROOT)

    from launcher.ranks.environment import share_processor

    share_processor()

import argparse
import ctypes
import json
import statistics
import subprocess
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any

from benchmarks.peak import M_MMAP_THRESHOLD
from model_parallel.memory import process_memory

if TYPE_CHECKING:
    from prompt_tuning.placement.count import Cost

SHAPES: dict[str, dict[str, Any]] = {
    "bert, 6 x 768, float32": {
        "model_type": "bert",
        "hidden_size": 768,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": 30522,
        "pad_token_id": 0,
        "dtype": "float32",
    },
    "llama, 4 x 1024, float32": {
        "model_type": "llama",
        "hidden_size": 1024,
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 4,
        "intermediate_size": 2816,
        "vocab_size": 32000,
        "pad_token_id": 0,
        "dtype": "float32",
    },
    "glm4, 2 x 2048, bfloat16": {
        "model_type": "glm4",
        "hidden_size": 2048,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 128,
        "intermediate_size": 6848,
        "vocab_size": 32000,
        "partial_rotary_factor": 0.5,
        "attention_bias": True,
        "tie_word_embeddings": False,
        "pad_token_id": 0,
        "eos_token_id": [1],
        "dtype": "bfloat16",
    },
}
PLACEMENTS = ((1, 1, False), (2, 2, False), (2, 1, True))
"""Ranks, tensor ranks of them, and whether ZeRO-3 splits the weights over the others."""

TEXT = 126
"""Words of a text, to which the tokenizer adds nothing."""


def write_backbone(folder: Path, config: dict[str, Any]) -> None:
    """A random backbone of a shape, with a tokenizer of words."""
    import torch
    from transformers import AutoConfig, AutoModel

    from benchmarks.ten_billion import write_tokenizer

    torch.manual_seed(0)
    given = {key: value for key, value in config.items() if key not in ("model_type", "dtype")}
    model = AutoModel.from_config(
        AutoConfig.for_model(config["model_type"], **given), dtype=getattr(torch, config["dtype"])
    )
    model.save_pretrained(folder)
    write_tokenizer(folder)


def write_run(
    folder: Path, backbone: Path, config: dict[str, Any], options: argparse.Namespace, **sections: Any
) -> Path:
    """A run file and its data: texts of equal length, two classes."""
    from benchmarks.ten_billion import write_texts

    write_texts(folder, 4 * options.batch, options.text)
    run = {
        "task": {"kind": "classification", "name": "random", "labels": ["c0", "c1"]},
        "backbone": {"path": str(backbone), "dtype": config["dtype"]},
        "data": {"path": str(folder), "max_length": options.text},
        "prompt": {"length": 16},
        **sections,
    }
    file = folder / "run.json"
    file.write_text(json.dumps(run))
    return file


def measure_rank(file: str, steps: int) -> None:
    """Train as one rank under torchrun; the first rank prints what all have measured."""
    import torch

    from launcher.ranks.environment import find_process, name_local_rank, quiet_libraries
    from launcher.ranks.rendezvous import meet
    from launcher.ranks.watch import open_store
    from model_parallel.collectives import gather_objects, open_group
    from model_parallel.grid import make_grid
    from prompt_tuning.settings.members import load_run
    from prompt_tuning.trainer import build_fleet

    quiet_libraries()
    ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, 1 << 16)
    torch.set_num_threads(1)
    run, process, device = load_run(file, []), find_process(None), torch.device("cpu")
    parallel = run.shared.parallel
    if process.world_size > 1 or parallel.zero:
        store = open_store(meet(process), process.rank, 60)
        open_group(store, process.rank, process.world_size, device, 300)
        name_local_rank(process)
    grid = make_grid(process.rank, process.world_size, device, parallel.tensor)
    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.002):
            peak[0] = max(peak[0], process_memory()["anonymous"])

    start = process_memory()["anonymous"]
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    fleet = build_fleet(run, grid)
    loaded, loading = process_memory()["anonymous"], peak[0]
    seconds = []
    for _ in range(steps):
        gathered = fleet.backbone.zero.gathered_numel if fleet.backbone.zero else 0
        began = time.perf_counter()
        fleet.train_step(fleet.active())
        seconds.append(time.perf_counter() - began)
        for member in fleet.members:
            member.step += 1
    done.set()
    watcher.join()
    zero = fleet.backbone.zero
    found = {
        "start": start,
        "loading": loading,
        "loaded": loaded,
        "peak": peak[0],
        "seconds": seconds[1:],
        "gathered": (zero.gathered_numel - gathered) / fleet.backbone.num_parameters if zero else 0,
        "gathered_at_once": zero.peak_numel if zero else 0,
    }
    everyone = gather_objects(found, grid)
    if grid.is_first:
        print("measured " + json.dumps(everyone), flush=True)


def measure(file: Path, ranks: int, steps: int) -> list[dict[str, Any]]:
    """What each rank has measured."""
    command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    command += [__file__, "--rank", str(file), "--steps", str(steps)]
    done = subprocess.run(command, capture_output=True, text=True)
    for line in done.stdout.splitlines():
        if line.startswith("measured "):
            found: list[dict[str, Any]] = json.loads(line.removeprefix("measured "))
            return found
    sys.exit(f"{done.stdout}\n{done.stderr}")


def plan(file: Path, ranks: int, base: int, rates: tuple[float, float]) -> Cost:
    """What the planner counts of a run file's own placement, for processes that begin with ``base`` bytes."""
    from prompt_tuning.placement.count import Machine, Placement, count
    from prompt_tuning.placement.outline import Outline
    from prompt_tuning.settings.members import load_run

    run = load_run(str(file), [])
    shared = run.shared
    matrices, memory = rates
    machine = Machine(ranks, matrices, memory, memory / 8, memory / 8, ranks, 2e-5, 10**12, base)
    placement = Placement(shared.parallel.tensor, shared.parallel.zero, shared.train.activation_checkpointing)
    return count(Outline(run), placement, machine)


def rates_here(config: dict[str, Any]) -> tuple[float, float]:
    """Of this device at a shape: operations and bytes a second."""
    import torch

    from model_parallel.rates import matrix_rate, memory_rate

    torch.set_num_threads(1)
    cpu = torch.device("cpu")
    return matrix_rate(config["hidden_size"], getattr(torch, config["dtype"]), cpu), memory_rate(cpu)


def compare(name: str, options: argparse.Namespace) -> None:
    """Train a shape in every placement, by turns, and print a row for each."""
    config = SHAPES[name]
    with tempfile.TemporaryDirectory() as scratch:
        write_backbone(Path(scratch) / "backbone", config)
        files = {}
        for ranks, tensor, zero in PLACEMENTS:
            for checkpointing in (False, True):
                folder = Path(scratch) / f"{ranks}-{tensor}-{zero}-{checkpointing}"
                folder.mkdir()
                train = {
                    "batch_size": options.batch,
                    "activation_checkpointing": checkpointing,
                    "backbone_dropout": False,
                }
                parallel = {"tensor": tensor, "zero": zero}
                file = write_run(folder, Path(scratch) / "backbone", config, options, train=train, parallel=parallel)
                files[file] = ranks
        found: dict[Path, list[list[dict[str, Any]]]] = {file: [] for file in files}
        for _ in range(options.rounds):
            for file, ranks in files.items():
                found[file].append(measure(file, ranks, options.steps))
        rates = rates_here(config)
        for file, ranks in files.items():
            # The rank that read the files has the most.
            most = [max(one, key=lambda rank: rank["peak"]) for one in found[file]]
            cost = plan(file, ranks, most[0]["start"], rates)
            peak = statistics.median(one["peak"] for one in most)
            seconds = statistics.median(second for one in most for second in one["seconds"])
            print(
                f"| {name} | {ranks} | {cost.placement.name} | {cost.memory / 2**20:.0f} | {peak / 2**20:.0f}"
                f" | {cost.memory / peak:.2f} | {cost.seconds:.2f} | {seconds:.2f} |",
                flush=True,
            )


def main() -> None:
    """Print the table."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rank", metavar="FILE", help=argparse.SUPPRESS)
    options.add_argument("--shapes", nargs="+", choices=SHAPES, default=list(SHAPES), metavar="NAME")
    options.add_argument("--steps", type=int, default=3)
    options.add_argument("--rounds", type=int, default=1)
    options.add_argument("--batch", type=int, default=8)
    options.add_argument("--text", type=int, default=TEXT)
    chosen = options.parse_args()
    if chosen.rank:
        measure_rank(chosen.rank, chosen.steps)
        return
    print("| backbone | ranks | placement | counted MiB | measured MiB | ratio | counted s | measured s |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for name in chosen.shapes:
        compare(name, chosen)


if __name__ == "__main__":
    main()
