"""Requests to stop a job: by a signal to its processes, by a driver in a file of its run folder, by the launcher's end."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from pathlib import Path
from types import FrameType
from typing import Any

import psutil

from launcher.ranks.exit_codes import of_signal

RANK_SIGNALS = (signal.SIGTERM, signal.SIGUSR1)
"""The second is what schedulers send before a time limit."""
DRIVER_SIGNALS = (*RANK_SIGNALS, signal.SIGINT, signal.SIGHUP)
POLL_SECONDS = 0.2
"""How often a driver looks for signals and for the end of what it waits for."""

_SAME_REQUEST_SECONDS = 5
"""A signal often comes twice: to all processes of a job, and from a launcher that hands its own on."""
_FILE = ".stop"


class Stopped(BaseException):
    """Somebody asked this process to stop before it had anything to save."""

    def __init__(self, number: int) -> None:
        self.exit_code = of_signal(number)
        """As of a process that the signal has ended: what is started again would meet the same."""


class StopRequest:
    """Whether somebody asked this process to stop, by one of some signals.

    Within the ``with`` block the first of these signals only asks, and the training loop answers between steps; one that
    comes a while later ends. Until that loop asks for the first time there is nothing to wait for, and a signal raises
    :class:`Stopped`.
    """

    def __init__(self, signals: tuple[signal.Signals, ...] = RANK_SIGNALS) -> None:
        self._signals = signals
        self._asked: float | None = None
        self._is_answered = False
        self._file: Path | None = None
        self._launcher = _find_deepspeed()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        # What whoever started this process had it ignore, as nohup does, stays ignored.
        heeded = [number for number in self._signals if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._ask) for number in heeded}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if self._asked is None:
            self._asked = time.monotonic()
            if not self._is_answered:
                raise Stopped(number)
        elif time.monotonic() - self._asked > _SAME_REQUEST_SECONDS:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)

    def close(self) -> None:
        """Let no signal change the exit code any more: the first rank that leaves may have its launcher signal the others."""
        for number in self._before:
            signal.signal(number, signal.SIG_IGN)
        self._before = {}

    def listen(self, folder: Path) -> None:
        """Heed requests in a run folder too, from now on. For the rank that holds the folder's lock."""
        self._file = folder / _FILE
        self._file.unlink(missing_ok=True)

    def __call__(self) -> bool:
        """Whether somebody has asked."""
        self._is_answered = True
        is_told = self._file is not None and self._file.exists()
        return self._asked is not None or is_told or (self._launcher is not None and _has_ended(self._launcher))


def _find_deepspeed() -> psutil.Process | None:
    """What has started DeepSpeed's launcher of local ranks: ``deepspeed``, or the connection from another host.

    It ends at a SIGTERM without a word to that launcher, whose ranks would train on with nobody to end them.
    """
    with contextlib.suppress(psutil.Error):
        parents = psutil.Process().parents()[:2]
        if len(parents) == 2 and "deepspeed.launcher.launch" in parents[0].cmdline():
            return parents[1]
    return None


def _has_ended(process: psutil.Process) -> bool:
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True
    except psutil.AccessDenied:
        return False


def ask_to_stop(folder: Path) -> None:
    """Ask the job in a run folder to save its step and end, whatever launcher started it, on whatever host.

    Launchers treat signals in ways of their own: some forward them, some give the ranks a second, some leave them running.
    A request that comes before the job listens is lost, so it is to be repeated until the job has ended.
    """
    with contextlib.suppress(OSError):  # not there yet, or on a disk that is full: the next one may get through
        (folder / _FILE).touch()
