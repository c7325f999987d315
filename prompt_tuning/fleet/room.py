"""How many members may train at once, where the run file leaves it open."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from model_parallel.collectives import gather_objects
from model_parallel.grid import Grid
from model_parallel.memory import free_memory
from prompt_tuning.fleet.member import Member

logger = logging.getLogger(__name__)


def places(members: Sequence[Member], grid: Grid) -> int:
    """All members, or as many as half of the free memory has room for; every rank gets the same number and calls this."""
    free = free_memory(grid.device)
    # Ranks on processors may share a host, and then its memory.
    own = None if free is None else free // (grid.size if grid.device.type == "cpu" else 1)
    known = [number for number in gather_objects(own, grid) if number is not None]
    count = fitting([_bytes_at_work(member) for member in members], min(known) // 2) if known else len(members)
    if count < len(members) and grid.is_first:
        logger.info(
            "%d of %d members train at a time: so many fit into half of the free memory (%.1f GB); fleet.concurrent sets another"
            " number",
            count,
            len(members),
            min(known) / 1e9,
        )
    return count


def fitting(needs: Sequence[int], room: int) -> int:
    """How many members whose work needs so many bytes have room, whichever they are; at least 1."""
    return len(needs) if sum(needs) <= room else max(1, min(len(needs), room // max(needs)))


def _bytes_at_work(member: Member) -> int:
    """Gradients and AdamW's two moments; activations are bounded by ``train.tokens_per_batch``, whoever works."""
    return 3 * sum(p.numel() * p.element_size() for _, p in member.parameters)
