"""The ranks of a job find each other, and notice when one of them hangs or is gone, over torch's key-value store.

Each rank tells the store once a second that it runs. The first rank looks at all others, and they at the first, so the work
grows with the number of ranks and not with its square. Who finds a silent rank leaves its name for the others in the store.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from torch.distributed import PrefixStore, TCPStore

from launcher.ranks.rendezvous import Meeting
from prompt_tuning.errors import UserError, reason

logger = logging.getLogger("launcher.watch")

_BEATS_A_LIMIT = 5
_ENDED = b"ended"


def open_store(meeting: Meeting, rank: int, limit_seconds: float) -> Any:
    """A connection to the key-value store of the job. Raises :class:`UserError`."""
    is_keeper = rank == 0 and not meeting.is_kept_by_launcher
    try:
        store = TCPStore(
            meeting.host,
            meeting.port,
            is_master=is_keeper,
            timeout=timedelta(seconds=limit_seconds),
            wait_for_workers=False,
        )
    except RuntimeError as error:
        raise UserError(
            f"the ranks cannot meet on {meeting.host}:{meeting.port} (MASTER_ADDR, MASTER_PORT): {reason(error)};"
            f" {'they have to be a free port of the host of rank 0' if is_keeper else 'look at what rank 0 prints, and at the network'}"
        ) from None
    # A store that a launcher keeps outlives an attempt, and what ended that one must not end the next.
    return PrefixStore(f"attempt {meeting.attempt}/", store)


def gather_ranks(store: Any, rank: int, size: int, limit_seconds: float) -> list[str]:
    """Wait for all ranks; the host of each.

    Where some do not come in time the lowest of those that did raises :class:`UserError` with their names, and the
    others end.
    """
    store.set(f"beat/{rank}", "0")
    store.set(f"host/{rank}", socket.gethostname())
    keys = [f"host/{other}" for other in range(size)]
    try:
        store.wait(keys, timedelta(seconds=limit_seconds))
    except RuntimeError:
        try:
            here = {other: store.get(key).decode() for other, key in enumerate(keys) if store.check([key])}
        except RuntimeError:
            raise UserError(
                "rank 0, or its launcher, is gone before all ranks have come; look at what it prints"
            ) from None
        if rank != min(here):
            sys.exit(1)
        away = ", ".join(str(other) for other in range(size) if other not in here)
        places = ", ".join(sorted(set(here.values())))
        raise UserError(
            f"rank {away} of {size} did not come within {limit_seconds:.0f} s; the others are on {places}; look at what the"
            " missing ones print, or raise launch.timeout_seconds"
        ) from None
    return [store.get(key).decode() for key in keys]


@contextlib.contextmanager
def watching(store: Any, rank: int, hosts: list[str], limit_seconds: float) -> Iterator[Watch]:
    """Tell the others that this process runs, and end it when one of them has been silent for ``limit_seconds``.

    Threads do both, so a process that is stopped, or whose host is gone, is noticed although it may be waited for in the
    middle of a step. ``hosts`` comes from :func:`gather_ranks`; nobody watches a rank that is alone, and ``store`` may be None.
    """
    watch = Watch(store, rank, hosts, limit_seconds)
    if len(hosts) > 1:
        for run in (watch.talk, watch.time_talk):
            threading.Thread(target=run, daemon=True).start()
    try:
        yield watch
    except (Exception, SystemExit):
        watch.end(is_failure=True)
        raise
    finally:
        watch.end()


class Watch:
    """One rank's look at the others; see :func:`watching`."""

    def __init__(self, store: Any, rank: int, hosts: list[str], limit_seconds: float) -> None:
        self.done = threading.Event()
        self.has_lost = False
        """Whether this process knows already that another is gone."""
        self._store, self._rank, self._hosts, self._limit = store, rank, hosts, limit_seconds
        self._interval = min(1.0, limit_seconds / _BEATS_A_LIMIT)
        self._talked = self._ran = time.monotonic()
        self._resumed = -limit_seconds
        """When this process last ran again after a halt, as of a job that a scheduler has suspended."""

    def talk(self) -> None:
        """The thread that tells and looks."""
        store = self._store.clone()  # a connection of its own, which waits for nobody
        others = list(range(1, len(self._hosts))) if self._rank == 0 else [0]
        heard: dict[int, tuple[bytes, float]] = {}
        beat = 0
        while not self.done.wait(self._interval):
            now = time.monotonic()
            if self._was_halted(now):
                heard = {}  # from before: it says nothing
            beat += 1
            try:
                store.set(f"beat/{self._rank}", str(beat))
                judged = [] if self.has_lost else others  # the main thread judges then
                if judged and store.check(["verdict"]):
                    _end()
                for other, value in zip(judged, _beats(store, judged), strict=True):
                    if value == _ENDED or other not in heard or heard[other][0] != value:
                        heard[other] = (value, now)
                    elif now - heard[other][1] > self._limit:
                        self._condemn(store, f"{self._name(other)} has not answered for {now - heard[other][1]:.0f} s")
                        _end()
            except Exception as error:
                if not self.done.is_set() and not self.has_lost:
                    self._blame_keeper(f"cannot be reached any more ({type(error).__name__})")
                    _end()
                return
            self._talked = time.monotonic()

    def time_talk(self) -> None:
        """The thread that notices when the other one asks the store in vain, whose keeper hangs or has lost its network."""
        while not self.done.wait(self._interval):
            now = time.monotonic()
            if now - self._ran > self._limit / 2:
                self._resumed = self._talked = now
            self._ran = now
            if now - self._talked > self._limit:
                self._blame_keeper(f"has not answered for {now - self._talked:.0f} s")
                _end()

    def end(self, is_failure: bool = False) -> None:
        """Tell the others that this process ends by itself; one that keeps the store and fails stays a moment for theirs."""
        if self.done.is_set():
            return
        self.done.set()
        if len(self._hosts) == 1 or self.has_lost:
            return
        with contextlib.suppress(Exception):  # the store's keeper may be gone
            self._store.set(f"beat/{self._rank}", _ENDED)
            deadline = time.monotonic() + 3 * self._interval
            others = list(range(1, len(self._hosts)))
            while is_failure and self._rank == 0 and time.monotonic() < deadline:
                if all(beat == _ENDED for beat in _beats(self._store, others)):
                    break
                time.sleep(self._interval / 10)

    def says_first(self, message: str) -> bool:
        """Whether no other rank has met ``message`` before: what several meet is said once, and what one meets is said too."""
        if len(self._hosts) == 1:
            return True
        mine = str(self._rank)
        key = f"said/{hashlib.sha256(message.encode(errors='replace')).hexdigest()}"
        try:
            is_first: bool = self._store.compare_set(key, "", mine).decode() == mine
        except Exception:  # the store's keeper is gone; better twice than never
            return True
        return is_first

    def explain_loss(self, error: str) -> None:
        """Say which rank is the reason that a collective failed with ``error``. One of the ranks that are left does.

        A rank that ends by itself says so in the store, and one that is left goes on telling that it runs.
        """
        self.has_lost = True
        everyone = list(range(len(self._hosts)))
        try:
            self._store.set(f"lost/{self._rank}", "")
            before = beats = _beats(self._store, everyone)
            deadline = time.monotonic() + 3 * self._interval
            while time.monotonic() < deadline and _ENDED not in beats:
                time.sleep(self._interval / 10)
                beats = _beats(self._store, everyone)
            ended = [self._name(rank) for rank in everyone if beats[rank] == _ENDED]
            silent = [self._name(rank) for rank in everyone if beats[rank] == before[rank]]
            away = [self._name(rank) for rank in everyone if not self._store.check([f"lost/{rank}"])]
            why = f"a message between ranks failed ({error})"
            if ended:
                why = f"{' and '.join(ended)} ended; the message above or below says why"
            elif silent:
                why = f"{' and '.join(silent)} died without a word: killed, out of memory, or cut off"
            elif away:
                why = f"{' and '.join(away)} did not come where the others wait, though alive ({error})"
            self._condemn(self._store, why)
        except Exception:
            self._blame_keeper("is gone")

    def _condemn(self, store: Any, why: str) -> None:
        """Leave the reason to end in the store; only the first to find one says it."""
        mine = f"{self._rank}: {why}"
        if store.compare_set("verdict", "", mine).decode() == mine:
            _say(why)
            time.sleep(2 * self._interval)  # the others are to read it before the store goes with this process

    def _name(self, rank: int) -> str:
        return f"rank {rank} on {self._hosts[rank]}"

    def _was_halted(self, now: float) -> bool:
        """Whether this process itself did not run for a while, or runs again since a moment ago."""
        return now - self._ran > self._limit / 2 or now - self._resumed < 2 * self._interval

    def _blame_keeper(self, why: str) -> None:
        if self._was_halted(time.monotonic()):
            _say(f"{self._name(self._rank)} was halted for a while, and the others have gone on")
        else:
            _say(f"{self._name(0)}, which with its launcher keeps the ranks together, {why}")


def _beats(store: Any, ranks: list[int]) -> list[bytes]:
    return list(store.multi_get([f"beat/{rank}" for rank in ranks]))


def _say(why: str) -> None:
    logger.error("error: %s; the job ends here and continues from its last checkpoint with the same command", why)


def _end() -> None:
    for handler in logger.handlers + (logger.parent.handlers if logger.parent else []):
        handler.flush()
    os._exit(1)
