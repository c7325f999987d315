"""Logits of whole splits over all ranks, and the metrics computed from them."""

from __future__ import annotations

import numpy as np
import torch

from model_parallel.collectives import gather_over_data_ranks
from prompt_tuning.fleet import Fleet
from prompt_tuning.metrics import METRICS
from prompt_tuning.model import member_logits


@torch.no_grad()
def split_logits(fleet: Fleet, members: list[int], split: str) -> dict[int, np.ndarray]:
    """Logits of every example of a split for some members: float64 [examples, outputs], the same on every rank."""
    fleet.backbone.model.eval()
    counts = {m: len(fleet.members[m].splits[split]) for m in members}
    parts = [(m, np.arange(counts[m]), 1.0) for m in members if m not in fleet.frozen]
    found = []
    with fleet.backbone.at_work():
        for batch in fleet.batches(split, parts):
            outputs = member_logits(fleet.backbone, [fleet.members[m].prompt for m in batch.members], batch)
            for member, logits, (examples, _) in zip(batch.members, outputs, batch.spans, strict=True):
                found.append((member, batch.examples[examples], batch.weights[examples] > 0, logits))
    result = {
        m: fleet.frozen_logits(m, split, np.arange(counts[m])).double().cpu().numpy()
        for m in members
        if m in fleet.frozen
    }
    fleet.backbone.model.train()
    mine = [(m, e.cpu().numpy(), real.cpu().numpy(), x.double().cpu().numpy()) for m, e, real, x in found]
    for part in gather_over_data_ranks(mine, fleet.grid):
        for member, examples, real, logits in part:
            if member not in result:
                result[member] = np.full((counts[member], logits.shape[1]), np.nan)
            result[member][examples[real]] = logits[real]
    return result


def evaluate(fleet: Fleet, members: list[int], split: str) -> dict[int, tuple[dict[str, float], float]]:
    """Metrics and mean loss of some members on a split."""
    return {
        member: score(fleet.members[member].task.metrics, logits, fleet.members[member].splits[split].labels)
        for member, logits in split_logits(fleet, members, split).items()
    }


def score(names: tuple[str, ...], logits: np.ndarray, gold: np.ndarray) -> tuple[dict[str, float], float]:
    """Metrics by name, and the mean cross entropy, of logits [examples, outputs] against gold class indices."""
    predicted = logits.argmax(axis=1)
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_probabilities = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = -log_probabilities[np.arange(len(gold)), gold].mean()
    return {name: METRICS[name](gold, predicted) for name in names}, float(loss)


def majority_metrics(names: tuple[str, ...], train_labels: np.ndarray, gold: np.ndarray) -> dict[str, float]:
    """Metrics of always answering the most frequent class of the training split."""
    constant = np.full_like(gold, np.bincount(train_labels).argmax())
    return {name: METRICS[name](gold, constant) for name in names}
