"""What makes two runs the same experiment, asked of what a run folder or checkpoint has recorded."""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from pydantic import ValidationError

from prompt_tuning.errors import UserError
from prompt_tuning.messages import difference, sentences
from prompt_tuning.settings.changes import without
from prompt_tuning.settings.merge import Json, read_json
from prompt_tuning.settings.run import MemberSpec, Run
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.search import HalvingSection
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
        halving = record.get("halving")
        rungs = None if halving is None else HalvingSection.model_validate(halving)
        run = Run(record["name"], folder, members, record["shared_prompt"], rungs, record.get("concurrent"))
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
    return {"members": members, "shared_prompt": record["shared_prompt"], "halving": record.get("halving")}


def recipe(config: Json) -> Json:
    """What members have in common that differ in their seed alone, whichever version recorded their settings."""
    with contextlib.suppress(ValidationError):  # of a version whose keys this one does not have: as they are
        config = RunFile.model_validate(config).model_dump(mode="json", by_alias=True)
    config = without(config, RunFile, "parallel", "launch", "people")
    return {**config, "train": {key: value for key, value in config["train"].items() if key != "seed"}}


@dataclass(frozen=True)
class Comparison:
    """A recorded experiment beside one of today."""

    difference: str | None
    """Why the one may not be continued as the other, as a phrase; None: it may."""
    places: tuple[int, ...] = ()
    """For every recorded member its place among today's; nothing where the experiments differ."""
    added: tuple[str, ...] = ()
    """Names of today's members that were not recorded."""


def identities(members: Sequence[MemberSpec]) -> list[str]:
    """A digest of each member's settings that change the numbers; where data and backbone lie does not count.

    Of members with equal digests the second and later ones are numbered.
    """
    configs = [spec.config.model_dump(mode="json", by_alias=True) for spec in members]
    digests = [_digest(_unplaced(without(config, RunFile, "parallel", "launch", "people"))) for config in configs]
    numbers = [digests[:place].count(digest) + 1 for place, digest in enumerate(digests)]
    return [f"{d}-{number}" if number > 1 else d for d, number in zip(digests, numbers, strict=True)]


def compare(recorded: Json, new: Json, may_move: bool) -> Comparison:
    """A recorded experiment beside :func:`experiment`'s of today.

    Members are the same by their settings, whatever they are called and wherever they stand in their file; others may have
    been added. What was recorded is read as a run file of today, so that a key that came later has its default in it.
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
                return Comparison(f"{', '.join(unknown)}: unknown to this version; continue with the one that wrote it")
            place, sentence = problems[0]
            return Comparison(f"{place}: {sentence}")
    old = _experiment(cast(RunRecord, old))
    before, now = old["members"], new["members"]
    places = _places(before, now, may_move)
    differs = _difference(before, now, places, may_move)
    if old["shared_prompt"] != new["shared_prompt"]:
        differs = difference(old["shared_prompt"], new["shared_prompt"], "shared_prompt")
    elif old["halving"] != new["halving"]:
        differs = difference(old["halving"], new["halving"], "fleet.halving")
    elif differs is None and new["shared_prompt"] and places != list(range(len(now))):
        differs = "its members train one prompt together: none is added, and their order stays"
    if differs is not None:
        return Comparison(differs)
    found = tuple(place for place in places if place is not None)
    return Comparison(None, found, tuple(member["name"] for i, member in enumerate(now) if i not in found))


def _places(before: list[Json], now: list[Json], may_move: bool) -> list[int | None]:
    """Where recorded members stand today; None: nowhere. Of several equal ones those of the same place on disk and name go
    together.
    """
    places: list[int | None] = [None] * len(before)
    for moves, renamed in ((False, False), (False, True), *([(True, False), (True, True)] if may_move else [])):
        free: dict[tuple[str, str], list[int]] = {}
        for place, member in enumerate(now):
            if place not in places:
                free.setdefault(_key(member, moves, renamed), []).append(place)
        for index, member in enumerate(before):
            candidates = free.get(_key(member, moves, renamed))
            if places[index] is None and candidates:
                places[index] = candidates.pop(0)
    return places


def _key(member: Json, moves: bool, renamed: bool) -> tuple[str, str]:
    return _digest(_unplaced(member["config"]) if moves else member["config"]), "" if renamed else member["name"]


def _difference(before: list[Json], now: list[Json], places: list[int | None], may_move: bool) -> str | None:
    """The first recorded member whose settings are others today, those that are gone, or names that were exchanged."""
    left = [member for place, member in enumerate(now) if place not in places]
    lost = [index for index, place in enumerate(places) if place is None]
    for number, index in enumerate(lost):
        named = [member for member in left if member["name"] == before[index]["name"]]
        if named or len(lost) == len(before) == len(now):
            sides = [side["config"] for side in (before[index], (named or left[number:])[0])]
            old, new = (_unplaced(side) if may_move else side for side in sides)
            return difference(old, new, f"members[{index}].config")
    if lost:
        return f"it has members that are missing now: {', '.join(before[index]['name'] for index in lost)}"
    names = {member["name"] for member in before}
    for member, place in zip(before, places, strict=True):
        name = now[place or 0]["name"]
        if name != member["name"] and name in names:
            return f"{member['name']} is now called {name}, which is another member's name there"
    return None


def _unplaced(config: Json) -> Json:
    """Settings without where data and backbone lie."""
    config = {**config, "data": dict(config["data"]), "backbone": dict(config["backbone"])}
    for section, key in (("data", "path"), ("data", "files"), ("backbone", "path")):
        config[section].pop(key, None)
    return config


def _digest(value: Json) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]
