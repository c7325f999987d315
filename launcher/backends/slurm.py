"""A SLURM job: one sbatch script, whose srun starts the ranks; no ssh."""

from __future__ import annotations

import re
import shlex
import sys

from launcher.backends import Rendered, Submission
from prompt_tuning.errors import UserError
from prompt_tuning.problems import show

_WORD = re.compile(r"[A-Za-z0-9_.,:@/+-]+")
_GRACE_SECONDS = 120


def render(submission: Submission) -> Rendered:
    """``sbatch`` reading its script: the ranks of each node, a signal before the time limit, and a requeue on it.

    The job sees none of the submitter's environment but the variables that are asked for by name.
    """
    if submission.hosts is not None:
        raise UserError("--hostfile does not go with --backend slurm, which chooses hosts itself; use --nodes")
    if submission.ranks % submission.nodes:
        raise UserError(f"--ranks {submission.ranks} cannot be divided among --nodes {submission.nodes}")
    per_node = submission.ranks // submission.nodes
    output = submission.output.resolve()
    settings = {
        "job-name": _checked("the run's folder", output.name),
        "nodes": str(submission.nodes),
        "ntasks": str(submission.ranks),
        "ntasks-per-node": str(per_node),
        "time": None if submission.time is None else _checked("--time", submission.time),
        "partition": None if submission.partition is None else _checked("--partition", submission.partition),
        "account": None if submission.account is None else _checked("--account", submission.account),
        "gpus-per-node": str(per_node) if submission.gpus else None,
        "output": _checked("--output", str(output.with_name(output.name + ".slurm-%j.txt")), also="%"),
        "signal": f"USR1@{_GRACE_SECONDS}",
        "export": "NONE",
    }
    lines = ["#!/bin/bash", *(f"#SBATCH --{key}={value}" for key, value in settings.items() if value is not None)]
    lines += ["#SBATCH --requeue", "#SBATCH --open-mode=append", "set -u"]
    # srun hands on what the script has, which is nothing of the submitter's but this.
    lines.append("export SLURM_EXPORT_ENV=ALL")
    variables = {**({"MASTER_ADDR": submission.master} if submission.master else {}), **submission.variables}
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines.append(f"srun --kill-on-bad-exit=1 {shlex.join([sys.executable, *submission.worker])}")
    lines += [
        "code=$?",
        # 75: the ranks were asked to stop and have saved their step.
        'if [ "$code" -eq 75 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return Rendered(["sbatch", "--parsable"], text="\n".join(lines) + "\n")


def _checked(what: str, value: str, also: str = "") -> str:
    """A value for a ``#SBATCH`` line, which knows no quotes."""
    if not _WORD.fullmatch(value.translate({ord(letter): "_" for letter in also})) or value.startswith("-"):
        raise UserError(
            f"{what}: {show(value)} cannot stand in a batch script; use letters, digits and _ . , : @ / + -"
        )
    return value
