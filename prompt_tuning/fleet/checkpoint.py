"""Checkpoints: everything that training changes, of all members; megabytes, without pickle, whole or not there.

``step-000120/`` holds one safetensors file a member and ``state.json`` with the rest and the files' checksums. The folder
appears under its name only when complete. It knows nothing of ranks: any number of them may continue it. Members are known
by their settings, wherever they stand in the run file. A member that has not changed since the checkpoint before shares its
file by a hard link, so that damage to such a file is damage to all checkpoints that hold it.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from prompt_tuning.errors import UserError
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.saved_member import data_of, restore, state_of, tensors_of
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.settings import identity
from prompt_tuning.settings.run import Run
from prompt_tuning.storage.atomic import new_folder, sha256, write_json
from prompt_tuning.storage.records import SavedMember

logger = logging.getLogger(__name__)

FORMAT = 2
"""1, of version 0.1.0, knew members and their files by their place."""


def save(folder: Path, fleet: Fleet, step: int, experiment: dict[str, Any], keep: int) -> None:
    """Write ``folder/step-<step>`` and delete all but the ``keep`` newest checkpoints. First rank only."""
    folder.mkdir(exist_ok=True)  # never its parent, which somebody may just have deleted
    before, specs = _newest_state(folder), [member.spec for member in fleet.members]
    with new_folder(folder / f"step-{step:06d}") as target:
        checksums, members = {}, []
        for digest, member in zip(identity.identities(specs), fleet.members, strict=True):
            saved: SavedMember = {"identity": digest, "file": f"member-{digest}.safetensors", **state_of(member)}
            file = target / saved["file"]
            checksum = None if before is None else _link(file, saved, *before)
            if checksum is None:
                # Not save_file, which has an error of its own for a full disk.
                file.write_bytes(save_tensors(tensors_of(member)))
                checksum = sha256(file)
            checksums[file.name] = checksum
            members.append(saved)
        state: dict[str, Any] = {
            "format": FORMAT,
            "step": step,
            "concurrent": fleet.concurrent if fleet.concurrent < len(fleet.members) else None,
            "backbone": fleet.backbone.identity.to_json(),
            "experiment": experiment,
            "members": members,
            "sha256": checksums,
        }
        state["sha256_of_state"] = _digest(state)
        write_json(target / "state.json", state)
    kept = steps(folder)[-keep:]
    for old in sorted(folder.glob("step-*")):  # half deleted ones too, which a killed run may leave
        if old not in kept:
            shutil.rmtree(old)


def steps(folder: Path) -> list[Path]:
    """Complete checkpoints, oldest first."""
    complete = [path for path in folder.glob("step-*") if (path / "state.json").is_file()]
    return sorted(complete, key=lambda path: (len(path.name), path.name))  # seven digits come after six


def newest(folder: Path) -> Path | None:
    """The newest checkpoint whose checksums hold; says which ones it passes over."""
    for path in reversed(steps(folder)):
        reason = _damage(path)
        if reason is None:
            return path
        logger.warning("checkpoint %s is damaged (%s); trying the one before", path, reason)
    return None


def set_aside(folder: Path, used: Path | None) -> None:
    """Give the checkpoints that were passed over for ``used`` another name, so that they never count as the newest again."""
    found = steps(folder)
    for path in found if used is None else found[found.index(used) + 1 :]:
        aside = path.with_name(f"damaged-{path.name}")
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        logger.warning("it is now %s", aside)


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    if state["format"] == 1:
        for place, saved in enumerate(state["members"]):
            saved["file"] = f"member-{place:04d}.safetensors"
    return state


def read_tensors(path: Path, saved: SavedMember) -> dict[str, torch.Tensor]:
    """All tensors of a member; read and not mapped, so that a file that changes later changes nothing here."""
    tensors: dict[str, torch.Tensor] = load_tensors((path / saved["file"]).read_bytes())
    return tensors


def recorded_experiment(folder: Path) -> dict[str, Any] | None:
    """The experiment of the newest checkpoint whose state.json is whole, whatever its tensors are; None: there is none."""
    found = _newest_state(folder)
    return None if found is None else found[1]["experiment"]


def places(path: Path, state: dict[str, Any], experiment: dict[str, Any]) -> tuple[int, ...]:
    """For every member of a checkpoint its place in a run. Raises :class:`UserError` where the run may not continue it."""
    comparison = identity.compare(state["experiment"], experiment, may_move=_knows_data(state))
    if comparison.difference is not None:
        raise UserError(
            f"{path}: belongs to a run with other settings ({comparison.difference});"
            " use --fresh to start anew or --output for another folder"
        )
    return comparison.places


def in_order(path: Path, run: Run) -> Run:
    """A run with its members as a checkpoint has them, added ones last: their order in a batch changes the last bits.

    Raises :class:`UserError` where the run may not continue the checkpoint.
    """
    first = places(path, read_state(path), identity.experiment(run))
    rest = [place for place in range(len(run.members)) if place not in first]
    return replace(run, members=tuple(run.members[place] for place in (*first, *rest)))


def load(path: Path, fleet: Fleet, experiment: dict[str, Any]) -> int:
    """Put the fleet into the state of a checkpoint and return its step. Raises :class:`UserError`.

    Members that the checkpoint does not hold stay as they are: untrained, at their own step 0.
    """
    state = read_state(path)
    other = fleet.backbone.identity.difference(state["backbone"])
    if other:
        raise UserError(
            f"{path}: belongs to another backbone than {fleet.backbone.path} ({other}); use the one it was trained on"
        )
    members = [fleet.members[place] for place in places(path, state, experiment)]
    for member, saved in zip(members, state["members"], strict=True):
        if _knows_data(state):
            _check_data(path, member, saved["data"])
    for member, saved in zip(members, state["members"], strict=True):
        restore(member, saved, read_tensors(path, saved))
    if not fleet.is_concurrency_given:
        # Who trains beside whom stays, whatever memory is free now; None: all, as earlier versions had it.
        before = state.get("concurrent")
        fleet.concurrent = max(fleet.concurrent, len(members)) if before is None else int(before)
    fleet.number = int(state["step"])
    return fleet.number


def _knows_data(state: dict[str, Any]) -> bool:
    return all("data" in saved for saved in state["members"])


def _check_data(path: Path, member: Member, recorded: dict[str, Any]) -> None:
    """Raise :class:`UserError` unless a member's labels and examples are those that the run began with."""
    remedy = "undo the change, or use --fresh to start anew"
    there, here = recorded["labels"], list(member.labels)
    if there != here:
        raise UserError(
            f"{path}: {member.name} was trained on the labels {', '.join(there)}; the data now have {', '.join(here)}; {remedy}"
        )
    now = data_of(member)["splits"]
    for split in sorted({*recorded["splits"], *now}):
        old, new = recorded["splits"].get(split), now.get(split)
        if old != new:
            sizes = [f"{side['examples']} examples" if side else "none" for side in (old, new)]
            what = (
                f"had {sizes[0]}, now {sizes[1]}"
                if sizes[0] != sizes[1]
                else "has the same number of examples but others"
            )
            raise UserError(f"{path}: the {split} split of {member.name} {what}; {remedy}")


