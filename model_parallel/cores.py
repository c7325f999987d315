"""How many processor cores this process may use: by its affinity, and by the limits of its control groups (Linux)."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path


def usable_cores(groups: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> int:
    """At least 1. Containers and batch systems limit time and leave all cores in sight: ``cpu.max`` of version 2 of the
    kernel's control groups, in the process's group or any above it, and ``cpu.cfs_quota_us`` of version 1."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    limits = (_quota(folder) for folder in group_folders("cpu", groups, own))
    return max(1, min([cores, *(math.ceil(limit) for limit in limits if limit is not None)]))


def group_folders(controller: str, groups: Path, own: Path) -> Iterator[Path]:
    """Folders of this process's control groups that limit what ``controller`` names, innermost first; both versions'."""
    try:
        lines = [line.split(":", 2) for line in own.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in (line for line in lines if len(line) == 3):
        if controllers and controller not in controllers.split(","):
            continue
        base = groups if not controllers else groups / controller
        place = Path(path.lstrip("/"))
        yield from (base / place, *(base / parent for parent in place.parents))


def _quota(folder: Path) -> float | None:
    """Cores' worth of time that a group may use; None: as much as there is."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if quota != "max" and int(quota) > 0 else None
    except (OSError, ValueError, ZeroDivisionError):
        return None
