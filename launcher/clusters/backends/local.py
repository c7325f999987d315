"""This machine: one process, or several ranks by torchrun."""

from __future__ import annotations

import sys

from launcher.clusters.backends import Rendered, Submission
from prompt_tuning.errors import UserError


def render(submission: Submission) -> Rendered:
    """One rank runs in this Python; several under ``torch.distributed.run``."""
    if submission.hosts is not None:
        raise UserError("--hostfile names other hosts, but --backend local runs here; choose deepspeed or mpi")
    start = [sys.executable]
    if submission.ranks > 1:
        # Without the address its ranks would look for each other by this host's name, which need not resolve.
        place = ["--standalone", "--local-addr", "127.0.0.1"]
        start += ["-m", "torch.distributed.run", *place, "--nproc-per-node", str(submission.ranks)]
    return Rendered([*start, *submission.worker], places=submission.places)