def _link(file: Path, saved: SavedMember, before: Path, state: dict[str, Any]) -> str | None:
    """Make ``file`` the one that the checkpoint ``before`` has of a member, if nothing of the member has changed since.

    Returns its checksum; None: the file has to be written. Training changes no tensor without a number in ``saved``.
    """
    if json.loads(json.dumps(saved)) not in state["members"]:
        return None
    try:
        os.link(before / saved["file"], file)
    except OSError:  # the file system has no links, or no more of them
        return None
    checksum: str = state["sha256"][saved["file"]]
    return checksum


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


_UNREADABLE = (OSError, ValueError, KeyError, TypeError, AttributeError)


def _damage(path: Path) -> str | None:
    """Why a checkpoint cannot be used; None where it is whole."""
    try:
        reason = _damage_of_state(path)
        if reason is not None:
            return reason
        for name, checksum in read_state(path)["sha256"].items():
            if sha256(path / name) != checksum:
                return f"{name} does not match its checksum"
    except _UNREADABLE as error:
        return f"{type(error).__name__}: {error}"
    return None


def _damage_of_state(path: Path) -> str | None:
    state = json.loads((path / "state.json").read_text())
    declared = state.pop("sha256_of_state")
    if _digest(state) != declared:
        return "state.json does not match its checksum"
    if state["format"] not in (1, FORMAT):
        return f"format {state['format']} is neither 1 nor {FORMAT}"
    return None


def _newest_state(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint whose state.json is whole, and what it says; its tensors are not looked at."""
    for path in reversed(steps(folder)):
        with contextlib.suppress(*_UNREADABLE):
            if _damage_of_state(path) is None:
                return path, read_state(path)
    return None
