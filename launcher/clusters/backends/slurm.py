"""A SLURM job: one sbatch script, whose srun starts the ranks; no ssh."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

from launcher.clusters.backends import Rendered, Submission
from prompt_tuning.errors import UserError
from prompt_tuning.messages import show

_WORD = re.compile(r"[A-Za-z0-9_.,:@/+=\[\]-]+")
_GRACE_SECONDS = 120
_ANSWER_SECONDS = 120


def render(submission: Submission) -> Rendered:
    """``sbatch`` reading its script: the ranks of each node, a signal before the time limit, and a requeue on it.

    The job sees none of the submitter's environment but the variables that are asked for by name. Raises :class:`UserError`.
    """
    output = submission.output.resolve()
    settings = {
        "job-name": _checked("the run's folder", output.name),
        "output": _checked("--output", str(output.with_name(output.name + ".slurm-%j.txt")), also="%"),
    }
    start = f"srun --kill-on-bad-exit=1 {_worker(submission)}"
    return _script(submission, settings, [start], "$SLURM_JOB_ID", retries=0)


def render_array(submissions: list[Submission], folder: Path, retries: int, name: str) -> Rendered:
    """The same for many runs, each a task of one array of that name; one that fails is requeued ``retries`` times."""
    folder = folder.resolve()
    settings = {
        "job-name": _checked("the suite's folder", name),
        "output": _checked("--output", str(folder / "slurm-%A_%a.txt"), also="%"),
        "array": f"0-{len(submissions) - 1}",
    }
    cases = [f"{task}) worker=({_worker(submission)}) ;;" for task, submission in enumerate(submissions)]
    choice = ['case "$SLURM_ARRAY_TASK_ID" in', *cases, "esac", 'srun --kill-on-bad-exit=1 "${worker[@]}"']
    # One task of an array has the array's own number for SLURM_JOB_ID, which would requeue all of them.
    return _script(submissions[0], settings, choice, "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}", retries)


def _worker(submission: Submission) -> str:
    return shlex.join([sys.executable, *submission.worker])


def _script(submission: Submission, settings: dict[str, str], start: list[str], job: str, retries: int) -> Rendered:
    if submission.hosts is not None:
        raise UserError("--hostfile does not go with --backend slurm, which chooses hosts itself; use --nodes")
    if submission.ranks % submission.nodes:
        raise UserError(f"--ranks {submission.ranks} cannot be divided among --nodes {submission.nodes}")
    per_node = submission.ranks // submission.nodes
    wanted = {
        **settings,
        "nodes": str(submission.nodes),
        "ntasks": str(submission.ranks),
        "ntasks-per-node": str(per_node),
        **({"gpus-per-node": str(per_node)} if submission.gpus else {}),
        "export": "NONE",
        "requeue": "",
        "open-mode": "append",
    }
    asked = {"signal": f"USR1@{_GRACE_SECONDS}", **submission.scheduler}
    for name, value in asked.items():
        if not re.fullmatch(r"[a-z][a-z-]*", name) or name in wanted:
            raise UserError(
                f"--sbatch {show(name)}: not the long name of an option of sbatch, or set already; --dry-run shows the script"
            )
        wanted[name] = _checked(f"{name} of the job", value) if value else ""
    lines = ["#!/bin/bash"]
    lines += [f"#SBATCH --{key}={value}".removesuffix("=") for key, value in wanted.items()]
    lines.append("set -u")
    if "cpus-per-task" in wanted:
        lines.append('export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"  # srun does not take it from the job')
    # srun hands on what the script has, which is nothing of the submitter's but this.
    lines.append("export SLURM_EXPORT_ENV=ALL")
    variables = {**({"MASTER_ADDR": submission.master} if submission.master else {}), **submission.variables}
    lines += [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    lines += [*start, "code=$?"]
    # 75: the ranks were asked to stop and have saved their step. 3: a member diverged, and would again.
    again = '[ "$code" -eq 75 ]'
    if retries:
        again += f' || {{ [ "$code" -ne 0 ] && [ "$code" -ne 3 ] && [ "${{SLURM_RESTART_COUNT:-0}}" -lt {retries} ]; }}'
    lines += [f'if {again}; then scontrol requeue "{job}"; fi', 'exit "$code"']
    return Rendered(["sbatch", "--parsable"], "\n".join(lines) + "\n", environment="that of a login, not this shell's")


def submit(rendered: Rendered) -> str:
    """Hand a script to SLURM; the job's number. Raises :class:`UserError` with what ``sbatch`` says against it."""
    done = call(rendered.command, rendered.text)
    if done.returncode:
        raise UserError(f"sbatch refuses the job: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout.strip().partition(";")[0]


def call(command: list[str], text: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run one of SLURM's programs. Raises :class:`UserError` where it is not installed."""
    try:
        return subprocess.run(command, input=text, capture_output=True, text=True, check=False, timeout=_ANSWER_SECONDS)
    except (FileNotFoundError, PermissionError):  # the latter where a folder of PATH may not be looked into
        raise UserError(f"{command[0]} is not installed here; go to a host of the SLURM cluster") from None
    except subprocess.TimeoutExpired:
        raise UserError(f"{command[0]} has not answered for {_ANSWER_SECONDS} s; try again later") from None


def queue() -> dict[str, str]:
    """This user's jobs in the queue, as ``<state> as <number>``: by their number, and tasks of arrays by ``<name>_<task>``.

    Raises :class:`UserError`.
    """
    done = call(["squeue", "--me", "--noheader", "--array", "--format", "%j %K %i %T"])
    if done.returncode:
        raise UserError(f"squeue does not answer: {done.stderr.strip()}")
    found = {}
    for name, task, number, state in (line.rsplit(None, 3) for line in done.stdout.splitlines() if line.count(" ") > 2):
        found[number] = found[f"{name}_{task}"] = f"{state} as {number}"
    return found


def _checked(what: str, value: str, also: str = "") -> str:
    """A value for a ``#SBATCH`` line, which knows no quotes."""
    if not _WORD.fullmatch(value.translate({ord(letter): "_" for letter in also})) or value.startswith("-"):
        raise UserError(
            f"{what}: {show(value)} cannot stand in a batch script; use letters, digits and _ . , : @ / + = [ ] -"
        )
    return value
