"""Options that several commands share."""

from __future__ import annotations

import argparse
import math
import re

from prompt_tuning.errors import UserError

_PREFIXES: dict[str, int] = {
    "": 1,
    **{f"{p}{i}": (1024 if i else 1000) ** n for n, p in enumerate("KMGTP", 1) for i in ("", "i")},
}


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
    parser.add_argument(
        "--prompt",
        required=True,
        metavar="DIR",
        help="exported prompt: a folder with prompt.json, or a hub id, owner/name[@revision]",
    )
    parser.add_argument(
        "--backbone", metavar="PATH", help="the prompt's backbone, where it is not at its recorded path"
    )


def quantity(text: str | None, option: str) -> float | None:
    """Bytes, or bytes or operations a second, of "24GiB", "100GB/s", "400Gb/s" (bits) or "400TFLOP/s". Raises :class:`UserError`."""
    if text is None:
        return None
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([KMGTP]?i?)(B|b|FLOP)?(/s)?\s*", text.replace("k", "K"))
    counts_operations, is_memory = option == "matrix_rate", option.endswith("memory")
    if (
        match is None
        or match[2] not in _PREFIXES
        or not 0 < float(match[1]) * _PREFIXES[match[2]] < math.inf
        or (match[3] is not None and (match[3] == "FLOP") != counts_operations)
        or (match[4] is not None and is_memory)
    ):
        example = "400TFLOP/s" if counts_operations else "24GiB" if is_memory else "100GB/s (bytes) or 400Gb/s (bits)"
        raise UserError(f"--{option.replace('_', '-')} {text}: give a number with a unit, such as {example}")
    return float(match[1]) * _PREFIXES[match[2]] / (8 if match[3] == "b" else 1)
