"""Outputs of whole splits over all ranks, and the metrics computed from them."""

from __future__ import annotations

import numpy as np
import torch

from model_parallel.collectives import gather_over_data_ranks
from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import Fleet, targets
from prompt_tuning.forward.run import member_logits
from prompt_tuning.kinds import Kind, find_kind
from prompt_tuning.tasks.types import Task
from prompt_tuning.tokens.features import Features


@torch.no_grad()
def split_outputs(fleet: Fleet, members: list[int], split: str) -> dict[int, np.ndarray]:
    """What some members' kinds keep of the logits of a split, the same on every rank.

    float64 [examples, outputs], or [tokens of the split, k] where a kind asks every token.
    """
    fleet.backbone.model.eval()
    features = {m: fleet.members[m].splits[split] for m in members}
    parts = [(m, np.arange(len(features[m])), 1.0) for m in members if m not in fleet.frozen]
    found = []
    with fleet.backbone.at_work():
        for batch in fleet.batches(split, parts):
            outputs = member_logits(fleet.backbone, [fleet.members[m].prompt for m in batch.members], batch)
            for place, (member, logits) in enumerate(zip(batch.members, outputs, strict=True)):
                wanted = targets(batch, place)
                kept = fleet.members[member].kind.keep(logits, wanted)
                found.append((member, batch.examples[batch.spans[place][0]], wanted.weights > 0, kept))
    result = {
        m: fleet.frozen_logits(m, split, np.arange(len(features[m]))).double().cpu().numpy()
        for m in members
        if m in fleet.frozen
    }
    fleet.backbone.model.train()
    mine = [(m, e.cpu().numpy(), real.cpu().numpy(), x.double().cpu().numpy()) for m, e, real, x in found]
    for part in gather_over_data_ranks(mine, fleet.grid):
        for member, examples, real, kept in part:
            if member not in result:
                result[member] = empty_outputs(fleet.members[member].kind, features[member], kept.shape[-1])
            place_outputs(result[member], features[member], examples[real], kept[real])
    return result


def empty_outputs(kind: Kind, features: Features, width: int) -> np.ndarray:
    """Room for a split's outputs of ``width`` numbers each, NaN until placed."""
    return np.full((len(features.tokens) if kind.per_token else len(features), width), np.nan)


def place_outputs(result: np.ndarray, features: Features, examples: np.ndarray, kept: np.ndarray) -> None:
    """Put what was kept of some examples, [E, C] or padded [R, L, k], where it belongs."""
    if kept.ndim == 2:
        result[examples] = kept
        return
    starts, lengths = features.offsets[examples], features.lengths(examples)
    column = np.arange(kept.shape[1])
    real = column < lengths[:, None]
    result[(starts[:, None] + column)[real]] = kept[real]


def evaluate(fleet: Fleet, members: list[int], split: str) -> dict[int, tuple[dict[str, float], float]]:
    """Metrics and mean loss of some members on a split."""
    result = {}
    for index, outputs in split_outputs(fleet, members, split).items():
        member = fleet.members[index]
        result[index] = score(member.task, member.splits[split], outputs, member.labels)
    return result


def score(
    task: Task, features: Features, outputs: np.ndarray, labels: tuple[str, ...]
) -> tuple[dict[str, float], float]:
    """Metrics by name, and the mean loss, of a split's outputs."""
    kind = find_kind(task.kind)
    gold, predicted = kind.answers(task, features, outputs, labels)
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
