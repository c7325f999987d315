"""The driver: promptfleet validate | suite | report | tasks | schema | predict | evaluate | export.

``promptfleet --help`` and ``validate`` do not import torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

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
        verbs = (validate, suite, report, tasks, schema, predict, evaluate, export)
        return {verb.__name__: verb for verb in verbs}[options.verb](options)
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


def predict(options: argparse.Namespace) -> int:
    """Read rows, write each with its label and probabilities."""
    from prompt_tuning.files import write_text
    from prompt_tuning.sources import read_rows

    rows = [row for _, row in read_rows(Path(options.input))]
    model = _attach(options)
    predictions = model.predict(rows)
    lines = [
        json.dumps({**row, **prediction}, ensure_ascii=False, default=str)
        for row, prediction in zip(rows, predictions, strict=True)
    ]
    text = "".join(f"{line}\n" for line in lines)
    if options.output:
        write_text(Path(options.output), text)
    else:
        sys.stdout.write(text)
    return 0


def evaluate(options: argparse.Namespace) -> int:
    """Print the metrics of a prompt as JSON."""
    from prompt_tuning.data import load_task_data
    from prompt_tuning.evaluate import score
    from prompt_tuning.sources import extra_splits
    from prompt_tuning.tasks import find_task

    model = _attach(options)
    exported = model.prompts[0]
    task = find_task(options.task) if options.task else exported.task
    if task.kind != exported.task.kind or task.labels not in (None, exported.labels):
        raise UserError(
            f"--task {options.task}: the prompt answers {exported.task.name} ({', '.join(exported.labels)}),"
            f" not {task.name}; leave --task out or give the prompt's own"
        )
    if options.split not in ("train", "dev", "test", *extra_splits(task, options.data)):
        names = ", ".join(("train", "dev", "test", *extra_splits(task, options.data)))
        raise UserError(f"--split {options.split}: not a split of {task.name} there; choose {names}")
    template = exported.encoding.template if task.name == exported.task.name else None
    data = load_task_data(
        task,
        model.backbone.tokenizer,
        options.data,
        replace(exported.encoding, template=template),
        splits=(options.split,),
        labels=exported.labels,
    )
    if options.split not in data.splits:
        raise UserError(f"the {options.split} split of {options.data or task.name} is missing or has no labels")
    features = data.splits[options.split]
    (outputs,) = model.outputs([0], [features])
    metrics, loss = score(task, features, outputs, exported.labels)
    result: dict[str, Any] = {"task": task.name, "split": options.split, "examples": len(features)}
    print(json.dumps({**result, "metrics": metrics, "loss": loss}, indent=2))
    return 0


def export(options: argparse.Namespace) -> int:
    """Write members' best prompts out of the newest checkpoint."""
    from launcher.environment import quiet_libraries
    from model_parallel.grid import Grid, local_device
    from prompt_tuning import checkpoint
    from prompt_tuning.export import write_prompt
    from prompt_tuning.runfile import load_recorded_run
    from prompt_tuning.trainer import build_fleet

    quiet_libraries()
    run = load_recorded_run(Path(options.run))
    path = checkpoint.newest(run.output / "checkpoints")
    if path is None:
        raise UserError(f"{options.run}: no usable checkpoint yet; wait for the first evaluation")
    fleet = build_fleet(run, Grid(device=local_device(0)))
    checkpoint.load(path, fleet, run.experiment())
    names = options.member or [member.name for member in fleet.members]
    unknown = set(names) - {member.name for member in fleet.members}
    if unknown:
        known = ", ".join(member.name for member in fleet.members)
        raise UserError(f"--member {sorted(unknown)[0]}: not in {options.run}; its members: {known}")
    for member in fleet.members:
        if member.name not in names:
            continue
        if member.best is None:
            print(f"{member.name}: not evaluated yet, nothing to export", file=sys.stderr)
            continue
        member.part()
        member.load_tensors(member.best.tensors)
        folder = Path(options.output) / member.name
        write_prompt(folder, member, {"step": member.best.step, "metrics": member.best.metrics})
        print(folder)
    return 0


def _attach(options: argparse.Namespace) -> Any:
    from launcher.environment import quiet_libraries
    from prompt_tuning.export import load_prompt
    from prompt_tuning.predict import attach

    prompt = load_prompt(options.prompt)
    quiet_libraries()
    return attach(prompt, options.backbone)


if __name__ == "__main__":
    sys.exit(main())
