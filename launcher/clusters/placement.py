"""Where and by what a run is started, from the options that ``submit`` and ``suite`` share."""

from __future__ import annotations

import argparse
import re
from dataclasses import replace
from pathlib import Path

from launcher.clusters.backends import Submission, backend_names
from launcher.clusters.hostfile import Host, check_host, read_hostfile, select
from launcher.ranks.environment import variables
from prompt_tuning.errors import UserError
from prompt_tuning.messages import show

Place = tuple[Host, ...] | None
"""Hosts that one run takes; None: not said; (): hosts that are not this driver's."""


def add_placement(verb: argparse.ArgumentParser) -> None:
    """Add the options."""
    group = verb.add_argument_group("where to run")
    group.add_argument(
        "--backend", default="local", choices=backend_names(), help="what starts the ranks (default: local)"
    )
    group.add_argument("--hostfile", metavar="FILE", help="hosts, one `name slots=N` a line (deepspeed, mpi)")
    group.add_argument(
        "--include", default="", metavar="FILTER", help="only these hosts, as name or name:slot,slot@name"
    )
    group.add_argument("--exclude", default="", metavar="FILTER", help="all hosts but these")
    group.add_argument(
        "--ranks", type=count, metavar="N", help="ranks of a run (default: one a node, or the hosts' slots)"
    )
    group.add_argument(
        "--nodes",
        type=count,
        metavar="N",
        help="hosts of a run (default: all of the hostfile, one for a fleet of a suite)",
    )
    group.add_argument("--time", metavar="LIMIT", help="time limit of a SLURM job, such as 4:00:00")
    group.add_argument("--partition", help="partition of a SLURM job")
    group.add_argument("--account", help="account of a SLURM job")
    group.add_argument(
        "--sbatch",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="another option of a SLURM job, such as cpus-per-task=8 or qos=long (repeatable)",
    )
    group.add_argument("--gpus", action="store_true", help="ask SLURM for a GPU a rank")
    group.add_argument(
        "--master-addr",
        metavar="HOST",
        help="where the ranks meet, if the first host has another name for ssh or SLURM",
    )
    group.add_argument(
        "--export",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable that the ranks need (repeatable)",
    )


def count(text: str) -> int:
    """A whole number of at least 1, for argparse."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def submission(options: argparse.Namespace, config: Path, output: Path, sets: tuple[str, ...] = ()) -> Submission:
    """What the options say of a run. Raises :class:`UserError`."""
    hosts = None
    if options.hostfile is not None:
        hosts = tuple(select(read_hostfile(Path(options.hostfile)), options.include, options.exclude))
    elif options.include or options.exclude:
        raise UserError("--include and --exclude choose among the hosts of --hostfile; give one")
    if options.master_addr is not None:
        check_host(options.master_addr, "--master-addr")
    wrong = [name for name in options.export if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]
    if wrong:
        raise UserError(f"--export {show(wrong[0])}: not the name of an environment variable")
    slots = None if hosts is None else sum(len(host.slots) for host in hosts)
    if slots is not None and options.ranks not in (None, slots):
        raise UserError(f"--ranks {options.ranks}, but the hosts have {slots} slots; leave it out or filter the hosts")
    return Submission(
        config,
        output,
        sets,
        hosts,
        ranks=options.ranks or slots or options.nodes or 1,
        nodes=options.nodes or 1,
        scheduler=_scheduler(options),
        gpus=options.gpus,
        master=options.master_addr,
        variables=variables(options.export),
    )


def _scheduler(options: argparse.Namespace) -> dict[str, str]:
    """Settings of a SLURM job, by the long names of sbatch's options. Raises :class:`UserError` where no SLURM would read them."""
    named = {name: value for name in ("time", "partition", "account") if (value := getattr(options, name)) is not None}
    settings = {**dict(item.partition("=")[::2] for item in options.sbatch), **named}
    if options.backend != "slurm" and (settings or options.gpus):
        given = ", ".join(
            [*(f"--{name}" for name in named), *["--sbatch"][: len(options.sbatch)], *["--gpus"][: options.gpus]]
        )
        raise UserError(f"{given}: for SLURM alone, and --backend is {options.backend}; leave it out or choose slurm")
    return settings


def divide(submission: Submission) -> list[Place]:
    """The hosts of a submission in groups of its nodes. Raises :class:`UserError`."""
    hosts, nodes = submission.hosts, submission.nodes
    if hosts is None:
        return [None]
    if len(hosts) < nodes:
        raise UserError(f"--nodes {nodes}, but there are {len(hosts)} hosts; give a smaller number")
    return [hosts[at : at + nodes] for at in range(0, len(hosts) - nodes + 1, nodes)]


def place_on(submission: Submission, place: Place) -> Submission:
    """A submission on some of its hosts."""
    ranks = submission.ranks if place is None else sum(len(host.slots) for host in place)
    return replace(submission, hosts=place, ranks=ranks)
