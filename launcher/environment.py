"""What the process was born with: its rank, its threads, and versions for the record. The only reader of os.environ."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import platform
import socket
import subprocess
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError

ROOT = Path(__file__).resolve().parent.parent


@dataclass(frozen=True)
class Process:
    """This process among those that the launcher started."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1


def find_process(local_rank: int | None = None, environment: Mapping[str, str] = os.environ) -> Process:
    """Rank and size as torchrun and DeepSpeed's launcher set them; one process alone where nothing is set."""

    def number(name: str, otherwise: int) -> int:
        value = environment.get(name, str(otherwise))
        if not value.isdigit():
            raise UserError(f"environment variable {name}={value!r} is not a number; unset it or start with a launcher")
        return int(value)

    world_size = number("WORLD_SIZE", 1)
    rank = number("RANK", 0)
    if rank >= world_size:
        raise UserError(
            f"environment variables RANK={rank} and WORLD_SIZE={world_size} contradict each other; unset them"
        )
    if world_size > 1 and not environment.get("MASTER_ADDR"):
        raise UserError(
            f"environment variable WORLD_SIZE={world_size}, but no MASTER_ADDR; start with torchrun or deepspeed"
        )
    return Process(
        rank=rank,
        local_rank=number("LOCAL_RANK", local_rank or 0),
        world_size=world_size,
        local_world_size=max(1, number("LOCAL_WORLD_SIZE", number("LOCAL_SIZE", world_size))),
    )


def threads(process: Process, environment: Mapping[str, str] = os.environ) -> int:
    """CPU threads for this process: OMP_NUM_THREADS where it is set, else the cores divided among the local ranks."""
    if environment.get("OMP_NUM_THREADS", "").isdigit() and process.world_size == 1:
        return max(1, int(environment["OMP_NUM_THREADS"]))
    return max(1, len(os.sched_getaffinity(0)) // process.local_world_size)


def record(process: Process, num_threads: int) -> dict[str, Any]:
    """What environment.json holds: versions, host, processor, ranks and source revision."""
    packages = ("torch", "deepspeed", "transformers", "tokenizers", "datasets", "safetensors", "numpy")
    return {
        "versions": {"python": platform.python_version(), **{name: _version(name) for name in packages}},
        "host": socket.gethostname(),
        "processor": _processor(),
        "world_size": process.world_size,
        "threads": num_threads,
        "revision": _revision(),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def _revision() -> str | None:
    try:
        found = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None


def quiet_libraries() -> None:
    """Keep transformers and tokenizers from writing progress bars and fork warnings among our messages."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls torch by names that are on their way out.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def name_local_rank(process: Process) -> None:
    """Tell DeepSpeed the local rank, which it reads from the environment whatever started the process."""
    os.environ.setdefault("LOCAL_RANK", str(process.local_rank))


def share_processor() -> None:
    """Let idle threads of a matrix product sleep instead of spin. To be called before torch is imported.

    Spinning threads wait for one that another program has pushed off its core: with a busy neighbour on 2 cores a training
    step took 3 to 10 times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
