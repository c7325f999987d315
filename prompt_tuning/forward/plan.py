"""Which examples run together, on which rank.

Every rank computes the same plan from lengths that all know, so no counts are exchanged and every rank runs the same
number of forwards; a rank with nothing left runs a dummy example of weight 0.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from prompt_tuning.forward.batch import Items, Pool


def default_budget(device: torch.device, gathers: bool = False) -> int:
    """Tokens of one forward: few keep a CPU's caches warm and padding low; many fill a GPU, or pay for the weights that
    every forward ``gathers`` (ZeRO-3)."""
    return 1024 if device.type == "cpu" and not gathers else 16384


def plan(pool: Pool, items: Items, prompt_lengths: np.ndarray, budget: int, rank: int, ranks: int) -> Iterator[Items]:
    """This rank's micro-batches of at most ``budget`` padded tokens, longest first, equally many on every rank.

    ``prompt_lengths`` [members] are the prompt tokens that each row of a member brings; a batch pads texts and prompts to
    its longest of each. An example longer than the budget runs alone.
    """
    texts = pool.longest(items.members, items.examples)
    prompts, rows = prompt_lengths[items.members], pool.rows_per_example[items.members]
    order = np.argsort(-(texts + prompts), kind="stable")
    shares = [order[other::ranks] for other in range(ranks)]
    cuts = [_cut(texts[share], prompts[share], rows[share], budget) for share in shares]
    yield from (items.take(shares[rank][start:end]) for start, end in cuts[rank])
    dummy = items.take(order[-1:])
    for _ in range(max(map(len, cuts)) - len(cuts[rank])):
        yield Items(dummy.members, dummy.examples, np.zeros(1))


def _cut(texts: np.ndarray, prompts: np.ndarray, rows: np.ndarray, budget: int) -> list[tuple[int, int]]:
    """Starts and ends of batches of examples, given each one's longest text, prompt length and rows; longest sum first."""
    cut, start = [], 0
    while start < len(texts):
        # No later row is wider by itself than the first, so at most this many come into question.
        window = slice(start, start + max(1, int(budget // (texts[start] + prompts[start]))))
        widths = np.maximum.accumulate(texts[window]) + np.maximum.accumulate(prompts[window])
        tokens = widths * np.cumsum(rows[window])
        end = start + max(1, int(np.searchsorted(tokens, budget, side="right")))
        cut.append((start, end))
        start = end
    return cut
