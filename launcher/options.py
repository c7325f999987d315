"""Options that several commands share."""

from __future__ import annotations

import argparse


def add_overrides(parser: argparse.ArgumentParser, what: str = "(repeatable, JSON value)") -> None:
    """The option ``--set``."""
    parser.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help=f"override a key {what}"
    )


def add_folder(parser: argparse.ArgumentParser) -> None:
    """The options that say where a run is written, and what becomes of one that is there."""
    parser.add_argument("--output", metavar="DIR", help="run folder (default: runs/<name of the run>)")
    choice = parser.add_mutually_exclusive_group()
    choice.add_argument("--resume", action="store_true", help="continue an unfinished run; an error if there is none")
    choice.add_argument(
        "--fresh", action="store_true", help="start anew; an older run folder is kept under another name"
    )


def add_prompt(parser: argparse.ArgumentParser) -> None:
    """The options that name a prompt and its backbone."""
    parser.add_argument("--prompt", required=True, metavar="DIR", help="exported prompt (a folder with prompt.json)")
    parser.add_argument(
        "--backbone", metavar="PATH", help="the prompt's backbone, where it is not at its recorded path"
    )
