"""Run files that a verb writes for itself and waits for, as ``compare`` and ``tune`` do."""

from __future__ import annotations

import argparse
from pathlib import Path

from launcher.clusters.placement import divide, submission
from launcher.runs.dispatch import Dispatcher
from launcher.runs.plan import FleetJob
from launcher.runs.state import result_status
from prompt_tuning.errors import UserError
from prompt_tuning.settings.merge import read_json


def run_all(title: str, jobs: list[FleetJob], options: argparse.Namespace, output: Path) -> bool:
    """Run those that have no result yet, where the options place them; False: asked to stop.

    What a worker says goes to a file beside its run file. Raises :class:`UserError` where one has failed.
    """
    waiting = [job for job in jobs if _is_unfinished(job)]
    print(f"{title}: {len(waiting)} of {len(jobs)} runs to do" if waiting else f"{title}: done already", flush=True)
    if not waiting:
        return True
    wanted = submission(options, output, output)
    dispatcher = Dispatcher(wanted, options.backend, output, divide(wanted), retries=0, is_quiet=True)
    dispatcher.run(waiting)
    if dispatcher.is_asked_to_stop:
        return False
    failed = [job for job in waiting if result_status(job.folder) is None]
    if failed:
        job = failed[0]
        raise UserError(f"{job.folder.name} has failed: {_last_error(job)}; its log is {job.file.with_suffix('.txt')}")
    return True


def _is_unfinished(job: FleetJob) -> bool:
    """Whether a run has no result, or one of fewer members than it is to have."""
    file = job.folder / "result.json"
    return not file.exists() or len(read_json(file)["members"]) < len(job.members)


def _last_error(job: FleetJob) -> str:
    """What the worker of a run said last of an error."""
    text = job.file.with_suffix(".txt").read_text(encoding="utf-8", errors="replace")
    said = [line.partition("error: ")[2] for line in text.splitlines() if "error: " in line]
    return said[-1] if said else "it has no result"
