"""Hosts of a hostfile, or this machine, by Open MPI's mpirun."""

from __future__ import annotations

import sys

from launcher.backends import Rendered, Submission


def render(submission: Submission) -> Rendered:
    """``mpirun`` with the hosts and their slots; only the variables that are asked for travel."""
    places = ["--oversubscribe"] if submission.hosts is None else []
    if submission.hosts is not None:
        places = ["--host", ",".join(f"{host.name}:{len(host.slots)}" for host in submission.hosts)]
    exported = [word for name in submission.variables for word in ("-x", name)]
    if submission.master:
        exported += ["-x", f"MASTER_ADDR={submission.master}"]
    count = len(submission.places)
    command = ["mpirun", "-np", str(count), *places, "--bind-to", "none", *exported, sys.executable, *submission.worker]
    return Rendered(command, places=submission.places)
