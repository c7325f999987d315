"""What a shell completes behind `promptfleet`: verbs, options, their choices, files and folders."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

FOLDERS = ("DIR", "FOLDER", "PROMPT", "RUN")
FILES = ("CONFIG", "FILE", "PATH")
"""Metavars of arguments that name folders, and files (or folders)."""
SHELLS = ("bash", "zsh", "tcsh")


class PrintCompletion(argparse.Action):
    """Prints the script that makes a shell complete, and ends."""

    def __call__(self, parser: argparse.ArgumentParser, namespace: Any, values: Any, option: str | None = None) -> None:
        """Print the script for the shell ``values``."""
        try:
            import shtab
        except ImportError:
            parser.error(f"{option} needs an extra package: pip install 'promptfleet[completion]'")
        for action in _actions(parser):
            kinds = {**dict.fromkeys(FOLDERS, shtab.DIRECTORY), **dict.fromkeys(FILES, shtab.FILE)}
            if isinstance(action.metavar, str) and action.metavar in kinds:
                action.complete = kinds[action.metavar]  # type: ignore[attr-defined]
        print(shtab.complete(parser, values))
        parser.exit()


def add_completion(options: argparse.ArgumentParser) -> None:
    """Give the driver its option."""
    options.add_argument(
        "--print-completion",
        choices=SHELLS,
        action=PrintCompletion,
        help="print what makes this shell complete verbs, options and files, and stop (extra `completion`)",
    )


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """All arguments of a parser and its verbs."""
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            for verb in action.choices.values():
                yield from _actions(verb)
