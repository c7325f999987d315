"""The fork pool itself: what a test of ranks may rely on."""

from __future__ import annotations

import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from model_parallel.collectives import gather_objects, wait_long
from model_parallel.grid import make_grid
from tests.support.ranks import run_ranks


def meet(grid, word):
    return gather_objects(f"{word} {grid.rank}", grid), torch.get_num_threads()


def fail_on_one(grid):
    if grid.rank == 1:
        raise ValueError("the second rank's own words")
    gather_objects(None, grid)


def hang_on_one(grid):
    if grid.rank == 0:
        gather_objects(None, grid)
    else:
        time.sleep(60)


def test_ranks_meet_on_one_thread_each():
    assert run_ranks(3, meet, "rank") == [(["rank 0", "rank 1", "rank 2"], 1)] * 3


def test_ranks_fork_cleanly_after_threads_were_used():
    """Forked from this process, OpenMP would hang in the children."""
    torch.randn(600, 600) @ torch.randn(600, 600)
    assert len(run_ranks(2, meet, "again")) == 2


def test_a_failing_rank_shows_its_own_traceback():
    with pytest.raises(pytest.fail.Exception, match=r"(?s)rank 1 failed.*fail_on_one.*the second rank's own words"):
        run_ranks(2, fail_on_one)


def test_a_hanging_rank_shows_where_it_stands():
    with pytest.raises(pytest.fail.Exception, match=r"(?s)did not end in time.*hang_on_one"):
        run_ranks(2, hang_on_one, timeout_seconds=4)


def wait_for_a_late_one(grid, is_patient):
    """Whether this rank meets one that reads its data for longer than a collective may take."""
    grid = make_grid(grid.rank, grid.size, grid.device)
    hasty = dist.new_group(backend="gloo", timeout=timedelta(milliseconds=300))
    if grid.rank == 1:
        time.sleep(0.9)
    try:
        if is_patient:
            wait_long(grid)
        else:
            dist.barrier(group=hasty)
    except RuntimeError:
        return False
    return True


def test_ranks_wait_for_one_that_reads_long():
    assert run_ranks(2, wait_for_a_late_one, True) == [True, True]
    assert run_ranks(2, wait_for_a_late_one, False)[0] is False, "a collective would not have waited"
