"""A run's folder: whose it is, whether the run in it goes on, and what has changed since it was left."""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError
from prompt_tuning.messages import difference
from prompt_tuning.settings.identity import Comparison, compare, experiment
from prompt_tuning.settings.merge import read_json
from prompt_tuning.settings.run import Run
from prompt_tuning.storage.atomic import make_folder
from prompt_tuning.storage.lock import locked

logger = logging.getLogger("launcher.run")


def prepare_folder(run: Run, held: ExitStack, *, resume: bool, fresh: bool) -> bool:
    """Make the run folder ready. False: the run in it has finished. Raises :class:`UserError`.

    A folder that holds a run with other settings is refused; ``fresh`` moves it aside. A finished run goes on where members
    have been added to it. ``held`` has the folder's lock.
    """
    folder = run.output
    for record in (folder / "run.json", folder / "environment.json"):
        if record.exists() and not is_record(record):
            raise UserError(
                f"{record} is no record of a run, and the run would write its own there; move it, or choose another --output"
            )
    if fresh and any(file.name != ".lock" for file in folder.iterdir()):
        number = next(n for n in range(1, 10**6) if not folder.with_name(f"{folder.name}.old-{n}").exists())
        aside = folder.with_name(f"{folder.name}.old-{number}")
        folder.rename(aside)
        logger.info("the older run is now %s", aside)
        make_folder(folder)
        held.enter_context(locked(folder))
    if resume:
        from prompt_tuning.fleet.checkpoint import newest

        if newest(folder / "checkpoints") is None:
            raise UserError(f"--resume: {folder} has no checkpoint to continue from; leave the flag out to start anew")
    if (folder / "run.json").exists() and _results(folder):
        found = _compare(folder, run)
        if found.difference:
            raise UserError(
                f"{folder} holds a run with other settings ({found.difference});"
                " use --fresh to start anew or --output for another folder"
            )
        if found.added and (folder / "result.json").exists():
            _reopen(folder, found.added)
    return not (folder / "result.json").exists()


def _compare(folder: Path, run: Run) -> Comparison:
    """What a folder holds beside ``run``: an unfinished run's checkpoint, or else its run.json.

    A run that is to go on may find its data and backbone elsewhere: its checkpoint knows them.
    """
    from prompt_tuning.fleet.checkpoint import recorded_experiment

    is_finished = (folder / "result.json").exists()
    try:
        saved = None if is_finished else recorded_experiment(folder / "checkpoints")
        record = saved or read_json(folder / "run.json")
        return compare(record, experiment(run), may_move=not is_finished)
    except (UserError, KeyError, TypeError, AttributeError):
        return Comparison("its run.json is damaged")


def _reopen(folder: Path, added: tuple[str, ...]) -> None:
    """Let a finished run go on with members that were added to it. Raises :class:`UserError`."""
    from prompt_tuning.fleet.checkpoint import newest

    names = ", ".join(added)
    if newest(folder / "checkpoints") is None:
        raise UserError(
            f"{folder} has finished and has no checkpoint that {names} could be added to;"
            " use --fresh to train all members anew or --output for another folder"
        )
    (folder / "result.json").unlink()
    logger.info("%s has finished before; added to it: %s", folder, names)


def is_record(file: Path) -> bool:
    """Whether a run.json or environment.json was written by a run, whole or damaged, and is not somebody's own."""
    try:
        content = read_json(file)
    except UserError:
        return True
    if file.name == "environment.json":
        return "world_size" in content
    return "members" in content or not {"task", "backbone", "extends"} & set(content)


def say_what_changed(folder: Path, environment: dict[str, Any]) -> None:
    """Where a run is continued in another environment than it was left in: its numbers go on equal to rounding, not to the bit."""
    if not any((folder / "checkpoints").glob("step-*")):
        return
    try:
        old = read_json(folder / "environment.json")
    except UserError:
        return  # of a run that was killed very early, or damaged: it serves people alone
    keys = ("versions", "processor", "world_size", "threads", "tensor", "zero")
    before, now = ({key: values.get(key) for key in keys} for values in (old, environment))
    if before != now:
        logger.warning(
            "this is not where the run was left (%s): equal to rounding, not to the bit", difference(before, now)
        )


def _results(folder: Path) -> bool:
    """Whether a run folder holds anything that another run would spoil, rather than just the record of a failed start."""
    return (folder / "result.json").exists() or any((folder / "checkpoints").glob("step-*"))
