"""The verb ``schema``: what a run file may hold, for editors or for people."""

from __future__ import annotations

import argparse
import sys
from typing import Any


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser("schema", help="print the JSON Schema of run files, for editors")
    verb.add_argument("--markdown", action="store_true", help="print the reference page instead")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Print the JSON Schema, or the reference page."""
    from launcher.pages.run_file import json_schema, markdown

    sys.stdout.write(markdown() if options.markdown else json_schema())
    return 0
