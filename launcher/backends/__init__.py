"""Ways to start the worker on many ranks, one file each, all of them ending in the same ``launcher/run.py``.

A backend's ``render`` says what would run, as text and without touching the world; ``start`` runs just that. Commands are
lists of words; where a program makes a shell command of them, every value is quoted or refused.
"""

from __future__ import annotations

import hashlib
import importlib
import pkgutil
import re
import shlex
import socket
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.environment import ROOT
from launcher.hostfile import Host
from prompt_tuning.errors import UserError


@dataclass(frozen=True)
class Submission:
    """What to run and where: the worker's arguments, hosts (None: not said) and ranks, and the scheduler's settings."""

    config: Path
    output: Path
    sets: tuple[str, ...] = ()
    hosts: tuple[Host, ...] | None = None
    hostfile: Path | None = None
    ranks: int = 1
    nodes: int = 1
    time: str | None = None
    partition: str | None = None
    account: str | None = None
    gpus: bool = False
    master: str | None = None
    """Address at which the ranks meet; None: the first host by its name."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables that the ranks need."""

    @property
    def worker(self) -> list[str]:
        """The worker and its arguments, with paths that mean the same on every host."""
        sets = [word for item in self.sets for word in ("--set", item)]
        config, output = self.config.resolve(), self.output.resolve()
        return [str(ROOT / "launcher" / "run.py"), "--config", str(config), "--output", str(output), *sets]

    @property
    def port(self) -> int:
        """Where the ranks meet, if their launcher cannot find a free one: runs in different folders differ in theirs."""
        return 20_000 + int.from_bytes(hashlib.sha256(bytes(self.output.resolve())).digest()[:4], "big") % 10_000

    @property
    def places(self) -> list[str]:
        """The host of every rank."""
        if self.hosts is None:
            return [socket.gethostname()] * self.ranks
        return [host.name for host in self.hosts for _ in host.slots]


@dataclass(frozen=True)
class Rendered:
    """What a backend would run: a command, and what it reads on its standard input."""

    command: list[str]
    text: str | None = None
    places: list[str] | None = None
    """The host of every rank; None: the scheduler chooses."""

    def describe(self) -> str:
        """The submission for people: nothing more and nothing less than what would run."""
        lines = [f"command: {shlex.join(self.command)}"]
        if self.places is None:
            lines.append("ranks: on hosts that the scheduler chooses")
        else:
            lines += [f"rank {rank}: {host}" for rank, host in enumerate(self.places)]
        return "\n".join(lines) + "\n" + ("" if self.text is None else f"standard input:\n{self.text}")


class Backend(Protocol):
    def render(self, submission: Submission) -> Rendered: ...


def backend_names() -> list[str]:
    """Names of all backends, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def render(name: str, submission: Submission) -> Rendered:
    """What a backend would run. Raises :class:`UserError`."""
    backend: Backend = importlib.import_module(f"{__name__}.{name}")
    return backend.render(submission)


def start(rendered: Rendered) -> int:
    """Run it and wait; the exit code. Raises :class:`UserError` where the program is not installed."""
    try:
        done = subprocess.run(rendered.command, input=rendered.text, text=True, check=False)
    except FileNotFoundError:
        raise UserError(
            f"{rendered.command[0]} is not installed here; install it or choose another --backend"
        ) from None
    return done.returncode


def python_program(name: str) -> str:
    """A program of this Python's environment, or whatever the path has under its name."""
    beside = Path(sys.executable).parent / name
    return str(beside) if beside.exists() else name


def check_quotable(words: list[str], program: str) -> None:
    """Refuse what a program that builds its own shell command in single quotes could not hand on unharmed."""
    for word in words:
        if re.search(r"['\x00-\x1f\x7f]", word) or (word.startswith("-") and not re.fullmatch(r"--?[a-z_-]+", word)):
            raise UserError(
                f"{word!r} cannot be handed to {program}, which puts arguments between single quotes for a shell;"
                " put it into the run file, or choose another --backend"
            )
