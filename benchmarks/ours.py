"""PromptFleet's side: a fleet over a work's rows, and its training step as the trainer takes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.work import Work
from model_parallel.grid import Grid
from prompt_tuning.backbone.find import describe_backbone
from prompt_tuning.data.load import task_data
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.prompt.build import build_prompt
from prompt_tuning.settings.members import RunFile, resolve
from prompt_tuning.settings.run import MemberSpec, Run
from prompt_tuning.tokens.features import Features
from prompt_tuning.trainer import build_fleet

LEARNING_RATE = 5e-3
CLIP_NORM = 1.0
SEED = 11

Step = Callable[[], Tensor]
"""One training step: forward, backward, clipping, AdamW. Returns its members' mean losses [members]."""


def settings(
    work: Work,
    dtype: str = "float32",
    dropout: bool = False,
    seed: int = SEED,
    layers: tuple[int, ...] | None = None,
    checkpointing: bool = False,
    keeps: bool = False,
) -> RunFile:
    """A member's run file, with a schedule and a head that a plain loop around PEFT has too."""
    return RunFile.model_validate(
        {
            "task": work.task,
            "backbone": {"path": work.backbone, "dtype": dtype},
            "data": {
                "path": work.data,
                "max_length": work.max_length,
                "max_train_examples": work.num_examples,
                "max_eval_examples": 1,
                "cache_activations": keeps,
            },
            "prompt": {"length": work.prompt_length, "layers": None if layers is None else list(layers)},
            "head": {"pooling": "pooler"},
            "optimizer": {"lr": LEARNING_RATE, "clip_norm": CLIP_NORM, "schedule": "constant"},
            "train": {
                "batch_size": work.batch_size,
                "backbone_dropout": dropout,
                "seed": seed,
                "activation_checkpointing": checkpointing,
            },
        }
    )


def build(work: Work, dtype: str, dropout: bool, members: int = 1, **changes: Any) -> Fleet:
    """A fleet of as many seeds."""
    specs = [
        MemberSpec(f"seed{seed}", {}, settings(work, dtype, dropout, seed, **changes))
        for seed in range(SEED, SEED + members)
    ]
    return build_fleet(Run("benchmark", Path("runs/benchmark"), tuple(specs)), Grid(device=torch.device(work.device)))


def search(
    work: Work, dtype: str, fleet: dict[str, Any], output: Path, horizon: int | None = None, max_eval: int = 1
) -> Run:
    """The run of a fleet section's members; ``horizon``: all train so many steps on all rows of the task, judged eight times
    on ``max_eval`` of dev. Without one they have the rows of the work. Raises :class:`UserError`."""
    raw = settings(work, dtype).model_dump(exclude_unset=True)
    del raw["train"]["seed"]
    if horizon is not None:
        raw["data"] |= {"max_train_examples": None, "max_eval_examples": max_eval}
        raw["train"] |= {"max_steps": horizon, "eval_steps": horizon // 8}
    return resolve({**raw, "fleet": fleet}, Path("search.json"), output=str(output))


def fleet_step(fleet: Fleet) -> Step:
    """Steps as the trainer takes them, batch assembly included."""

    def step() -> Tensor:
        active = fleet.running()
        losses = fleet.train_step(active).losses
        for index in active:
            fleet.members[index].step += 1
        return losses

    return step


def separate_fleets(fleet: Fleet) -> list[Fleet]:
    """Every member's like, untrained and alone, over the same backbone."""
    alone = []
    for member in fleet.members:
        prompt = build_prompt(member.spec.config, fleet.backbone, len(member.labels), member.kind)
        prompt.to(fleet.grid.device)
        like = Member(member.spec, member.task, member.labels, member.splits, prompt, fleet.backbone)
        alone.append(Fleet(fleet.backbone, [like], fleet.grid))
    return alone


def one_after_the_other(steps: Sequence[Step]) -> Step:
    """One step of each, with the losses of all."""
    return lambda: torch.cat([step() for step in steps])


def first_gradient(fleet: Fleet) -> tuple[float, Tensor]:
    """The first member's loss on its first batch and the gradient of its prefix, before anything has moved."""
    member, loop = fleet.members[0], fleet.loops["train"]
    examples = member.step_examples(0)
    loss, gradient = 0.0, torch.zeros_like(member.prompt.prefix.embedding)
    for batch in loop.batches([(0, examples, 1 / len(examples))]):
        for _, logits, wanted in loop.logits(batch):
            part = member.kind.loss(logits, wanted)
            loss += part.item()
            gradient += torch.autograd.grad(part, member.prompt.prefix.embedding)[0]
    return loss, gradient


def features(work: Work) -> Features:
    """The tokenised training rows that every contender sees."""
    config = settings(work)
    return task_data(config, describe_backbone(config.backbone).tokenizer).splits["train"]


def lengths(fleet: Fleet, step: int) -> np.ndarray:
    """Text tokens of every row of a step, over all members."""
    found = []
    for member in fleet.members:
        own, examples = member.splits["train"], member.step_examples(step)
        rows = examples[:, None] * own.rows_per_example + np.arange(own.rows_per_example)
        found.append(own.lengths(rows.reshape(-1)))
    return np.concatenate(found)
