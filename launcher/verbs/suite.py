"""The verb ``suite``: many run files, trained in fleets and continued where they were left."""

from __future__ import annotations

import argparse
from typing import Any

from launcher.clusters.placement import add_placement, count
from launcher.options import add_overrides


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "suite",
        help="train many run files: grouped into fleets by backbone, continued where they were left",
        description="Train many run files, grouped into fleets by backbone: on this machine, on the free"
        " hosts of a hostfile, or as one SLURM array. The same command again does what is missing.",
    )
    verb.add_argument("configs", nargs="+", metavar="CONFIG")
    add_overrides(verb, "of all files")
    verb.add_argument("--seeds", type=count, metavar="N", help="train N seeds of each member, counted from its own")
    verb.add_argument("--output", default="runs/suite", metavar="DIR", help="folder of the suite (default: runs/suite)")
    verb.add_argument("--no-baselines", action="store_true", help="do not add a head alone for each task")
    verb.add_argument("--fleet-size", type=count, default=8, metavar="N", help="most members of a fleet (default: 8)")
    verb.add_argument(
        "--retries",
        type=int,
        default=1,
        metavar="N",
        help="times a fleet is started again that ended without getting further (default: 1)",
    )
    verb.add_argument("--dry-run", action="store_true", help="write the fleets' run files and say what would run")
    add_placement(verb)
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Plan the fleets, train what is missing, and report."""
    from launcher.runs.dispatch import suite

    return suite(options)
