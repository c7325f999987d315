"""Outputs of whole splits over all ranks, and the metrics computed from them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch

from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.kinds import find_kind
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features


@torch.no_grad()
def split_outputs(fleet: Fleet, members: list[int], split: str) -> dict[int, np.ndarray]:
    """What some members' kinds keep of the logits of a split, as :meth:`Loop.outputs` has it, on every rank."""
    fleet.backbone.model.eval()
    result = fleet.loops[split].outputs([m for m in members if m not in fleet.frozen.members])
    for index in fleet.frozen.members.intersection(members):
        examples = np.arange(len(fleet.members[index].splits[split]))
        result[index] = fleet.frozen.logits(index, split, examples).double().cpu().numpy()
    fleet.backbone.model.train()
    return result


def evaluate(
    fleet: Fleet, members: list[int], split: str, keep: Callable[[Member, str, Any, Any], None] | None = None
) -> dict[int, tuple[dict[str, float], float]]:
    """Metrics and mean loss of some members on a split; ``keep`` gets each one's gold and predicted answers."""
    result = {}
    for index, outputs in split_outputs(fleet, members, split).items():
        member = fleet.members[index]
        own = None if keep is None else partial(keep, member, split)
        result[index] = score(member.task, member.splits[split], outputs, member.labels, own)
    return result


def score(
    task: Task,
    features: Features,
    outputs: np.ndarray,
    labels: tuple[str, ...],
    keep: Callable[[Any, Any], None] | None = None,
) -> tuple[dict[str, float], float]:
    """Metrics by name, and the mean loss, of a split's outputs; ``keep`` gets gold and predicted answers."""
    kind = find_kind(task.kind)
    gold, predicted = kind.answers(task, features, outputs, labels)
    if keep is not None:
        keep(gold, predicted)
    metrics = task.for_labels(labels).metrics
    return {name: metric(gold, predicted) for name, metric in metrics.items()}, kind.mean_loss(features, outputs)


def num_examples(task: Task, features: Features) -> int:
    """How many examples a split holds as the task counts them: a question of several windows is one."""
    return find_kind(task.kind).count(task, features)


def majority_metrics(member: Member, split: str) -> dict[str, float]:
    """Metrics on a split of the answer that looks at no text: the training split's most frequent class."""
    train, features = member.splits["train"], member.splits[split]
    outputs = member.kind.constant(train, features, len(member.labels))
    return score(member.task, features, outputs, member.labels)[0]
