"""The verb ``tasks``: the page of all tasks."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "tasks", help="print the page of all tasks: kinds, metrics, templates, and where their data lie"
    )
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Print what tasks there are."""
    from launcher.pages.tasks import tasks_page

    sys.stdout.write(tasks_page())
    return 0
