"""Outputs of whole splits over all ranks, and the metrics computed from them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch

from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.forward.write import sources_of, write
from prompt_tuning.kinds import find_kind
from prompt_tuning.kinds.generation import written
from prompt_tuning.metrics.generation import Written
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features

logger = logging.getLogger(__name__)

SAMPLES = 2
"""Written texts that an evaluation says."""


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


def write_split(fleet: Fleet, outputs: dict[int, np.ndarray], split: str) -> dict[int, list[Written]]:
    """Texts that some members write to a split, beside what their kinds kept; members that write alike do it together.

    Of dev no more rows than `decode.max_examples`.
    """
    alike: dict[tuple[str, int, int], list[int]] = {}
    for index in outputs:
        config = fleet.members[index].spec.config
        seed = config.train.seed if config.decode.sample else 0
        alike.setdefault((config.decode.model_dump_json(), config.data.max_target_length, seed), []).append(index)
    result = {}
    for (_, length, seed), some in alike.items():
        members = [fleet.members[index] for index in some]
        decode = members[0].spec.config.decode
        most = decode.max_examples if split == "dev" else None
        own = [sources_of(place, member.splits[split], most) for place, member in enumerate(members)]
        sources, prompts = [source for part in own for source in part], [member.prompt for member in members]
        budget = fleet.loops[split].budget
        texts = iter(write(fleet.backbone, prompts, sources, decode, length, budget, seed))
        for index, member, part in zip(some, members, own, strict=True):
            features, found = member.splits[split], list[str | None](islice(texts, len(part)))
            _say_samples(fleet, member, split, features, found)
            result[index] = written(features, outputs[index], found + [None] * (len(features) - len(found)))
    return result


def _say_samples(fleet: Fleet, member: Member, split: str, features: Features, texts: Sequence[str | None]) -> None:
    """Two of the texts, beside what they should be."""
    if fleet.grid.is_first:
        for text, wanted in zip(texts[:SAMPLES], features.notes.targets[:SAMPLES], strict=True):
            logger.info("%s, step %d, %s: %r for %r", member.name, member.step, split, text, wanted[0])


def evaluate(
    fleet: Fleet, members: list[int], split: str, keep: Callable[[Member, str, Any, Any], None] | None = None
) -> dict[int, tuple[dict[str, float], float]]:
    """Metrics and mean loss of some members on a split; ``keep`` gets each one's gold and predicted answers."""
    result = {}
    found: dict[int, Any] = {**split_outputs(fleet, members, split)}
    found |= write_split(fleet, {i: found[i] for i in found if fleet.members[i].kind.writes}, split)
    for index, outputs in found.items():
        member = fleet.members[index]
        own = None if keep is None else partial(keep, member, split)
        result[index] = score(member.task, member.splits[split], outputs, member.labels, own)
    return result


def score(
    task: Task,
    features: Features,
    outputs: Any,
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
