"""Watching over a job: requests to stop, and ranks that have stopped answering."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from types import FrameType
from typing import Any

logger = logging.getLogger("launcher.watch")

STOPPED = 75
"""Exit code of a job that was asked to stop and can be continued (EX_TEMPFAIL)."""
_BEATS_A_LIMIT = 5


class Stopped(BaseException):
    """Somebody asked this process to stop before it had anything to save."""


class StopRequest:
    """Whether somebody asked this process to stop: SIGTERM, or SIGUSR1 as schedulers send it before a time limit.

    Within the ``with`` block the first of these signals only asks, and the training loop answers between steps; a second
    one ends. Until the loop looks for the first time there is nothing to wait for, and a signal raises :class:`Stopped`.
    """

    def __init__(self) -> None:
        self._is_asked = False
        self._is_answered = False
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGTERM, signal.SIGUSR1)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        self._is_asked = True
        if not self._is_answered:
            raise Stopped

    def __call__(self) -> bool:
        self._is_answered = True
        return self._is_asked


@contextlib.contextmanager
def heartbeats(store: Any, rank: int, size: int, limit_seconds: float) -> Iterator[None]:
    """Tell the others that this process runs, and end it when one of them has been silent for ``limit_seconds``.

    A thread does both, so a process that is stopped, or whose host is gone, falls silent although it may be waited for in
    the middle of a step. ``store`` is a connection of its own to torch's key-value store of the job.
    """
    if size == 1:
        yield
        return
    done = threading.Event()
    store.set(f"host/{rank}", socket.gethostname())
    thread = threading.Thread(target=_watch, args=(store, rank, size, limit_seconds, done), daemon=True)
    thread.start()
    try:
        yield
    finally:
        with contextlib.suppress(Exception):  # the store's own rank may be gone
            store.set(f"beat/{rank}", "end")
        done.set()
        thread.join()


def _watch(store: Any, rank: int, size: int, limit_seconds: float, done: threading.Event) -> None:
    heard: dict[int, tuple[bytes, float]] = {}
    beat = 0
    previous = time.monotonic()
    while not done.wait(limit_seconds / _BEATS_A_LIMIT):
        now = time.monotonic()
        if now - previous > limit_seconds / 2:
            heard = {}  # this process itself was stopped for a while: what it heard before says nothing
        previous, beat = now, beat + 1
        try:
            store.set(f"beat/{rank}", str(beat))
            for other in range(size):
                key = f"beat/{other}"
                value = store.get(key) if store.check([key]) else b""
                if value == b"end":
                    heard.pop(other, None)
                elif other not in heard or heard[other][0] != value:
                    heard[other] = (value, now)
                elif other != rank and now - heard[other][1] > limit_seconds:
                    host = store.get(f"host/{other}").decode() if store.check([f"host/{other}"]) else "unknown host"
                    _end(f"rank {other} on {host} has not answered for {now - heard[other][1]:.0f} s")
        except Exception as error:
            if done.is_set():
                return
            _end(f"the first rank, which keeps the ranks together, does not answer ({type(error).__name__})")


def _end(why: str) -> None:
    logger.error("error: %s; the job ends here and continues from its last checkpoint with the same command", why)
    for handler in logger.handlers + (logger.parent.handlers if logger.parent else []):
        handler.flush()
    os._exit(1)
