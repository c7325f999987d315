"""The driver's verb that starts a run file on many ranks."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from launcher.backends import render, start
from launcher.placement import submission
from prompt_tuning.errors import UserError
from prompt_tuning.runfile import load_run


def submit(options: argparse.Namespace) -> int:
    """Start a run file by a backend, or say what would be started."""
    run = load_run(options.config, options.set, options.output)
    wanted = submission(options, Path(options.config), run.output, tuple(options.set))
    slots = len(wanted.places)
    if wanted.hosts is not None and wanted.ranks != slots:
        raise UserError(f"--ranks {wanted.ranks}, but the hosts have {slots} slots; leave it out or filter the hosts")
    rendered = render(options.backend, wanted)
    if options.dry_run:
        sys.stdout.write(rendered.describe())
        return 0
    return start(rendered)
