"""The driver's verb that starts a run file on many ranks."""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from launcher.backends import Submission, render, start
from launcher.environment import variables
from launcher.hostfile import check_host, read_hostfile, select
from prompt_tuning.errors import UserError
from prompt_tuning.problems import show
from prompt_tuning.runfile import load_run


def submit(options: argparse.Namespace) -> int:
    """Start a run file by a backend, or say what would be started."""
    run = load_run(options.config, options.set, options.output)
    hosts, hostfile = None, None
    if options.hostfile is not None:
        hostfile = Path(options.hostfile)
        hosts = tuple(select(read_hostfile(hostfile), options.include, options.exclude))
        slots = sum(len(host.slots) for host in hosts)
        if options.ranks not in (None, slots):
            raise UserError(
                f"--ranks {options.ranks}, but the hosts have {slots} slots; leave it out or filter the hosts"
            )
    elif options.include or options.exclude:
        raise UserError("--include and --exclude choose among the hosts of --hostfile; give one")
    if options.master_addr is not None:
        check_host(options.master_addr, "--master-addr")
    wrong = [name for name in options.export if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name)]
    if wrong:
        raise UserError(f"--export {show(wrong[0])}: not the name of an environment variable")
    submission = Submission(
        Path(options.config),
        run.output,
        tuple(options.set),
        hosts,
        hostfile,
        options.ranks or (sum(len(host.slots) for host in hosts) if hosts else 1),
        options.nodes,
        options.time,
        options.partition,
        options.account,
        options.gpus,
        options.master_addr,
        variables(options.export),
    )
    rendered = render(options.backend, submission)
    if options.dry_run:
        sys.stdout.write(rendered.describe())
        return 0
    return start(rendered)
