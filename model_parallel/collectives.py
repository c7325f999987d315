"""Sums and gathers over the grid and its axes; over one rank each of them does nothing.

The pair of Shoeybi et al. (2019, section 3) for activations: :func:`enter_tensor_ranks` is the identity forward and a sum
backward, :func:`sum_over_tensor_ranks` a sum forward and the identity backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from model_parallel.grid import Grid


class RankLost(Exception):
    """A collective failed, most often because another rank has gone, which that rank's own message explains."""


@contextmanager
def _collective() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLost(str(error).partition("\n")[0]) from error


def open_group(store: dist.Store, rank: int, size: int, device: torch.device, limit_seconds: float) -> None:
    """Open the default process group: NCCL between GPUs, else gloo. A collective fails that waits longer than the limit."""
    with _collective():
        backend = "nccl" if device.type == "cuda" else "gloo"
        limit = timedelta(seconds=limit_seconds)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=limit)


def sum_gradients(split: list[torch.nn.Parameter], whole: list[torch.nn.Parameter], grid: Grid) -> None:
    """Sum every gradient over the grid in place, one collective for each dtype; a missing gradient counts as zero.

    Of ``split`` every tensor rank sees a part (its own heads), so all count. Of ``whole`` every tensor rank sees the same,
    so the first one's counts.
    """
    for parameter in [*split, *whole]:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if grid.size == 1:
        return
    if grid.tensor_rank > 0:
        for parameter in whole:
            parameter.grad.zero_()  # type: ignore[union-attr]
    for dtype in {parameter.dtype for parameter in [*split, *whole]}:
        gradients = [p.grad for p in [*split, *whole] if p.grad is not None and p.dtype == dtype]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with _collective():
            dist.all_reduce(flat)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def any_rank(flag: bool, grid: Grid) -> bool:
    """Whether ``flag`` holds on any rank; every rank calls this and all get the same answer."""
    if grid.size == 1:
        return flag
    found = torch.tensor(int(flag), device=grid.device)
    with _collective():
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
    return bool(found.item())


def sum_over_data_ranks(tensor: Tensor, grid: Grid) -> Tensor:
    """The sum of ``tensor`` over the data axis, in place."""
    if grid.data > 1:
        with _collective():
            dist.all_reduce(tensor, group=grid.data_group)
    return tensor


def gather_over_data_ranks(value: Any, grid: Grid) -> list[Any]:
    """``value`` of every rank of the data axis, in order, on each of them."""
    return _gather(value, grid.data, grid.data_group)


def gather_objects(value: Any, grid: Grid) -> list[Any]:
    """``value`` of every rank of the grid, in rank order, on every rank."""
    return _gather(value, grid.size, None)


def _gather(value: Any, size: int, group: Any) -> list[Any]:
    values: list[Any] = [value] * size
    if size > 1:
        with _collective():
            dist.all_gather_object(values, value, group=group)
    return values


def gather_over_tensor_ranks(tensor: Tensor, grid: Grid) -> list[Tensor]:
    """``tensor`` of every rank of the tensor axis, in order, on each of them; all of one shape, no gradient."""
    if grid.tensor == 1:
        return [tensor]
    pieces = [torch.empty_like(tensor, memory_format=torch.contiguous_format) for _ in range(grid.tensor)]
    with _collective():
        dist.all_gather(pieces, tensor.contiguous(), group=grid.tensor_group)
    return pieces


def broadcast_over_data_ranks(tensor: Tensor, grid: Grid) -> None:
    """The contents of ``tensor`` on the first rank of each data group, on all of it, in place."""
    if grid.data > 1:
        with _collective():
            dist.broadcast(tensor, src=grid.tensor_rank, group=grid.data_group)


def broadcast_object(value: Any, grid: Grid) -> Any:
    """``value`` of the first rank, on every rank."""
    if grid.size == 1:
        return value
    values = [value]
    with _collective():
        dist.broadcast_object_list(values, src=0)
    return values[0]


def barrier(grid: Grid) -> None:
    """Wait for all ranks."""
    if grid.size > 1:
        with _collective():
            dist.barrier()


def wait_long(grid: Grid) -> None:
    """Wait for all ranks, however long one of them needs for what it does alone, such as reading data.

    A collective has a limit of time; that the others live is watched elsewhere. Beside NCCL it does nothing, and the limit
    of the next collective holds.
    """
    if grid.patient_group is not None:
        with _collective():
            dist.barrier(group=grid.patient_group)


class PaperGroup:
    """In the place of a process group of ``size`` ranks: sends nothing, and counts what would be summed."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.calls = self.num_bytes = 0
        """All-reduces, and the bytes of their tensors."""


def _reduce_over(tensor: Tensor, group: Any, operation: Any = dist.ReduceOp.SUM) -> None:
    if isinstance(group, PaperGroup):
        group.calls += 1
        group.num_bytes += tensor.nbytes
        return
    with _collective():
        dist.all_reduce(tensor, operation, group=group)


class _Enter(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        ctx.group = group
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        total = gradients[0].contiguous().clone()
        _reduce_over(total, ctx.group)
        return total, None


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: Any) -> Tensor:
        total = tensor.contiguous().clone()
        _reduce_over(total, group)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0], None


def enter_tensor_ranks(tensor: Tensor, group: Any) -> Tensor:
    """``tensor``, equal on all tensor ranks, where each goes on with its own columns; backward sums their gradients."""
    entered: Tensor = _Enter.apply(tensor, group)
    return entered


def sum_over_tensor_ranks(tensor: Tensor, group: Any) -> Tensor:
    """The sum of the tensor ranks' parts; every one gets the whole gradient."""
    total: Tensor = _Sum.apply(tensor, group)
    return total


def max_over_tensor_ranks(tensor: Tensor, group: Any) -> Tensor:
    """The largest of the tensor ranks' numbers, place by place; no gradient."""
    largest = tensor.contiguous().clone()
    _reduce_over(largest, group, dist.ReduceOp.MAX)
    return largest
