"""What a run folder says of its run, to whoever looks from outside: read from its files alone, without torch."""

from __future__ import annotations

import fcntl
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class State:
    """One run. ``word`` is ``finished``, ``failed``, ``running``, ``stopped`` or ``waiting``."""

    word: str
    step: int = 0
    """Of the newest checkpoint, or of the newest logged step where the run is running or has ended."""
    owner: str | None = None
    """Process and host of a running job."""
    last_line: str = ""
    """Of its log, without date."""


def read_state(folder: Path) -> State:
    """The state of the run in a folder, which need not be there yet."""
    owner = owner_of(folder)
    status = result_status(folder)
    logged = max((_last_step(file) for file in folder.glob("members/*/metrics.jsonl")), default=0)
    line = re.sub(r"^[0-9-]+ [0-9:,]+ [A-Z]+ ", "", _last_line(folder / "log.txt"))
    if status is not None:
        return State("finished" if status == "finished" else "failed", logged, None, line)
    if owner is not None:
        return State("running", max(logged, saved_step(folder)), owner, line)
    if not (folder / "run.json").exists():
        return State("waiting")
    return State("stopped", saved_step(folder), None, line)


def result_status(folder: Path) -> str | None:
    """``finished``, or what else the run's result says; None while there is none."""
    try:
        return str(json.loads((folder / "result.json").read_text(encoding="utf-8"))["status"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def training_examples(folder: Path) -> int:
    """Examples that the first member of a finished run was trained on, from its newest checkpoint."""
    newest = max(
        folder.glob("checkpoints/step-*/state.json"), key=lambda file: (len(file.parent.name), file.parent.name)
    )
    state = json.loads(newest.read_text(encoding="utf-8"))
    return int(state["members"][0]["data"]["splits"]["train"]["examples"])


def saved_step(folder: Path) -> int:
    """Step of the newest checkpoint; 0 where there is none."""
    names = [path.parent.name.removeprefix("step-") for path in folder.glob("checkpoints/step-*/state.json")]
    return max((int(name) for name in names if name.isdecimal()), default=0)


def owner_of(folder: Path) -> str | None:
    """Who holds the folder's lock; None: nobody does, or its file system has no locks."""
    try:
        with (folder / ".lock").open(encoding="utf-8") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return handle.read().strip() or "another job"
    except OSError:
        pass
    return None


def _last_step(file: Path) -> int:
    try:
        value: Any = json.loads(_last_line(file))
        return int(value["step"])
    except (ValueError, KeyError, TypeError):
        return 0


def _last_line(file: Path) -> str:
    """The last whole line of a file, from its last 4 KiB."""
    try:
        with file.open("rb") as handle:
            handle.seek(max(0, file.stat().st_size - 4096))
            lines = handle.read().decode("utf-8", "replace").splitlines(keepends=True)
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.endswith("\n")), "")
