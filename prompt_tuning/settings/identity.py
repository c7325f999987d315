"""What makes two runs the same experiment, asked of what a run folder or checkpoint has recorded."""

from __future__ import annotations

import contextlib
import copy
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from prompt_tuning.errors import UserError
from prompt_tuning.messages import difference, sentences
from prompt_tuning.settings.changes import without
from prompt_tuning.settings.merge import Json, read_json
from prompt_tuning.settings.run import MemberSpec, Run
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.storage.records import RunRecord


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


def _experiment(record: RunRecord) -> Json:
    members = copy.deepcopy(record["members"])
    for member in members:
        member["config"] = without(member["config"], RunFile, "parallel", "launch", "people")
    return {"members": members, "shared_prompt": record["shared_prompt"]}


def recipe(config: Json) -> Json:
    """What members have in common that differ in their seed alone, whichever version recorded their settings."""
    with contextlib.suppress(ValidationError):  # of a version whose keys this one does not have: as they are
        config = RunFile.model_validate(config).model_dump(mode="json", by_alias=True)
    config = without(config, RunFile, "parallel", "launch", "people")
    return {**config, "train": {key: value for key, value in config["train"].items() if key != "seed"}}


def recorded_difference(recorded: Json, new: Json, may_move: bool) -> str | None:
    """Where a recorded experiment differs from :func:`experiment`'s of today, as a phrase; None: nowhere.

    What was recorded is read as a run file of today, so that a key that came later has its default in it.
    ``may_move``: whether data and backbone may lie elsewhere, because something else tells that they are the same.
    """
    old = copy.deepcopy(recorded)
    for member in old["members"]:
        try:
            member["config"] = RunFile.model_validate(member["config"]).model_dump(mode="json", by_alias=True)
        except ValidationError as error:
            problems = sentences(error, RunFile, ("extends",))
            unknown = [place for place, sentence in problems if sentence.startswith("unknown key")]
            if unknown:
                return f"{', '.join(unknown)}: unknown to this version; continue with the one that wrote it"
            place, sentence = problems[0]
            return f"{place}: {sentence}"
    old, now = _experiment(cast(RunRecord, old)), copy.deepcopy(new)
    for member in (*old["members"], *now["members"]) if may_move else ():
        for section, key in (("data", "path"), ("data", "files"), ("backbone", "path")):
            member["config"][section].pop(key, None)
            for overrides in (member["overrides"], member["overrides"].get(section)):
                if isinstance(overrides, dict) and isinstance(overrides.get(section), dict):
                    overrides[section].pop(key, None)
    return None if old == now else difference(old, now)


def experiment_difference(folder: Path, run: Run) -> str | None:
    """Where the experiment that a folder's run.json records differs from ``run``'s; None: nowhere.

    A run that is to go on may find its data and backbone elsewhere: its checkpoint knows them.
    """
    is_finished = (folder / "result.json").exists()
    try:
        return recorded_difference(read_json(folder / "run.json"), experiment(run), may_move=not is_finished)
    except (UserError, KeyError, TypeError, AttributeError):
        return "its run.json is damaged"
