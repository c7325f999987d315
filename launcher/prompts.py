"""What the verbs share: overrides of a run file; an exported prompt and its backbone."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from prompt_tuning.predict import AttachedPrompts
    from prompt_tuning.prompt.export import ExportedPrompt


def add_overrides(verb: argparse.ArgumentParser, what: str = "(repeatable)") -> None:
    """The option ``--set``."""
    verb.add_argument("--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help=f"override a key {what}")


def add_prompt(verb: argparse.ArgumentParser) -> None:
    """The options that name a prompt and its backbone."""
    verb.add_argument("--prompt", required=True, metavar="DIR", help="exported prompt (a folder with prompt.json)")
    verb.add_argument("--backbone", metavar="PATH", help="the prompt's backbone, where it is not at its recorded path")


def attach_prompt(exported: ExportedPrompt, backbone: str | None) -> AttachedPrompts:
    """A prompt on its own backbone, or on another path to it, without the libraries' progress bars."""
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.predict import attach

    quiet_libraries()
    return attach(exported, backbone)
