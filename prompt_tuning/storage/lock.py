"""One job at a time in a run folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from prompt_tuning.errors import UserError

logger = logging.getLogger(__name__)

_PATIENCE_SECONDS = 2
"""Whoever looks whether a folder is held, as `promptfleet status` does, holds its lock for an instant."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock``. Raises :class:`UserError` naming the owner where another job does.

    The system lets go of it when the process ends, however it ends, so that a killed job leaves no lock behind.
    """
    file = folder / ".lock"
    with file.open("a+", encoding="utf-8") as handle:
        try:
            _take(handle)
        except BlockingIOError:
            owner = file.read_text(encoding="utf-8").strip() or "another job"
            raise UserError(
                f"{folder} is in use by {owner}; wait for it, stop it, or choose another --output"
            ) from None
        except OSError as error:
            why = error.strerror or error
            logger.warning("%s is on a file system without locks (%s): see that no second job uses it", folder, why)
        handle.truncate(0)
        now = datetime.now(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        handle.flush()
        yield


def _take(handle: IO[str]) -> None:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        try:
            return fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
