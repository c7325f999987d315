"""Which examples run together, on which rank.

Every rank computes the same plan from lengths that all know, so no counts are exchanged and every rank runs the same
number of forwards; a rank with nothing left runs a dummy example of weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from prompt_tuning.forward.batch import Items, Pool


def default_budget(device: torch.device, gathers: bool = False, with_gradients: bool = True) -> int:
    """Tokens of one forward: few keep a CPU's caches warm; many fill a GPU, or pay for the weights that every forward
    ``gathers`` (ZeRO-3), and without gradients four times as many need less memory still."""
    if device.type == "cpu" and not gathers:
        return 2048
    return 16384 if with_gradients else 65536


def plan(pool: Pool, items: Items, budget: int, rank: int, ranks: int) -> Iterator[Items]:
    """This rank's micro-batches of at most ``budget`` tokens of texts and prompts, equally many on every rank.

    Member after member, so that few prompts take part in each; a member's longest first. An example longer than the budget
    runs alone.
    """
    tokens = pool.num_tokens(items.members, items.examples)
    order = np.lexsort((-tokens, items.members))
    shares = [order[other::ranks] for other in range(ranks)]
    cuts = [_cut(tokens[share], budget) for share in shares]
    yield from (items.take(shares[rank][start:end]) for start, end in cuts[rank])
    dummy = items.take(np.argsort(tokens)[:1])
    for _ in range(max(map(len, cuts)) - len(cuts[rank])):
        yield Items(dummy.members, dummy.examples, np.zeros(1))


def _cut(tokens: np.ndarray, budget: int) -> list[tuple[int, int]]:
    """Starts and ends of batches of examples, given each one's tokens."""
    ends = np.cumsum(tokens)
    cut, start = [], 0
    while start < len(tokens):
        before = ends[start - 1] if start else 0
        end = max(start + 1, int(np.searchsorted(ends, before + budget, side="right")))
        cut.append((start, end))
        start = end
    return cut
