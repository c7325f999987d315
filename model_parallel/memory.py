"""How much a rank holds: of the model's parameters, and of the machine's memory."""

from __future__ import annotations

from pathlib import Path

from torch import nn


def resident_numel(model: nn.Module) -> int:
    """Numbers of the model's parameters in this rank's memory now: its ZeRO-3 shards and whatever is gathered."""
    total = 0
    for parameter in model.parameters():
        shard = getattr(parameter, "ds_tensor", None)
        total += parameter.numel() if shard is None else parameter.data.numel() + shard.numel()
    return total


def resident_bytes(model: nn.Module) -> int:
    """As :func:`resident_numel`, in bytes."""
    sizes = {parameter.element_size() for parameter in model.parameters()}
    return resident_numel(model) * max(sizes, default=0)


def process_memory(status: Path = Path("/proc/self/status")) -> dict[str, int]:
    """Bytes of this process by kind: ``anonymous``, ``shared`` and ``peak``; empty where the system does not tell.

    Mapped file pages, which the system takes back at will, are in the peak alone.
    """
    names = {"RssAnon": "anonymous", "RssShmem": "shared", "VmHWM": "peak"}
    try:
        lines = [line.split() for line in status.read_text().splitlines()]
    except OSError:
        return {}
    return {names[line[0][:-1]]: 1024 * int(line[1]) for line in lines if line and line[0][:-1] in names}
