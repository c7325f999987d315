"""The driver's verb that starts a run file on many ranks."""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from launcher.clusters.backends import open_process, render
from launcher.clusters.placement import add_placement, divide, place_on, submission
from launcher.options import add_folder, add_overrides
from launcher.ranks.exit_codes import STOPPED
from launcher.ranks.stop import DRIVER_SIGNALS, POLL_SECONDS, StopRequest, ask_to_stop
from launcher.runs.journal import submit_job
from launcher.runs.state import owner_of, result_status, saved_step
from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import load_run


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "submit",
        help="start a run file on many ranks: here, over a hostfile, by MPI or by SLURM",
        description="Start a run file on many ranks. --dry-run prints exactly what would run.",
    )
    verb.add_argument("config", metavar="CONFIG")
    add_overrides(verb)
    add_folder(verb)
    verb.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    add_placement(verb)
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Start a run file by a backend, or say what would be started."""
    run = load_run(options.config, options.set, options.output)
    flags = tuple(f"--{name}" for name in ("resume", "fresh") if getattr(options, name))
    if "--fresh" in flags and options.backend == "slurm":
        raise UserError(f"--fresh would start a job anew each time it is requeued; move {run.output} away instead")
    wanted = replace(submission(options, Path(options.config), run.output, tuple(options.set)), flags=flags)
    if options.nodes is not None and wanted.hosts is not None:
        wanted = place_on(wanted, divide(wanted)[0])
    rendered = render(options.backend, wanted)
    if options.dry_run:
        sys.stdout.write(rendered.describe(wanted.variables))
        return 0
    owner = owner_of(run.output)
    if owner is not None:
        # The worker would refuse too, but this process must not hand requests on to a job that is not its own.
        raise UserError(f"{run.output} is in use by {owner}; wait for it, stop it, or choose another --output")
    if options.backend == "slurm":
        job = submit_job(rendered, run.output)
        print(job)
        print(f"SLURM has job {job}; promptfleet status {run.output}   shows how far it is", file=sys.stderr)
        return 0
    return _wait(open_process(rendered), run.output)


def _wait(process: subprocess.Popen[bytes], folder: Path) -> int:
    """Wait for a launcher; its exit code. A request to stop is handed on to the ranks through their run folder."""
    with StopRequest(DRIVER_SIGNALS) as stop:
        is_told = False
        while True:
            if stop():
                ask_to_stop(folder)
                if not is_told:
                    with contextlib.suppress(OSError):  # the terminal may be gone
                        print("asked to stop; waiting for the ranks to save their step", file=sys.stderr, flush=True)
                is_told = True
            try:
                code = process.wait(timeout=POLL_SECONDS)
            except subprocess.TimeoutExpired:
                continue
            if is_told and code and result_status(folder) is None and saved_step(folder):
                return STOPPED  # which not every launcher hands on
            return code if code >= 0 else 128 - code
