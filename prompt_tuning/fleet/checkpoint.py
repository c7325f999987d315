"""Checkpoints: everything that training changes, of all members; megabytes, without pickle, whole or not there.

``step-000120/`` holds one safetensors file a member and ``state.json`` with the rest and the files' checksums. The folder
appears under its name only when complete. It knows nothing of ranks: any number of them may continue it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from prompt_tuning.errors import UserError
from prompt_tuning.fleet.member import Best, Member
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.settings.identity import recorded_difference
from prompt_tuning.storage.atomic import new_folder, sha256, write_json
from prompt_tuning.storage.records import SavedMember

logger = logging.getLogger(__name__)

FORMAT = 1


def save(folder: Path, fleet: Fleet, step: int, experiment: dict[str, Any], keep: int) -> None:
    """Write ``folder/step-<step>`` and delete all but the ``keep`` newest checkpoints. First rank only."""
    folder.mkdir(exist_ok=True)  # never its parent, which somebody may just have deleted
    with new_folder(folder / f"step-{step:06d}") as target:
        checksums = {}
        for index, member in enumerate(fleet.members):
            file = target / f"member-{index:04d}.safetensors"
            # Not save_file, which has an error of its own for a full disk.
            file.write_bytes(save_tensors(_tensors(member)))
            checksums[file.name] = sha256(file)
        state = {
            "format": FORMAT,
            "step": step,
            "backbone": fleet.backbone.identity.to_json(),
            "experiment": experiment,
            "members": [_state(member) for member in fleet.members],
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
    for path in steps(folder):
        if (
            used is None
            or len(path.name) > len(used.name)
            or (len(path.name) == len(used.name) and path.name > used.name)
        ):
            aside = path.with_name(f"damaged-{path.name}")
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
            logger.warning("it is now %s", aside)


def read_state(path: Path) -> dict[str, Any]:
    """What a checkpoint says beside its tensors."""
    state: dict[str, Any] = json.loads((path / "state.json").read_text())
    return state


def read_tensors(path: Path, index: int) -> dict[str, torch.Tensor]:
    """All tensors of a member; read and not mapped, so that a file that changes later changes nothing here."""
    tensors: dict[str, torch.Tensor] = load_tensors((path / f"member-{index:04d}.safetensors").read_bytes())
    return tensors


def load(path: Path, fleet: Fleet, experiment: dict[str, Any]) -> int:
    """Put the fleet into the state of a checkpoint and return its step. Raises :class:`UserError`."""
    state = read_state(path)
    other = fleet.backbone.identity.difference(state["backbone"])
    if other:
        raise UserError(
            f"{path}: belongs to another backbone than {fleet.backbone.path} ({other}); use the one it was trained on"
        )
    knows_data = all("data" in saved for saved in state["members"])
    differs = recorded_difference(state["experiment"], experiment, may_move=knows_data)
    if differs:
        raise UserError(
            f"{path}: belongs to a run with other settings ({differs});"
            " use --fresh to start anew or --output for another folder"
        )
    for member, saved in zip(fleet.members, state["members"], strict=True):
        if knows_data:
            _check_data(path, member, saved["data"])
    for index, (member, saved) in enumerate(zip(fleet.members, state["members"], strict=True)):
        _restore(member, saved, read_tensors(path, index))
    return int(state["step"])


def _check_data(path: Path, member: Member, recorded: dict[str, Any]) -> None:
    """Raise :class:`UserError` unless a member's labels and examples are those that the run began with."""
    remedy = "undo the change, or use --fresh to start anew"
    there, here = recorded["labels"], list(member.labels)
    if there != here:
        raise UserError(
            f"{path}: {member.name} was trained on the labels {', '.join(there)}; the data now have {', '.join(here)}; {remedy}"
        )
    now = _data(member)["splits"]
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


def _data(member: Member) -> dict[str, Any]:
    """What a run's labels and examples are, for comparison where it goes on."""
    splits = {
        split: {"examples": len(features), "digest": features.digest}
        for split, features in sorted(member.splits.items())
    }
    return {"labels": list(member.labels), "splits": splits}


def _tensors(member: Member) -> dict[str, torch.Tensor]:
    tensors = {}
    for name, parameter in member.parameters:
        tensors[f"trained.{name}"] = parameter.detach()
        moments = member.optimizer.state.get(parameter)
        if moments:
            tensors[f"exp_avg.{name}"] = moments["exp_avg"]
            tensors[f"exp_avg_sq.{name}"] = moments["exp_avg_sq"]
    frozen = {name: p for name, p in member.prompt.named_parameters() if not p.requires_grad}
    tensors.update({f"frozen.{name}": parameter for name, parameter in frozen.items()})
    if member.best is not None:
        tensors.update({f"best.{name}": tensor for name, tensor in member.best.tensors.items()})
    return {name: tensor.contiguous().cpu() for name, tensor in tensors.items()}


def _state(member: Member) -> SavedMember:
    best = member.best
    return {
        "name": member.name,
        "data": _data(member),
        "prompt": member.description(),
        "status": member.status,
        "step": member.step,
        "stale": member.stale,
        "seconds": member.seconds,
        "examples": member.examples,
        "best": None if best is None else {"step": best.step, "metrics": best.metrics, "loss": best.loss},
    }


@torch.no_grad()
def _restore(member: Member, state: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    for key in ("status", "step", "stale", "seconds", "examples"):
        setattr(member, key, state[key])
    for name, parameter in member.prompt.named_parameters():
        if not parameter.requires_grad:
            parameter.copy_(tensors[f"frozen.{name}"])
    best = {}
    for name, parameter in member.parameters:
        parameter.copy_(tensors[f"trained.{name}"])
        if f"exp_avg.{name}" in tensors:
            member.optimizer.state[parameter] = {
                "step": torch.tensor(float(member.step), device=parameter.device),
                "exp_avg": tensors[f"exp_avg.{name}"].to(parameter),
                "exp_avg_sq": tensors[f"exp_avg_sq.{name}"].to(parameter),
            }
    for name, parameter in member.parameters + member.borrowed:
        if f"best.{name}" in tensors:
            best[name] = tensors[f"best.{name}"].to(parameter)
    if state["best"] is not None:
        member.best = Best(tensors=best, **state["best"])


def _digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _damage(path: Path) -> str | None:
    """Why a checkpoint cannot be used; None where it is whole."""
    try:
        state = json.loads((path / "state.json").read_text())
        declared = state.pop("sha256_of_state")
        if _digest(state) != declared:
            return "state.json does not match its checksum"
        if state["format"] != FORMAT:
            return f"format {state['format']} is not {FORMAT}"
        for name, checksum in state["sha256"].items():
            if sha256(path / name) != checksum:
                return f"{name} does not match its checksum"
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return f"{type(error).__name__}: {error}"
    return None
