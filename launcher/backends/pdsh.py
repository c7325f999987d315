"""Hosts of a hostfile, by DeepSpeed's launcher over pdsh and ssh."""

from __future__ import annotations

from launcher.backends import Rendered, Submission, check_quotable, python_program
from prompt_tuning.errors import UserError


def render(submission: Submission) -> Rendered:
    """``deepspeed --launcher pdsh``, the hosts told by ``--include``, so that a filtered hostfile needs no copy."""
    if submission.hosts is None or submission.hostfile is None:
        raise UserError("--backend pdsh needs --hostfile, the file that lists your hosts")
    include = "@".join(f"{host.name}:{','.join(map(str, host.slots))}" for host in submission.hosts)
    check_quotable(submission.worker[1:], "deepspeed")
    command = [
        python_program("deepspeed"),
        *("--hostfile", str(submission.hostfile.resolve())),
        *("--include", include),
        *("--launcher", "pdsh"),
        *("--master_addr", submission.master or submission.hosts[0].name),
        *("--master_port", str(submission.port)),
        "--force_multi",
        *submission.worker,
    ]
    return Rendered(command, places=submission.places)
