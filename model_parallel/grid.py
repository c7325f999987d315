"""The ranks of a job, laid out as (data, tensor) with tensor inside, and the device of this one."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

_PATIENCE = timedelta(days=30)


class TopologyError(ValueError):
    """Ranks, heads or widths that do not fit together; the message says which and what to choose."""


@dataclass(frozen=True)
class Grid:
    """This process's place among the ranks, and its device.

    ``tensor`` neighbouring ranks share every layer; ranks that hold the same share form a data group. A group of None is
    the whole job.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    tensor: int = 1
    tensor_group: Any = None
    data_group: Any = None
    patient_group: Any = None
    """All ranks again, without a limit of time, for waits that may be long; None beside NCCL."""

    @property
    def tensor_rank(self) -> int:
        """Place on the tensor axis."""
        return self.rank % self.tensor

    @property
    def data_rank(self) -> int:
        """Place on the data axis."""
        return self.rank // self.tensor

    @property
    def data(self) -> int:
        """Ranks of the data axis."""
        return self.size // self.tensor

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that writes files."""
        return self.rank == 0


def check_ranks(size: int, tensor: int) -> None:
    """Raise :class:`TopologyError` unless ``size`` ranks can be cut into groups of ``tensor``."""
    if size % tensor:
        nearest = tensor * max(1, round(size / tensor))
        raise TopologyError(
            f"parallel.tensor={tensor} needs a multiple of {tensor} ranks, but the job has {size}; start {nearest}"
            f" or set parallel.tensor to one of {', '.join(map(str, divisors(size)))}"
        )


def divisors(number: int) -> list[int]:
    """All divisors of a number, ascending."""
    return [n for n in range(1, number + 1) if number % n == 0]


def make_grid(rank: int, size: int, device: torch.device, tensor: int = 1) -> Grid:
    """The grid of a job whose default process group is open; every rank calls this. Raises :class:`TopologyError`."""
    check_ranks(size, tensor)
    # Where gloo connects the ranks already. Beside NCCL its first connection could wait as long for a host without a way.
    is_gloo = size > 1 and dist.get_backend() == "gloo"
    patient_group = dist.new_group(backend="gloo", timeout=_PATIENCE) if is_gloo else None
    if tensor == 1:
        return Grid(rank, size, device, patient_group=patient_group)
    tensor_group = data_group = None
    for start in range(0, size, tensor):
        group = dist.new_group(list(range(start, start + tensor)))
        tensor_group = group if rank // tensor == start // tensor else tensor_group
    for first in range(tensor):
        group = dist.new_group(list(range(first, size, tensor)))
        data_group = group if rank % tensor == first else data_group
    return Grid(rank, size, device, tensor, tensor_group, data_group, patient_group)


def local_device(local_rank: int) -> torch.device:
    """CUDA device of a local rank where there is one, else the CPU."""
    if torch.cuda.is_available():
        device = torch.device("cuda", local_rank % torch.cuda.device_count())
        torch.cuda.set_device(device)
        return device
    return torch.device("cpu")
