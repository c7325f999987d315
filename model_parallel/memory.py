"""How much a rank holds: of the model's parameters, and of the machine's memory; and how much it may still take."""

from __future__ import annotations

import ctypes
import sys
from pathlib import Path

import torch
from torch import nn

from model_parallel.cores import group_folders


def resident_numel(model: nn.Module) -> int:
    """Numbers of the model's parameters in this rank's memory now: its ZeRO-3 shards and whatever is gathered."""
    return sum(_resident(parameter) for parameter in model.parameters())


def resident_bytes(model: nn.Module) -> int:
    """As :func:`resident_numel`, in bytes."""
    return sum(_resident(parameter) * parameter.element_size() for parameter in model.parameters())


def _resident(parameter: nn.Parameter) -> int:
    shard = getattr(parameter, "ds_tensor", None)
    return parameter.numel() if shard is None else parameter.data.numel() + shard.numel()


def process_memory(status: Path = Path("/proc/self/status")) -> dict[str, int]:
    """Bytes of this process by kind: ``anonymous``, ``shared``, ``files`` and ``peak``; empty where the system does not tell.

    Mapped file pages, which the system takes back at will, are in the peak too.
    """
    names = {"RssAnon": "anonymous", "RssShmem": "shared", "RssFile": "files", "VmHWM": "peak"}
    try:
        lines = [line.split() for line in status.read_text().splitlines()]
    except OSError:
        return {}
    return {names[line[0][:-1]]: 1024 * int(line[1]) for line in lines if line and line[0][:-1] in names}


def peak_memory(device: torch.device) -> int | None:
    """Most bytes that tensors took on a GPU, or that this process took on the host; None where nobody says.

    Of the host's peak, the file pages mapped now are left out: they grow as libraries are loaded, and shrink hardly ever.
    """
    if device.type == "cuda":
        return int(torch.cuda.max_memory_allocated(device))
    found = process_memory()
    return found["peak"] - found["files"] if {"peak", "files"} <= set(found) else None


def free_memory(device: torch.device) -> int | None:
    """Bytes free on a GPU, or on the host; None where nobody says."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    return free_on_host()


def free_on_host(
    meminfo: Path = Path("/proc/meminfo"),
    groups: Path = Path("/sys/fs/cgroup"),
    own: Path = Path("/proc/self/cgroup"),
) -> int | None:
    """What the kernel calls available, or less where control groups limit this process (Linux); None elsewhere.

    Files that the kernel keeps in memory and would give back do not count as taken.
    """
    found = []
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        found.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, ValueError, KeyError):
        pass
    for folder in group_folders("memory", groups, own):
        left = _left(folder, "memory.max", "memory.current", "inactive_file")
        if left is None:
            left = _left(folder, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        if left is not None:
            found.append(left)
    return min(found, default=None)


def free_swap(meminfo: Path = Path("/proc/meminfo")) -> int:
    """Bytes to which the host may still move what is in memory; 0 where nobody says."""
    try:
        lines = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
        return 1024 * int(lines["SwapFree"].split()[0])
    except (OSError, ValueError, KeyError):
        return 0


def _left(folder: Path, limit: str, taken: str, kept: str) -> int | None:
    """What a group may still take; None: it has no such limit."""
    try:
        whole, used = (folder / limit).read_text().strip(), int((folder / taken).read_text())
        if whole == "max":
            return None
        lines = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return max(0, int(whole) - used + int(lines.get(kept, 0)))
    except (OSError, ValueError):
        return None


def give_back() -> None:
    """Give freed memory back to the system where the C library can be told so (glibc), in some milliseconds.

    By itself it keeps what batches of many sizes leave between what is still in use, and more with every new size.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if sys.platform == "linux" else None
    if trim is not None:
        trim(0)
