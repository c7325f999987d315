"""Logging: information from the first rank, warnings from every rank with its name in front."""

from __future__ import annotations

import logging
import socket
import sys
from pathlib import Path

from launcher.ranks.environment import Process


def start_logging(process: Process) -> None:
    """Send our log records to stderr."""
    prefix = "" if process.world_size == 1 else f"[rank {process.rank} on {socket.gethostname()}] "
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter(f"%(asctime)s {prefix}%(message)s", "%H:%M:%S"))
    handler.addFilter(lambda record: process.rank == 0 or record.levelno >= logging.WARNING)
    for name in ("launcher", "prompt_tuning", "model_parallel"):
        logger = logging.getLogger(name)
        logger.handlers = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


class _File(logging.FileHandler):
    """A log file. What a full disk keeps out of it is on stderr, so that is no reason for a traceback a record."""

    def handleError(self, record: logging.LogRecord) -> None:
        pass


def log_to_file(path: Path) -> None:
    """Send them to a file too."""
    handler = _File(path, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    for name in ("launcher", "prompt_tuning", "model_parallel"):
        logging.getLogger(name).addHandler(handler)
