"""Hosts of a hostfile, or this machine, by Open MPI's mpirun."""

from __future__ import annotations

import sys

from launcher.clusters.backends import Rendered, Submission
from prompt_tuning.errors import UserError


def render(submission: Submission) -> Rendered:
    """``mpirun`` with the hosts and their slots; only the variables that are asked for travel. Raises :class:`UserError`."""
    places = ["--oversubscribe"] if submission.hosts is None else []
    if submission.hosts is not None:
        for host in submission.hosts:
            if host.slots != tuple(range(len(host.slots))):
                raise UserError(
                    f"mpirun takes the first slots of a host and cannot take {', '.join(map(str, host.slots))} of"
                    f" {host.name}; filter by whole hosts, or use --backend deepspeed"
                )
        places = ["--host", ",".join(f"{host.name}:{len(host.slots)}" for host in submission.hosts)]
    exported = [word for name in submission.variables for word in ("-x", name)]
    if submission.master:
        exported += ["-x", f"MASTER_ADDR={submission.master}"]
    count = len(submission.places)
    command = ["mpirun", "-np", str(count), *places, "--bind-to", "none", *exported, sys.executable, *submission.worker]
    where = "this shell's" if submission.hosts is None else "that of each host; this shell's on this one"
    return Rendered(command, places=submission.places, environment=where)
