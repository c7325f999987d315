"""Real gloo ranks in seconds: forked from one clean process that has imported torch, transformers and the project once.

The pytest process itself never forks: once torch has run on several threads, OpenMP in a forked child hangs.
"""

from __future__ import annotations

import contextlib
import faulthandler
import multiprocessing
import os
import pickle
import tempfile
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest

_PRELOAD = ["tests.support.preload"]
TIMEOUT_SECONDS = 300
"""Of ranks that hang: many times what any test takes where cores are slow and shared."""


def run_ranks(
    world_size: int, function: Callable[..., Any], *args: Any, timeout_seconds: float = TIMEOUT_SECONDS
) -> list[Any]:
    """``function(grid, *args)`` on ``world_size`` gloo ranks of one thread each; its results in rank order.

    ``function`` is importable and, like its arguments and results, goes through pickle. If a rank raises, all are ended
    and the test fails with that rank's own traceback; a rank that is still running at the deadline shows where it stands.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    with tempfile.TemporaryDirectory() as folder:
        readers: dict[Connection, int] = {}
        processes = []
        for rank in range(world_size):
            reader, writer = context.Pipe(duplex=False)
            arguments = (rank, world_size, folder, writer, timeout_seconds, pickle.dumps((function, args)))
            process = context.Process(target=_rank, args=arguments, daemon=True)
            process.start()
            writer.close()
            readers[reader] = rank
            processes.append(process)
        try:
            return _collect(readers, Path(folder), time.monotonic() + timeout_seconds)
        finally:
            for process in processes:
                process.kill()
                process.join()


def _collect(readers: dict[Connection, int], folder: Path, deadline: float) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = dict(readers)
    while waiting:
        ready = wait(list(waiting), max(0.0, deadline - time.monotonic()))
        if not ready:
            stacks = [f"rank {rank} stands at\n{(folder / f'stack-{rank}').read_text()}" for rank in waiting.values()]
            pytest.fail("ranks did not end in time\n" + "\n".join(stacks), pytrace=False)
        for reader in ready:
            rank = waiting.pop(reader)
            try:
                is_good, payload = pickle.loads(reader.recv_bytes())
            except EOFError:
                pytest.fail(f"rank {rank} died without a word", pytrace=False)
            if not is_good:
                pytest.fail(f"rank {rank} failed\n{payload}", pytrace=False)
            results[rank] = payload
    return [results[rank] for rank in sorted(results)]


def _rank(rank: int, size: int, folder: str, writer: Connection, timeout_seconds: float, work: bytes) -> None:
    """One forked rank: open the group, call the function, send back its result or its traceback."""
    import torch
    import torch.distributed as dist

    from model_parallel.grid import Grid

    torch.set_num_threads(1)
    os.environ.update(GLOO_SOCKET_IFNAME="lo", LOCAL_RANK=str(rank), LOCAL_SIZE=str(size))
    with (Path(folder) / f"stack-{rank}").open("w") as stack:
        # A little before the parent's deadline, so that the stack is there to be read.
        faulthandler.dump_traceback_later(max(1.0, timeout_seconds - 2), file=stack)
        try:
            dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=size)
            function, args = pickle.loads(work)
            answer = pickle.dumps((True, function(Grid(rank, size), *args)))
        except BaseException:  # whatever it is, the test must show it
            answer = pickle.dumps((False, traceback.format_exc()))
        with contextlib.suppress(BrokenPipeError):
            writer.send_bytes(answer)
        faulthandler.cancel_dump_traceback_later()
    # The others may still be inside their last collective, or just opening a group: until all have answered, and the parent
    # ends them, nobody leaves.
    time.sleep(timeout_seconds)
    os._exit(0)
