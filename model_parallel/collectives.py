"""Sums and gathers over the grid; on one rank each of them does nothing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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


def sum_gradients(parameters: list[torch.nn.Parameter], grid: Grid) -> None:
    """Sum every gradient over the ranks in place, one collective for each dtype; a missing gradient counts as zero."""
    for parameter in parameters:
        if parameter.grad is None:
            parameter.grad = torch.zeros_like(parameter)
    if grid.size == 1:
        return
    for dtype in {parameter.dtype for parameter in parameters}:
        gradients = [p.grad for p in parameters if p.grad is not None and p.dtype == dtype]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with _collective():
            dist.all_reduce(flat)
        for gradient, piece in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(piece.view_as(gradient))


def sum_over_ranks(tensor: Tensor, grid: Grid) -> Tensor:
    """The sum of ``tensor`` over the ranks, in place."""
    if grid.size > 1:
        with _collective():
            dist.all_reduce(tensor)
    return tensor


def gather_objects(value: Any, grid: Grid) -> list[Any]:
    """``value`` of every rank, in rank order, on every rank."""
    if grid.size == 1:
        return [value]
    values: list[Any] = [None] * grid.size
    with _collective():
        dist.all_gather_object(values, value)
    return values


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
