"""How near the gradients of prompts over a quantised backbone are to those over the weights it was made from."""

from __future__ import annotations

import logging

import torch
from torch import Tensor, nn

from model_parallel.collectives import sum_gradients
from model_parallel.layers import full_precision
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.forward.loop import Loop
from prompt_tuning.prompt.prompt import Prompt

logger = logging.getLogger(__name__)

EXAMPLES = 8
"""Of the first member's first step; more would take long where the weights are many."""


def say_fidelity(fleet: Fleet) -> None:
    """One line on the gradients of the first member's prompt, where the backbone is quantised and the prompt has any."""
    if fleet.backbone.quantize is None or not fleet.members[0].prompt.reaches_backbone:
        return
    logger.info(
        "backbone in %s: the first prompt's gradient has a cosine of %.4f with that in full precision (up to %d examples)",
        fleet.backbone.quantize,
        gradient_cosine(fleet),
        EXAMPLES,
    )


def gradient_cosine(fleet: Fleet) -> float:
    """Cosine of the two gradients of the first member's loss in all that it trains but its head, as it stands, nothing dropped.

    The weights in full precision (those of the files in ``backbone.dtype``) are read for each product, one layer at a time.
    Every rank calls this.
    """
    with full_precision(fleet.backbone.model):
        wanted = _gradient(fleet)
    return float(nn.functional.cosine_similarity(_gradient(fleet), wanted, dim=0))


def _gradient(fleet: Fleet) -> Tensor:
    """Over all ranks, float64, as one vector."""
    member, backbone = fleet.members[0], fleet.backbone
    features, kind = member.splits["train"], member.kind
    loop = Loop(backbone, [member.prompt], [kind], [features], fleet.loops["train"].budget)
    examples = member.step_examples(0)[:EXAMPLES]
    backbone.model.eval()
    with backbone.at_work():
        for batch in loop.batches([(0, examples, 1 / max(1, features.terms(examples)))]):
            ((_, logits, wanted),) = loop.logits(batch)
            kind.loss(logits, wanted).backward()
    backbone.model.train()
    trained = dict(member.prompt.trained())
    split = [p for name, p in trained.items() if Prompt.is_split(name)]
    sum_gradients(split, [p for name, p in trained.items() if not Prompt.is_split(name)], fleet.grid)
    found = [
        p.grad.flatten().double() for name, p in trained.items() if not name.startswith("head.") and p.grad is not None
    ]
    for parameter in trained.values():
        parameter.grad = None
    return torch.cat(found)
