"""One job at a time in a run folder: a lock that ends with the process that holds it."""

from __future__ import annotations

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from prompt_tuning.errors import UserError


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold ``folder/.lock``. Raises :class:`UserError` naming the owner where another job does.

    The system lets go of it when the process ends, however it ends, so that a killed job leaves no lock behind.
    """
    file = folder / ".lock"
    with file.open("a+", encoding="utf-8") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            owner = file.read_text(encoding="utf-8").strip() or "another job"
            raise UserError(
                f"{folder} is in use by {owner}; wait for it, stop it, or choose another --output"
            ) from None
        except OSError:
            # Some network file systems have no locks; then there is nothing to hold.
            pass
        handle.truncate(0)
        now = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
        handle.write(f"process {os.getpid()} on {socket.gethostname()} since {now}\n")
        handle.flush()
        yield
