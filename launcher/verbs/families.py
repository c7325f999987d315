"""The verb ``families``: the page of all backbone families."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "families", help="print the page of all backbone families: model types, poolings, and what cannot be done"
    )
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Print what families there are."""
    from launcher.pages.families import families_page

    sys.stdout.write(families_page())
    return 0
