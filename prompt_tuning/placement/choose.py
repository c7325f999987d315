"""Which placement to take: the fastest that fits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from model_parallel.grid import divisors
from model_parallel.quantise import SCHEMES
from prompt_tuning.placement.count import Cost, Machine, Placement, count
from prompt_tuning.placement.outline import Outline
from prompt_tuning.report.progress import size

AS_FAST = 1.02
"""Of placements whose times differ by no more than this, the simplest is taken."""


@dataclass(frozen=True)
class Choice:
    """The placements considered, the one to take (None: none fits), and why."""

    considered: tuple[Cost, ...]
    taken: Cost | None
    reason: str


def candidates(outline: Outline, ranks: int) -> list[Placement]:
    """All placements over so many ranks as the run file stores weights, the simplest first, and copies in fewer bytes."""
    own = outline.config.backbone.quantize
    tensors = [n for n in divisors(ranks) if outline.fits_heads(n)]
    found = [
        Placement(tensor, zero, checkpointing, own)
        for zero in (False, True)
        for tensor in tensors
        if not (zero and ranks // tensor == 1)
        for checkpointing in (False, True)
    ]
    found += [Placement(1, False, True, other) for other in SCHEMES if own is None]
    return sorted(found, key=lambda one: (one.quantize != own, one.zero, one.tensor, one.checkpointing))


def choose(outline: Outline, machine: Machine) -> Choice:
    """Count every placement, and take the fastest that fits of those with weights as the run file stores them."""
    found = tuple(count(outline, placement, machine) for placement in candidates(outline, machine.ranks))
    return Choice(found, *take(found, machine.memory, outline.config.backbone.quantize))


def take(costs: Sequence[Cost], memory: int, quantize: str | None = None) -> tuple[Cost | None, str]:
    """The cost to take of some, the simplest first, and the reason in a sentence."""
    ready = [cost for cost in costs if cost.placement.quantize == quantize]
    fitting = [cost for cost in ready if cost.memory <= memory]
    if not fitting:
        least = min(costs, key=lambda cost: cost.memory)
        remedy = f"{least.placement.name} takes least, {size(least.memory)}"
        if least.memory <= memory:
            return None, f"No placement in backbone.dtype fits into {size(memory)}; {remedy}, and fits"
        return None, f"No placement fits into {size(memory)}: {remedy}; take more ranks or a smaller backbone"
    fastest = min(cost.seconds for cost in fitting)
    taken = next(cost for cost in fitting if cost.seconds <= AS_FAST * fastest)
    tight = [cost for cost in ready if cost.memory > memory]
    quicker = [cost for cost in tight if cost.seconds < taken.seconds]
    reason = (
        f"{taken.placement.name} is the fastest of the {len(fitting)} placements that fit into {size(memory)} a rank"
    )
    if quicker:
        best = min(quicker, key=lambda cost: cost.seconds)
        reason += f"; {best.placement.name} would be faster and takes {size(best.memory)}"
    return taken, reason
