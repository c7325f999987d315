"""What the process was born with: its rank, its threads, and versions for the record. The only reader of os.environ."""

from __future__ import annotations

import logging
import os
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from model_parallel.cores import usable_cores
from prompt_tuning.errors import UserError

VARIABLES = os.environ
"""What the process was born with, and leaves to libraries and children."""

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Process:
    """This process among those that the launcher started."""

    rank: int = 0
    local_rank: int = 0
    world_size: int = 1
    local_world_size: int = 1
    cores: int | None = None
    """Processor cores that the launcher has set aside for this process alone; None: the host's are shared."""


@dataclass(frozen=True)
class Launcher:
    """How a launcher tells a process its place, by names of environment variables."""

    name: str
    rank: str
    world_size: str
    local_rank: str
    local_world_size: tuple[str, ...]


LAUNCHERS = (
    Launcher("torchrun or DeepSpeed", "RANK", "WORLD_SIZE", "LOCAL_RANK", ("LOCAL_WORLD_SIZE", "LOCAL_SIZE")),
    Launcher("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_RANK",
             ("OMPI_COMM_WORLD_LOCAL_SIZE",)),
    # SLURM_NTASKS stands in a batch script too, which is one process; a step's number of tasks does not.
    Launcher("SLURM", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS", "SLURM_LOCALID", ()),
    Launcher("PMI (MPICH, Intel MPI)", "PMI_RANK", "PMI_SIZE", "MPI_LOCALRANKID", ("MPI_LOCALNRANKS",)),
)  # fmt: skip
"""Innermost first: torchrun may run inside a SLURM step and mpirun inside a SLURM job, whose variables they inherit."""


def find_process(local_rank: int | None = None, environment: Mapping[str, str] = os.environ) -> Process:
    """Rank and size from whichever launcher set them; one process alone where none did. Raises :class:`UserError`.

    Launchers that contradict each other are refused: each of 16 SLURM tasks would take itself for the whole job where an
    MPI that knows nothing of SLURM says 1.
    """
    there = [launcher for launcher in LAUNCHERS if launcher.world_size in environment] or [LAUNCHERS[0]]
    (launcher, process), *others = [(launcher, _read_place(launcher, environment)) for launcher in there]
    for other, place in others:
        if launcher is not LAUNCHERS[0] and place.world_size > process.world_size:
            raise UserError(
                f"{other.name} says that the job has {place.world_size} ranks ({other.world_size}), {launcher.name}"
                f" says {process.world_size} ({launcher.world_size}); start with one of them, or unset the other's variables"
            )
    if launcher is LAUNCHERS[0]:
        if process.world_size > 1 and not environment.get("MASTER_ADDR"):
            raise UserError(
                f"environment variable WORLD_SIZE={process.world_size}, but no MASTER_ADDR; start with torchrun or deepspeed"
            )
        if "LOCAL_RANK" not in environment:
            process = replace(process, local_rank=local_rank or 0)
    return process


def _read_place(launcher: Launcher, environment: Mapping[str, str]) -> Process:
    """This process's place as a launcher tells it; one process alone where it tells nothing."""
    rank, size = read_number(environment, launcher.rank), read_number(environment, launcher.world_size, 1)
    if rank >= size:
        raise UserError(
            f"environment variables {launcher.rank}={rank} and {launcher.world_size}={size} contradict each other; unset them"
        )
    local_sizes = [read_number(environment, name) for name in launcher.local_world_size if name in environment]
    local_size = local_sizes[0] if local_sizes else size
    cores = None
    if launcher.name == "SLURM":
        local_size = _slurm_tasks_here(environment, size)
        cores = read_number(environment, "SLURM_CPUS_PER_TASK") or None
    return Process(rank, read_number(environment, launcher.local_rank), size, max(1, local_size), cores)


def _slurm_tasks_here(environment: Mapping[str, str], size: int) -> int:
    """Tasks on this node, from ``SLURM_STEP_TASKS_PER_NODE`` such as ``2(x3),1``."""
    counts: list[int] = []
    for part in environment.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        found = re.fullmatch(r"([0-9]{1,6})(?:\(x([0-9]{1,6})\))?", part)
        counts += [int(found[1])] * min(int(found[2] or 1), size) if found else []
    node = environment.get("SLURM_NODEID", "")
    return counts[int(node)] if node.isdecimal() and int(node) < len(counts) else size


def read_number(environment: Mapping[str, str], name: str, otherwise: int = 0) -> int:
    """A whole number from the environment. Raises :class:`UserError` for what is none."""
    value = environment.get(name, str(otherwise))
    if not (value.isascii() and value.isdecimal() and len(value) < 20):
        raise UserError(f"environment variable {name}={value!r} is not a number; unset it or start with a launcher")
    return int(value)


def variables(names: list[str]) -> dict[str, str]:
    """Values of the environment variables that a submission takes along. Raises :class:`UserError` for one that is not set."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise UserError(f"--export {missing[0]}: no such environment variable here; set it or leave it out")
    return {name: os.environ[name] for name in names}


def threads(process: Process, environment: Mapping[str, str] = os.environ) -> int:
    """CPU threads for this process: OMP_NUM_THREADS where one is alone and it is set, else its share of the cores."""
    if environment.get("OMP_NUM_THREADS", "").isdigit() and process.world_size == 1:
        return max(1, int(environment["OMP_NUM_THREADS"]))
    cores = usable_cores()
    return max(1, min(cores, process.cores or cores // process.local_world_size))


def quiet_libraries() -> None:
    """Keep transformers and tokenizers from writing progress bars and fork warnings among our messages."""
    os.environ["TOKENIZERS_PARALLELISM"] = (
        "false"  # its threads do not outlive a fork, which then waits for them for ever
    )
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # DeepSpeed calls torch by names that are on their way out.
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")


def name_local_rank(process: Process) -> None:
    """Tell DeepSpeed the local rank, which it reads from the environment whatever started the process."""
    os.environ.setdefault("LOCAL_RANK", str(process.local_rank))


def quiet_torch() -> None:
    """Keep torch from printing stack frames about connections that broke: we say in a sentence who is gone.

    To be called before torch is imported.
    """
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def share_processor() -> None:
    """Let idle threads of a matrix product sleep instead of spin. To be called before torch is imported.

    Spinning threads wait for one that another program has pushed off its core: with a busy neighbour on 2 cores a training
    step took 3 to 10 times as long.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
