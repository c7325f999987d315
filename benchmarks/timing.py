"""Taking times: contenders by turns in one process, so that whatever else the machine does hits all of them.

With one thread on a CPU it is the process's own processor time that counts, which equals the time on the clock where nothing
else runs, and leaves out the waiting for a core where something does.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

MATRIX_SIZE = 2048
MATRIX_OPERATIONS = 2 * MATRIX_SIZE**3


def by_turns(tasks: Mapping[str, Callable[[], Any]], repeats: int, device: str) -> tuple[dict, dict]:
    """Seconds and results of each task in ``repeats`` rounds, lists by name; a round before them is not timed.

    Every other round goes backwards. The untimed round's results come first.
    """
    seconds: dict[str, list[float]] = {name: [] for name in tasks}
    results: dict[str, list[Any]] = {name: [] for name in tasks}
    names = list(tasks)
    clock = clock_of(device)
    for number in range(repeats + 1):
        for name in names if number % 2 else names[::-1]:
            gc.collect()
            _wait(device)
            started = clock()
            result = tasks[name]()
            _wait(device)
            if number:
                seconds[name].append(clock() - started)
            results[name].append(result)
    return seconds, results


def clock_of(device: str) -> Callable[[], float]:
    """The processor time of this process, or where that is not what counts the time on the clock, in seconds."""
    return time.process_time if device == "cpu" and torch.get_num_threads() == 1 else time.perf_counter


def _wait(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def matrix_product(dtype: str, device: str) -> Callable[[], None]:
    """A product of two square matrices, :data:`MATRIX_OPERATIONS` floating-point operations: what the machine can do."""
    a, b = (torch.randn(MATRIX_SIZE, MATRIX_SIZE, device=device).to(getattr(torch, dtype)) for _ in range(2))

    def multiply() -> None:
        torch.mm(a, b)

    return multiply


def ratio(slow: Sequence[float], fast: Sequence[float]) -> dict[str, float]:
    """Median and quartiles of the ratios, round by round; above 1 the second is better."""
    lower, middle, upper = np.percentile(np.array(slow) / np.array(fast), [25, 50, 75]).tolist()
    return {"median": middle, "lower_quartile": lower, "upper_quartile": upper}


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(np.median(values))


def largest_difference(first: Sequence[Any], second: Sequence[Any]) -> float:
    """The largest difference between two contenders' losses, over all rounds and members."""
    return max((a.double().cpu() - b.double().cpu()).abs().max().item() for a, b in zip(first, second, strict=True))
