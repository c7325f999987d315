"""Whether the weights of a model that is still on ``meta`` have room, before any of them is allocated."""

from __future__ import annotations

import math
import socket
from pathlib import Path

from torch import nn

from model_parallel.collectives import gather_objects
from model_parallel.grid import Grid, TopologyError
from model_parallel.layers import stored_bytes
from model_parallel.memory import free_memory, free_swap


def check_room(model: nn.Module, grid: Grid, splits: bool) -> None:
    """Raise :class:`TopologyError` where the ranks' shares of a model's weights alone exceed the memory that they share.

    ``splits``: ZeRO-3 splits them over the data axis too. Every rank calls this.
    """
    needed = stored_bytes(model)
    needed = math.ceil(needed / grid.data) if splits else needed
    free = free_memory(grid.device)
    if free is not None and grid.device.type == "cpu":
        free += free_swap()
    everyone = gather_objects((_shared_by(grid), needed, free), grid)
    for place in dict.fromkeys(place for place, _, _ in everyone):
        there = [(own, left) for found, own, left in everyone if found == place]
        together, known = sum(own for own, _ in there), [left for _, left in there if left is not None]
        if known and together > max(known):
            raise TopologyError(short(together, max(known), len(there), place[0]))


def short(needed: int, free: int, ranks: int, host: str) -> str:
    """What to say of weights that exceed what is free."""
    whose = "the weights" if ranks == 1 else f"the weights of {ranks} ranks together"
    return (
        f"{whose} take {needed / 1e9:.1f} GB on {host}, where {free / 1e9:.1f} GB are free; set backbone.dtype=bfloat16 or"
        " backbone.quantize, share them among more ranks with parallel.tensor or parallel.zero, or see `promptfleet plan`"
    )


def _shared_by(grid: Grid) -> tuple[str, str]:
    """Equal for ranks that take from one memory: a GPU's own, or a host's under the same control groups."""
    if grid.device.type == "cuda":
        return socket.gethostname(), str(grid.device)
    try:
        return socket.gethostname(), Path("/proc/self/cgroup").read_text()
    except OSError:
        return socket.gethostname(), ""
