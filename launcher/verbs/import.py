"""The verb ``import``: another tool's deep prompt as a prompt folder."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from launcher.options import add_overrides
from prompt_tuning.errors import UserError

SECTIONS = ("backbone", "data", "decode")
"""Of a run file, which say what the other tool's files do not."""


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser("import", help="turn a prompt of PEFT, Adapters, P-tuning v2 or ChatGLM into one of ours")
    verb.add_argument("folder", metavar="FOLDER", help="folder that the other tool has written")
    verb.add_argument("--backbone", required=True, metavar="PATH", help="the backbone that it was trained on")
    verb.add_argument(
        "--task", required=True, help="name of the task that it answers, or the object of a run file's `task`, as JSON"
    )
    verb.add_argument("--output", required=True, metavar="DIR", help="prompt folder to write")
    verb.add_argument(
        "--labels",
        nargs="+",
        metavar="NAME",
        help="labels in the order of the head's outputs, where nothing else names them",
    )
    add_overrides(verb, "of data, backbone or decode (repeatable, JSON value), such as data.max_length=256")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Write the prompt, and say what was assumed of it."""
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.prompt.formats import import_prompt
    from prompt_tuning.settings.members import resolve
    from prompt_tuning.settings.merge import parse_set

    sets = [parse_set(item) for item in options.set]
    for key, _ in sets:
        if key.partition(".")[0] not in SECTIONS:
            raise UserError(f"--set {key}: the files say it; only keys of {', '.join(SECTIONS)} are set")
    raw = {"task": _task(options.task), "backbone": {"path": options.backbone}}
    settings = resolve(raw, Path("import"), sets).shared
    quiet_libraries()
    labels = None if options.labels is None else tuple(options.labels)
    assumed = import_prompt(Path(options.folder), settings, labels, Path(options.output))
    for sentence in assumed:
        print(f"assumed: {sentence}", file=sys.stderr)
    print(options.output)
    return 0


def _task(text: str) -> Any:
    if not text.lstrip().startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError as error:
        raise UserError(f"--task {text}: not JSON ({error})") from None
