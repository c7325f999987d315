"""promptfleet validate: is a run file right, and are data and backbone there, before it costs anything."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from launcher.options import add_overrides
from prompt_tuning.errors import UserError
from prompt_tuning.settings.members import load_run
from prompt_tuning.settings.run import Run


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "validate",
        help="check run files, their data and their backbones' files, and say what each would train",
        description="Check run files. Reads all rows (columns, labels) and the backbone's config and tokenizer, tokenises the"
        " first and last rows, and loads no weights.",
    )
    verb.add_argument("--no-data", action="store_true", help="look at the run files alone: no data, no backbone")
    verb.add_argument("configs", nargs="+", metavar="CONFIG")
    add_overrides(verb)
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Check every file; report all that are wrong."""
    failed = 0
    for path in options.configs:
        try:
            run = load_run(path, options.set)
            found = [] if options.no_data else _look(run)
        except UserError as error:
            failed += 1
            print(f"error: {error}" if str(path) in str(error) else f"error: {path}: {error}", file=sys.stderr)
            continue
        methods = sorted({member.config.method for member in run.members})
        print(f"{path}: ok, {len(run.members)} member(s), {', '.join(methods)}, on {run.shared.backbone.path}")
        for line in found:
            print(f"  {line}")
    return 1 if failed else 0


def _look(run: Run) -> list[str]:
    """What is there of a run's data and backbone, a line a data set. Raises :class:`UserError` naming all that is wrong."""
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.backbone.find import describe_backbone
    from prompt_tuning.data.load import check_data
    from prompt_tuning.prompt.build import check_lengths
    from prompt_tuning.tasks.find import find_task

    quiet_libraries()
    lines: dict[str, str] = {}
    problems: list[str] = []
    described = None
    try:
        described = describe_backbone(run.shared.backbone, run.writes)
    except UserError as error:
        problems.append(str(error))
    for member in run.members:
        config = member.config
        key = repr((config.task, config.data))
        try:
            if described is not None:
                check_lengths(config, described)
            if key not in lines:
                lines[key] = ""
                if described is None:
                    from prompt_tuning.data.load import chosen_rows

                    chosen_rows(config)
                else:
                    lines[key] = (
                        f"{find_task(config.task).name}: {check_data(config, described.tokenizer, described.has_encoder)}"
                    )
        except UserError as error:
            if str(error) not in problems:
                problems.append(str(error))
    if problems:
        raise UserError(
            "; ".join(problems) if len(problems) == 1 else "\n  - ".join([f"{len(problems)} problems", *problems])
        )
    return list(lines.values())
