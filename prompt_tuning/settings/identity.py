"""What makes two runs the same experiment, asked of what a run folder or checkpoint has recorded."""

from __future__ import annotations

import copy
from pathlib import Path

from pydantic import ValidationError

from prompt_tuning.errors import UserError
from prompt_tuning.messages import difference
from prompt_tuning.settings.members import MemberSpec, Run
from prompt_tuning.settings.merge import Json, read_json
from prompt_tuning.settings.schema import BOOKKEEPING, NO_EXPERIMENT, RunFile


def load_recorded_run(folder: Path) -> Run:
    """The run that a run folder's run.json records. Raises :class:`UserError`."""
    file = folder / "run.json"
    record = read_json(file)
    try:
        members = tuple(
            MemberSpec(member["name"], member["overrides"], RunFile.model_validate(member["config"]))
            for member in record["members"]
        )
        run = Run(record["name"], folder, members, record["shared_prompt"])
    except (KeyError, TypeError, ValidationError) as error:
        raise UserError(f"{file}: not the record of a run ({type(error).__name__}); give a run folder") from None
    if not members:
        raise UserError(f"{file}: the record of a run without members; give a run folder")
    return run


def experiment(run: Run) -> Json:
    """The part of a run's record that changes the numbers: runs with equal experiments may continue each other."""
    return _experiment(run.to_json())


def _experiment(record: Json) -> Json:
    members = copy.deepcopy(record["members"])
    for member in members:
        config = member["config"]
        for key in NO_EXPERIMENT:
            config.pop(key, None)
        for key in BOOKKEEPING:
            config["train"].pop(key, None)
    return {"members": members, "shared_prompt": record["shared_prompt"]}


def experiment_difference(folder: Path, run: Run) -> str | None:
    """Where the experiment that a folder's run.json records differs from ``run``'s; None: nowhere."""
    try:
        old, new = _experiment(read_json(folder / "run.json")), experiment(run)
    except (UserError, KeyError, TypeError, AttributeError):
        return "its run.json is damaged"
    return None if old == new else difference(old, new)
