"""Hosts of a hostfile: on each of them DeepSpeed's launcher of local ranks, started over pdsh and ssh.

DeepSpeed's own driver of pdsh is passed by: it hands paths and values to the hosts' shells unquoted, and every variable of
this shell whose name begins with PYTHON, MLFLOW, UCX, MV2 or NCCL, tokens included.
"""

from __future__ import annotations

import base64
import json
import shlex
import sys
from pathlib import Path

from launcher.clusters.backends import Rendered, Submission
from prompt_tuning.errors import UserError

_MOST_CONNECTIONS = 1024


def render(submission: Submission) -> Rendered:
    """``pdsh`` with one command for all hosts, in which it puts each host's number for ``%n``. Raises :class:`UserError`."""
    hosts = submission.hosts
    if hosts is None:
        raise UserError("--backend deepspeed needs --hostfile, the file that lists your hosts")
    slots = json.dumps({host.name: host.slots for host in hosts}).encode()
    steps = [f"cd {shlex.quote(str(Path.cwd()))}"]
    steps += [f"export {name}={shlex.quote(value)}" for name, value in submission.variables.items()]
    start = [
        *("exec", sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
        f"--world_info={base64.urlsafe_b64encode(slots).decode()}",
        f"--master_addr={submission.master or hosts[0].name}",
        f"--master_port={submission.port}",
    ]
    # The worker comes last, so the number of the host stands before it; a % of any other word is doubled for pdsh.
    before, after = " && ".join([*steps, shlex.join(start)]), shlex.join(submission.worker)
    told = f"{before.replace('%', '%%')} --node_rank=%n {after.replace('%', '%%')}"
    names = ",".join(host.name for host in hosts)
    return Rendered(
        ["pdsh", "-R", "ssh", "-S", "-b", "-f", str(_MOST_CONNECTIONS), "-w", names, told],
        places=submission.places,
        nodes={host.name: f"{before} --node_rank={number} {after}" for number, host in enumerate(hosts)},
        environment="that of each host",
    )
