"""The driver: promptfleet validate | submit | suite | status | report | tasks | schema | predict | evaluate | export.

``promptfleet --help`` and ``validate`` do not import torch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from launcher.clusters.placement import add_placement, count
from launcher.ranks.environment import share_processor
from launcher.ranks.stop import Stopped
from prompt_tuning.errors import UserError

DESCRIPTION = """\
Deep prompts (P-tuning v2) for frozen transformer backbones.

Training is started by a launcher that you know, on as many ranks as you like:
  deepspeed launcher/run.py --config configs/quickstart.json
  torchrun --nproc-per-node 2 launcher/run.py --config configs/boolq.json

What comes before and after it:"""

EXAMPLES = """\
examples:
  promptfleet validate my.json
  promptfleet validate --no-data configs/*.json
  promptfleet submit configs/boolq.json --backend slurm --nodes 2 --ranks 16 --gpus --time 4:00:00 --dry-run
  promptfleet suite configs/boolq.json configs/copa.json --seeds 3 --output runs/suite
  promptfleet suite configs/*_minilm.json --backend slurm --time 4:00:00 --output runs/suite
  promptfleet status runs/suite
  promptfleet report runs/suite
  promptfleet predict --prompt runs/quickstart/members/tickets-deep_prompt-seed11/prompt --input tickets.jsonl
  promptfleet evaluate --prompt runs/boolq/members/boolq-deep_prompt-seed11/prompt --task boolq --data data/BoolQ
  promptfleet export runs/boolq --output exported/"""


MODULES = {
    "submit": "verbs.submit",
    "suite": "runs.dispatch",
    "validate": "verbs.validate",
    "status": "verbs.status",
    "predict": "verbs.predict",
    "evaluate": "verbs.evaluate",
    "export": "verbs.export",
}
"""Where the larger verbs are; imported when called, some of them with torch."""


def parser() -> argparse.ArgumentParser:
    """The driver's options."""
    options = argparse.ArgumentParser(
        prog="promptfleet",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = options.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser(
        "validate",
        help="check run files, their data and their backbones' files, and say what each would train",
        description="Check run files. Reads all rows (columns, labels) and the backbone's config and tokenizer, tokenises the"
        " first and last rows, and loads no weights.",
    )
    verb.add_argument("--no-data", action="store_true", help="look at the run files alone: no data, no backbone")
    verb.add_argument("configs", nargs="+", metavar="CONFIG")
    verb.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key (repeatable)"
    )

    verb = verbs.add_parser(
        "submit",
        help="start a run file on many ranks: here, over a hostfile, by MPI or by SLURM",
        description="Start a run file on many ranks. --dry-run prints exactly what would run.",
    )
    verb.add_argument("config", metavar="CONFIG")
    verb.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key (repeatable)"
    )
    verb.add_argument("--output", metavar="DIR", help="run folder (default: runs/<name of the run>)")
    choice = verb.add_mutually_exclusive_group()
    choice.add_argument("--resume", action="store_true", help="continue an unfinished run; an error if there is none")
    choice.add_argument(
        "--fresh", action="store_true", help="start anew; an older run folder is kept under another name"
    )
    verb.add_argument("--dry-run", action="store_true", help="print what would run, and stop")
    add_placement(verb)

    verb = verbs.add_parser(
        "suite",
        help="train many run files: grouped into fleets by backbone, continued where they were left",
        description="Train many run files, grouped into fleets by backbone: on this machine, on the free"
        " hosts of a hostfile, or as one SLURM array. The same command again does what is missing.",
    )
    verb.add_argument("configs", nargs="+", metavar="CONFIG")
    verb.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key of all files"
    )
    verb.add_argument("--seeds", type=count, metavar="N", help="train N seeds of each member, counted from its own")
    verb.add_argument("--output", default="runs/suite", metavar="DIR", help="folder of the suite (default: runs/suite)")
    verb.add_argument("--no-baselines", action="store_true", help="do not add a head alone for each task")
    verb.add_argument("--fleet-size", type=count, default=8, metavar="N", help="most members of a fleet (default: 8)")
    verb.add_argument(
        "--retries",
        type=int,
        default=1,
        metavar="N",
        help="times a fleet is started again that ended without getting further (default: 1)",
    )
    verb.add_argument("--dry-run", action="store_true", help="write the fleets' run files and say what would run")
    add_placement(verb)

    verb = verbs.add_parser("status", help="how far the runs of some folders are, and where they run")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or a suite's folder")

    verb = verbs.add_parser("report", help="tables and one HTML page of finished members")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders that hold several")
    verb.add_argument(
        "--output", metavar="DIR", help="folder for report.md, report.csv and report.html (default: the first RUN)"
    )

    verbs.add_parser("tasks", help="print the page of all tasks: kinds, metrics, templates, and where their data lie")

    verb = verbs.add_parser("schema", help="print the JSON Schema of run files, for editors")
    verb.add_argument("--markdown", action="store_true", help="print the reference page instead")

    verb = verbs.add_parser(
        "predict",
        help="labels and probabilities for the rows of a file",
        description="Write every row of a file as a line of JSON, with what the prompt answers behind its own columns:"
        " label and probabilities, tags, value, or answer. A row's own columns are never replaced: where any row of the"
        " input has a column of that name, the prediction is called predicted_<name> in all of them. An output file"
        " appears once it is complete; until then its lines gather in <output>.partial, where the same command continues.",
    )
    _prompt_options(verb)
    verb.add_argument(
        "--input",
        required=True,
        metavar="FILE",
        help="JSONL, CSV, TSV, Parquet, or any file that the task trains on; - for standard input",
    )
    verb.add_argument(
        "--format",
        metavar="SUFFIX",
        help="read the input as a file of this suffix, such as csv or txt (default: its own; jsonl for a pipe)",
    )
    verb.add_argument("--output", default="-", metavar="FILE", help="JSONL to write (default: -, standard output)")

    verb = verbs.add_parser("evaluate", help="metrics of a prompt on labelled data")
    _prompt_options(verb)
    verb.add_argument("--task", help="task (default: the prompt's own)")
    verb.add_argument("--data", metavar="PATH", help="data folder or hub id (default: the task's hub data set)")
    verb.add_argument("--split", default="dev", help="train, dev, test, or an extra one such as test/de (default: dev)")

    verb = verbs.add_parser(
        "export", help="write the best prompts of a run, finished or not, from its newest checkpoint"
    )
    verb.add_argument("run", metavar="RUN", help="run folder, for example runs/quickstart")
    verb.add_argument("--member", action="append", help="only this member (repeatable)")
    verb.add_argument("--output", required=True, metavar="DIR", help="folder that gets one prompt folder a member")
    return options


def _prompt_options(verb: argparse.ArgumentParser) -> None:
    verb.add_argument("--prompt", required=True, metavar="DIR", help="exported prompt (a folder with prompt.json)")
    verb.add_argument("--backbone", metavar="PATH", help="the prompt's backbone, where it is not at its recorded path")


def main(arguments: list[str] | None = None) -> int:
    """Run one verb; returns the exit code."""
    options = parser().parse_args(arguments)
    share_processor()
    try:
        verbs = {verb.__name__: verb for verb in (report, tasks, schema)}
        if options.verb in verbs:
            return verbs[options.verb](options)
        module = importlib.import_module(f"launcher.{MODULES[options.verb]}")
        return int(getattr(module, options.verb)(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'input or output failed'}: {error.strerror or error}", file=sys.stderr)
    except (KeyboardInterrupt, Stopped) as request:
        print("interrupted", file=sys.stderr)
        return request.exit_code if isinstance(request, Stopped) else 130
    return 1


def report(options: argparse.Namespace) -> int:
    """Print the table, write it as Markdown and CSV, and the page."""
    from launcher.pages.html import write_page
    from launcher.pages.scores import as_csv, as_markdown, print_report, read_groups
    from prompt_tuning.storage.atomic import make_folder, write_text

    folders = [Path(run) for run in options.runs]
    print_report(folders, options.runs[0])
    groups, output = read_groups(folders), Path(options.output or options.runs[0])
    make_folder(output)
    title = f"{output.resolve().name}: {len(groups)} recipes on {len({group.task for group in groups})} tasks"
    files = {"report.md": as_markdown(groups), "report.csv": as_csv(groups), "report.html": write_page(groups, title)}
    for name, text in files.items():
        write_text(output / name, text)
        print(output / name)
    return 0


def tasks(options: argparse.Namespace) -> int:
    """Print what tasks there are."""
    from launcher.pages.tasks import tasks_page

    sys.stdout.write(tasks_page())
    return 0


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema, or the reference page."""
    from launcher.pages.run_file import json_schema, markdown

    sys.stdout.write(markdown() if options.markdown else json_schema())
    return 0


if __name__ == "__main__":
    sys.exit(main())
