"""Ways to start the worker on many ranks, one file each, all of them ending in the same ``launcher/run.py``.

A backend's ``render`` says what would run, as text and without touching the world; that is then run to the letter. Commands are
lists of words; where a program hands a command on to a shell, every value in it is quoted, or refused.
"""

from __future__ import annotations

import importlib
import pkgutil
import secrets
import shlex
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Protocol

from launcher.clusters.hostfile import Host
from launcher.ranks.environment import ROOT
from prompt_tuning.errors import UserError


@dataclass(frozen=True)
class Submission:
    """What to run and where: the worker's arguments, hosts (None: not said) and ranks, and what SLURM is asked for."""

    config: Path
    output: Path
    sets: tuple[str, ...] = ()
    hosts: tuple[Host, ...] | None = None
    ranks: int = 1
    nodes: int = 1
    scheduler: dict[str, str] = field(default_factory=dict)
    """Options of sbatch, by their long names."""
    gpus: bool = False
    master: str | None = None
    """Address at which the ranks meet; None: the first host by its name."""
    variables: dict[str, str] = field(default_factory=dict)
    """Environment variables that the ranks need."""
    flags: tuple[str, ...] = ()
    """The worker's ``--fresh`` or ``--resume``."""
    port: int = field(default_factory=lambda: 20_000 + secrets.randbelow(10_000))
    """Where the ranks meet, if their launcher cannot find a free one: two submissions hardly ever share it."""

    @property
    def worker(self) -> list[str]:
        """The worker and its arguments, with paths that mean the same on every host."""
        sets = [word for item in self.sets for word in ("--set", item)]
        config, output = self.config.resolve(), self.output.resolve()
        return [str(ROOT / "launcher" / "run.py"), "--config", str(config), "--output", str(output), *sets, *self.flags]

    @property
    def places(self) -> list[str]:
        """Host and slot of every rank."""
        if self.hosts is None:
            return [f"{socket.gethostname()} slot {rank}" for rank in range(self.ranks)]
        return [f"{host.name} slot {slot}" for host in self.hosts for slot in host.slots]


@dataclass(frozen=True)
class Rendered:
    """What a backend would run: a command, and what it reads on its standard input."""

    command: list[str]
    text: str | None = None
    places: list[str] | None = None
    """Host and slot of every rank; None: the scheduler chooses."""
    nodes: dict[str, str] = field(default_factory=dict)
    """What the shell of each host is told, where the command has it told something."""
    environment: str = "this shell's"
    """Whose variables the ranks have, besides those that they are given."""

    def describe(self, given: dict[str, str]) -> str:
        """The submission for people: nothing more and nothing less than what would run, with the variables ``given``."""
        lines = [f"command: {shlex.join(self.command)}"]
        lines += [f"on {host}: {told}" for host, told in self.nodes.items()]
        lines.append(f"environment: {self.environment}")
        lines += [f"  and {shlex.quote(f'{name}={value}')}" for name, value in given.items()]
        if self.places is None:
            lines.append("ranks: on hosts that the scheduler chooses")
        else:
            lines += [f"rank {rank}: {place}" for rank, place in enumerate(self.places)]
        return "\n".join(lines) + "\n" + ("" if self.text is None else f"standard input:\n{self.text}")


class Backend(Protocol):
    """How a backend starts a run."""

    def render(self, submission: Submission) -> Rendered:
        """The command, and what goes with it, that starts the submission. Raises :class:`UserError`."""


def backend_names() -> list[str]:
    """Names of all backends, sorted."""
    return sorted(module.name for module in pkgutil.iter_modules(__path__))


def render(name: str, submission: Submission) -> Rendered:
    """What a backend would run. Raises :class:`UserError`."""
    backend: Backend = importlib.import_module(f"{__name__}.{name}")
    return backend.render(submission)


def open_process(rendered: Rendered, output: IO[bytes] | None = None) -> subprocess.Popen[bytes]:
    """Start it, in a session of its own, where Ctrl-C does not reach it. Raises :class:`UserError` where it is not installed."""
    try:
        return subprocess.Popen(
            rendered.command, stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True
        )
    except (FileNotFoundError, PermissionError):  # the latter where a folder of PATH may not be looked into
        raise UserError(
            f"{rendered.command[0]} is not installed here; install it or choose another --backend"
        ) from None
