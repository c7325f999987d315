"""How fast a device is: measured in some tenths of a second."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch


def matrix_rate(width: int, dtype: torch.dtype, device: torch.device, repeats: int = 5) -> float:
    """Floating-point operations a second of the best of some products like those of a feed-forward layer."""
    a = torch.randn(2048, width, device=device).to(dtype)
    b = torch.randn(4 * width, width, device=device).to(dtype)
    return 2 * 2048 * width * 4 * width / _best(lambda: torch.nn.functional.linear(a, b), device, repeats)


def memory_rate(device: torch.device, num_bytes: int = 2**27, repeats: int = 5) -> float:
    """Bytes a second that are read or written, in the best of some copies."""
    source = torch.zeros(num_bytes // 4, device=device)
    target = torch.empty_like(source)
    return 2 * num_bytes / _best(lambda: target.copy_(source), device, repeats)


def _best(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    best = float("inf")
    for _ in range(repeats):
        started = now(device)
        work()
        best = min(best, now(device) - started)
    return best


def now(device: torch.device) -> float:
    """Seconds of a clock, once the device has done all that it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
