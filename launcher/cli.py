"""The driver: promptfleet validate | submit | suite | report | tasks | schema | predict | evaluate | export.

``promptfleet --help`` and ``validate`` do not import torch.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

from launcher.backends import backend_names
from launcher.environment import share_processor
from prompt_tuning.errors import UserError

DESCRIPTION = """\
Deep prompts (P-tuning v2) for frozen transformer backbones.

Training is started by a launcher that you know, on as many ranks as you like:
  deepspeed launcher/run.py --config configs/quickstart.json
  torchrun --nproc-per-node 2 launcher/run.py --config configs/boolq.json

What comes before and after it:"""

EXAMPLES = """\
examples:
  promptfleet validate configs/*.json
  promptfleet submit configs/boolq.json --backend slurm --nodes 2 --ranks 16 --gpus --time 4:00:00 --dry-run
  promptfleet suite configs/boolq.json configs/copa.json --seeds 3 --output runs/suite
  promptfleet report runs/suite
  promptfleet predict --prompt runs/quickstart/members/tickets-deep_prompt-seed11/prompt --input tickets.jsonl
  promptfleet evaluate --prompt runs/boolq/members/boolq-deep_prompt-seed11/prompt --task boolq --data data/BoolQ
  promptfleet export runs/boolq --output exported/"""


def parser() -> argparse.ArgumentParser:
    """The driver's options."""
    options = argparse.ArgumentParser(
        prog="promptfleet",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = options.add_subparsers(dest="verb", required=True, metavar="VERB")

    verb = verbs.add_parser("validate", help="check run files and say what each would train")
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
        "--backend", default="local", choices=backend_names(), help="what starts the ranks (default: local)"
    )
    verb.add_argument("--hostfile", metavar="FILE", help="hosts, one `name slots=N` a line (pdsh, mpi)")
    verb.add_argument(
        "--include", default="", metavar="FILTER", help="only these hosts, as name or name:slot,slot@name"
    )
    verb.add_argument("--exclude", default="", metavar="FILTER", help="all hosts but these")
    verb.add_argument("--ranks", type=_count, metavar="N", help="ranks (default: 1, or the hostfile's slots)")
    verb.add_argument("--nodes", type=_count, default=1, metavar="N", help="nodes of a SLURM job (default: 1)")
    verb.add_argument("--time", metavar="LIMIT", help="time limit of a SLURM job, such as 4:00:00")
    verb.add_argument("--partition", help="partition of a SLURM job")
    verb.add_argument("--account", help="account of a SLURM job")
    verb.add_argument("--gpus", action="store_true", help="ask SLURM for a GPU a rank")
    verb.add_argument(
        "--master-addr",
        metavar="HOST",
        help="where the ranks meet, if the first host has another name for ssh or SLURM",
    )
    verb.add_argument(
        "--export",
        action="append",
        default=[],
        metavar="NAME",
        help="environment variable that the ranks need (repeatable)",
    )
    verb.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key (repeatable)"
    )
    verb.add_argument("--output", metavar="DIR", help="run folder (default: runs/<name of the run>)")
    verb.add_argument("--dry-run", action="store_true", help="print what would run, and stop")

    verb = verbs.add_parser(
        "suite",
        help="train many run files: grouped into fleets by backbone, continued where they were left",
        description="Train many run files, grouped into fleets by backbone. The same command again does what is missing.",
    )
    verb.add_argument("configs", nargs="+", metavar="CONFIG")
    verb.add_argument(
        "--set", action="append", default=[], metavar="SECTION.KEY=VALUE", help="override a key of all files"
    )
    verb.add_argument("--seeds", type=_count, metavar="N", help="train N seeds of each member, counted from its own")
    verb.add_argument("--output", default="runs/suite", metavar="DIR", help="folder of the suite (default: runs/suite)")
    verb.add_argument("--no-baselines", action="store_true", help="do not add a head alone for each task")
    verb.add_argument("--fleet-size", type=_count, default=8, metavar="N", help="most members of a fleet (default: 8)")
    verb.add_argument(
        "--ranks", type=_count, default=1, metavar="N", help="ranks of this machine for a fleet (default: 1)"
    )
    verb.add_argument("--dry-run", action="store_true", help="write the fleets' run files and say what would run")

    verb = verbs.add_parser("report", help="tables and one HTML page of finished members")
    verb.add_argument("runs", nargs="+", metavar="RUN", help="run folders, or folders that hold several")
    verb.add_argument(
        "--output", metavar="DIR", help="folder for report.md, report.csv and report.html (default: the first RUN)"
    )

    verbs.add_parser("tasks", help="print the page of all tasks: kinds, metrics, templates, and where their data lie")

    verb = verbs.add_parser("schema", help="print the JSON Schema of run files, for editors")
    verb.add_argument("--markdown", action="store_true", help="print the reference page instead")

    verb = verbs.add_parser("predict", help="labels and probabilities for the rows of a file")
    _prompt_options(verb)
    verb.add_argument("--input", required=True, metavar="FILE", help="JSONL, CSV or Parquet with the task's columns")
    verb.add_argument("--output", metavar="FILE", help="JSONL to write (default: standard output)")

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
        verbs = {verb.__name__: verb for verb in (validate, suite, report, tasks, schema)}
        if options.verb in ("predict", "evaluate", "export"):
            module = importlib.import_module("launcher.prompts")
        elif options.verb == "submit":
            module = importlib.import_module("launcher.submit")
        else:
            return verbs[options.verb](options)
        return getattr(module, options.verb)(options)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
    except OSError as error:
        print(f"error: {error.filename or 'input or output failed'}: {error.strerror or error}", file=sys.stderr)
    return 1


def validate(options: argparse.Namespace) -> int:
    """Check every file; report all that are wrong."""
    from prompt_tuning.runfile import load_run

    failed = 0
    for path in options.configs:
        try:
            run = load_run(path, options.set)
        except UserError as error:
            failed += 1
            print(f"error: {error}", file=sys.stderr)
            continue
        methods = sorted({member.config.method for member in run.members})
        print(f"{path}: ok, {len(run.members)} member(s), {', '.join(methods)}, on {run.shared.backbone.path}")
    return 1 if failed else 0


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number of at least 1")
    return int(text)


def suite(options: argparse.Namespace) -> int:
    """Run every member that is not done yet."""
    from launcher.suite import find_jobs, run_suite

    jobs = find_jobs(options.configs, options.set, options.seeds, not options.no_baselines)
    settings = {"most": options.fleet_size, "ranks": options.ranks, "dry_run": options.dry_run}
    failed = run_suite(jobs, Path(options.output), **settings)
    if not options.dry_run:
        print(f"promptfleet report {options.output}   shows the scores")
    return 1 if failed else 0


def report(options: argparse.Namespace) -> int:
    """Print the table, write it as Markdown and CSV, and the page."""
    from launcher.page import write_page
    from launcher.report import as_csv, as_markdown, print_report, read_groups
    from prompt_tuning.files import make_folder, write_text

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
    from launcher.tasks import tasks_page

    sys.stdout.write(tasks_page())
    return 0


def schema(options: argparse.Namespace) -> int:
    """Print the JSON Schema, or the reference page."""
    from launcher.reference import json_schema, markdown

    sys.stdout.write(markdown() if options.markdown else json_schema())
    return 0


if __name__ == "__main__":
    sys.exit(main())
