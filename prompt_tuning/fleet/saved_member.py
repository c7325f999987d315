"""A member as a checkpoint has it: tensors in a file of its own, the rest in ``state.json``."""

from __future__ import annotations

from typing import Any

import torch

from prompt_tuning.fleet.member import Best, Member
from prompt_tuning.storage.records import MemberState, SavedMember


def data_of(member: Member) -> dict[str, Any]:
    """What a run's labels and examples are, for comparison where it goes on."""
    splits = {
        split: {"examples": len(features), "digest": features.digest}
        for split, features in sorted(member.splits.items())
    }
    return {"labels": list(member.labels), "splits": splits}


def tensors_of(member: Member) -> dict[str, torch.Tensor]:
    """Trained and frozen tensors, AdamW's moments, and those of the best evaluation, on the CPU."""
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


def state_of(member: Member) -> MemberState:
    """Everything beside the tensors."""
    best = member.best
    return {
        "name": member.name,
        "data": data_of(member),
        "prompt": member.description(),
        "status": member.status,
        "step": member.step,
        "stale": member.stale,
        "seconds": member.seconds,
        "examples": member.examples,
        **({"rungs": {str(step): score for step, score in member.rungs.items()}} if member.rungs else {}),
        "best": None if best is None else {"step": best.step, "metrics": best.metrics, "loss": best.loss},
    }


@torch.no_grad()
def restore(member: Member, state: SavedMember, tensors: dict[str, torch.Tensor]) -> None:
    """Put a member into the state that was saved."""
    member.status, member.step, member.stale = state["status"], state["step"], state["stale"]
    member.seconds, member.examples = state["seconds"], state["examples"]
    member.rungs = {int(step): score for step, score in state.get("rungs", {}).items()}
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
