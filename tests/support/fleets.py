"""Fleets from run-file sections, their course recorded step by step, and what "equal" means (DESIGN, section 6)."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from model_parallel.grid import Grid, make_grid
from prompt_tuning.fleet.evaluate import split_outputs
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.settings.members import resolve
from prompt_tuning.settings.run import Run
from prompt_tuning.trainer import build_fleet
from tests.support.tiny import run_json

STEPS = 20


@dataclass
class Course:
    """What a fleet went through, by member name."""

    start: dict[str, dict[str, Tensor]]
    end: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    first_gradients: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    """As the optimizer saw them in the first step, clipped."""
    losses: dict[str, list[float]] = field(default_factory=dict)
    norms: dict[str, list[float]] = field(default_factory=dict)
    dev_logits: dict[str, np.ndarray] = field(default_factory=dict)


def make_run(raw: dict[str, Any], output: Path | str = "unused", only: str | None = None) -> Run:
    """The run of a parsed run file; ``only``: a run of this one of its members alone."""
    run = resolve(raw, Path("test.json"), output=str(output))
    members = tuple(spec for spec in run.members if only in (None, spec.name))
    return replace(run, members=members)


def open_fleet(raw: dict[str, Any], grid: Grid | None = None, only: str | None = None) -> Fleet:
    """The fleet of a run file on ``grid``'s ranks, laid out as its parallel section says."""
    run, grid = make_run(raw, only=only), grid or Grid()
    return build_fleet(run, make_grid(grid.rank, grid.size, grid.device, run.shared.parallel.tensor))


def follow(fleet: Fleet, steps: int = STEPS) -> Course:
    """Train all members for some steps and record everything that must be equal elsewhere."""
    members = fleet.members
    course = Course({m.name: m.tensors() for m in members})
    for member in members:

        def keep(*_: Any, member: Any = member) -> None:
            if member.name not in course.first_gradients:
                course.first_gradients[member.name] = {name: p.grad.clone() for name, p in member.parameters}

        member.optimizer.register_step_pre_hook(keep)
        course.losses[member.name], course.norms[member.name] = [], []
    for _ in range(steps):
        record = fleet.train_step(list(range(len(members))))
        for member, loss, norm in zip(members, record.losses.tolist(), record.norms.tolist(), strict=True):
            member.step += 1
            course.losses[member.name].append(loss)
            course.norms[member.name].append(norm)
    course.end = {m.name: m.tensors() for m in members}
    with_dev = [i for i, m in enumerate(members) if "dev" in m.splits]
    course.dev_logits = {members[i].name: logits for i, logits in split_outputs(fleet, with_dev, "dev").items()}
    return course


def assert_same_course(found: Course, expected: Course, dtype: str, names: list[str] | None = None) -> None:
    """Equal in the sense of DESIGN section 6, for all members or those named."""
    for name in names or list(expected.end):
        is_double = dtype == "float64"
        off = max(abs(a - b) for a, b in zip(found.losses[name], expected.losses[name], strict=True))
        assert off < (1e-10 if is_double else 1e-5), f"{name}: losses differ by {off:.1e}"
        for key, gradient in expected.first_gradients[name].items():
            assert gradient.norm() > 1e-6, f"{name}: the gradient of {key} would prove nothing"
            error = ((found.first_gradients[name][key] - gradient).norm() / gradient.norm()).item()
            assert error < (1e-10 if is_double else 2e-5), f"{name}: first gradient of {key} is off by {error:.1e}"
        for key, end in expected.end[name].items():
            moved = (end - expected.start[name][key]).norm().item()
            assert moved > 1e-4, f"{name}: {key} did not move"
            difference = found.end[name][key] - end
            if is_double:
                assert difference.abs().max() < 1e-8, f"{name}: {key} ends {difference.abs().max():.1e} away"
            else:
                assert difference.norm() < 1e-3 * moved, f"{name}: {key} ends {difference.norm() / moved:.1e} away"


def five_members(places, dtype="float64", **train_section):
    """Two tasks, four methods, and nothing that two members have in common by chance."""
    members = [
        {"name": "deep", "prompt": {"length": 5}},
        {
            "name": "mlp",
            "prompt": {"length": 3, "reparameterisation": "mlp", "projection_width": 8, "dropout": 0.2},
            "optimizer": {"lr": 0.01, "head_lr": 0.003, "weight_decay": 0.1},
            "train": {"seed": 12},
        },
        {
            "name": "shallow",
            "method": "shallow_prompt",
            "prompt": {"length": 4, "dropout": 0.1},
            "optimizer": {"schedule": "constant"},
            "train": {"seed": 13, "batch_size": 5},
        },
        {
            "name": "choice",
            "task": "copa",
            "data": {"path": str(places["copa"])},
            "prompt": {"length": 2, "layers": [0, 2], "dropout": 0.3},
            "optimizer": {"warmup": 0.3},
            "train": {"seed": 14, "batch_size": 4},
        },
        {"name": "head", "method": "head", "prompt": {"dropout": 0.2}, "train": {"seed": 15}},
    ]
    train_section = {"max_steps": STEPS, **train_section}
    raw = run_json(places["backbone"], places["texts"], train=train_section, fleet={"members": members})
    raw["backbone"]["dtype"] = dtype
    return raw
