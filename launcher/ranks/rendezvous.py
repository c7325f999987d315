"""Where the ranks meet, whatever started them."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass

from launcher.clusters.hostfile import expand_nodes
from launcher.ranks.environment import VARIABLES, Process, read_number
from prompt_tuning.errors import UserError

LOOPBACK = "127.0.0.1"
"""Where the ranks of one host meet: they need no name of it, which need not resolve."""


def rendezvous(process: Process, environment: Mapping[str, str] = VARIABLES) -> dict[str, str]:
    """Where the ranks meet, in torch's variables; {} where the launcher has set them or there is one rank alone.

    ``MASTER_ADDR`` and ``MASTER_PORT`` that somebody has set are kept. Raises :class:`UserError`.
    """
    if process.world_size == 1 or "WORLD_SIZE" in environment:
        return {}
    place = {"RANK": str(process.rank), "WORLD_SIZE": str(process.world_size), "LOCAL_RANK": str(process.local_rank)}
    meeting = {name: environment[name] for name in ("MASTER_ADDR", "MASTER_PORT") if environment.get(name)}
    if len(meeting) < 2:
        is_slurm = "SLURM_STEP_NUM_TASKS" in environment and "OMPI_COMM_WORLD_SIZE" not in environment
        meeting = {**(_slurm_meeting(environment) if is_slurm else _mpi_meeting(process)), **meeting}
    return {**place, **meeting}


def _slurm_meeting(environment: Mapping[str, str]) -> dict[str, str]:
    """The first host of the step, and a port that every rank can work out; steps of one job differ in theirs."""
    nodes = expand_nodes(environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", ""))
    job, step = read_number(environment, "SLURM_JOB_ID"), read_number(environment, "SLURM_STEP_ID")
    host = LOOPBACK if len(nodes) == 1 else nodes[0]
    return {"MASTER_ADDR": host, "MASTER_PORT": str(20_000 + (job * 7 + step) % 10_000)}


def _mpi_meeting(process: Process) -> dict[str, str]:
    """The first rank's host and a free port of it, told to all by MPI itself."""
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise UserError(
            f"the ranks of this MPI job cannot meet: mpi4py does not load ({error}); set MASTER_ADDR and MASTER_PORT"
        ) from None
    world = MPI.COMM_WORLD
    if world.Get_size() != process.world_size:
        raise UserError(
            f"the launcher says that the job has {process.world_size} ranks, mpi4py says {world.Get_size()};"
            " start with the MPI that mpi4py uses, or set MASTER_ADDR and MASTER_PORT"
        )
    is_one_host = world.Split_type(MPI.COMM_TYPE_SHARED).Get_size() == world.Get_size()
    with socket.socket() as listener:
        listener.bind(("", 0))
        own = LOOPBACK if is_one_host else socket.gethostname(), listener.getsockname()[1]
        host, port = world.bcast(own, root=0)
    return {"MASTER_ADDR": host, "MASTER_PORT": str(port)}


@dataclass(frozen=True)
class Meeting:
    """Where the ranks meet, and whether the launcher keeps the store there that they meet in, or else the first rank."""

    host: str
    port: int
    is_kept_by_launcher: bool
    attempt: int = 0
    """How often the launcher has started the ranks anew."""


def meet(process: Process) -> Meeting:
    """Tell torch where the ranks meet, whatever started them. Raises :class:`UserError` where that place has no address."""
    VARIABLES.update(rendezvous(process))
    host = VARIABLES["MASTER_ADDR"]
    try:
        socket.getaddrinfo(host, None)
    except OSError as error:
        raise UserError(
            f"the ranks cannot meet on {host!r} (MASTER_ADDR): {error}; set MASTER_ADDR to a host that all reach"
        ) from None
    port, attempt = read_number(VARIABLES, "MASTER_PORT"), read_number(VARIABLES, "TORCHELASTIC_RESTART_COUNT")
    return Meeting(host, port, VARIABLES.get("TORCHELASTIC_USE_AGENT_STORE") == "True", attempt)
