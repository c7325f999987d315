"""The verb ``join``: documents' prompts behind each other, as one."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from prompt_tuning.errors import UserError


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "join",
        help="put prompts of documents behind each other, without training again",
        description="Write one prompt that holds the keys and values of several, in the order given, for questions about any of"
        " their documents. They must belong to one backbone.",
    )
    verb.add_argument(
        "prompts",
        nargs="+",
        metavar="PROMPT",
        help="exported prompts of kind 'document' (two or more): folders or hub ids",
    )
    verb.add_argument("--output", required=True, metavar="DIR", help="folder that becomes the joined prompt")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Write the joined prompt."""
    from prompt_tuning.prompt.export import load_prompt, write_prompt
    from prompt_tuning.prompt.join import join_prompts

    if len(options.prompts) < 2:
        raise UserError(f"join {options.prompts[0]}: there is nothing to join it with; give two prompts or more")
    output = Path(options.output)
    if output.exists():
        raise UserError(f"--output {output} is there already; name another folder, or move it away")
    prompt, manifest = join_prompts([load_prompt(folder) for folder in options.prompts])
    write_prompt(output, prompt, manifest)
    print(f"{output}: {manifest['length']} tokens of {len(options.prompts)} prompts")
    return 0
