"""promptfleet new: a run file for one's own data, after a look at them, with the reason for each setting."""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.options import add_overrides
from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from launcher.first_run.files import Files, Split
    from launcher.first_run.reasons import Advice
    from prompt_tuning.backbone.find import Description
    from prompt_tuning.settings.schema import RunFile

Json = dict[str, Any]

DESCRIPTION = """\
Look at your own data and write the run file of a first run on them.

  promptfleet new tickets --data examples/tickets
  python launcher/run.py --config configs/tickets.json

--data is a folder with files called train, dev (or val, valid, validation) and test, or one file. JSONL, JSON, CSV, TSV,
Parquet, CoNLL's columns and SQuAD's layout are read. Without a dev file a share of the training rows selects.

What is recognised, by what the columns hold:
  classification  texts (or pairs) and a label of few values     text, label        text, text_pair, label
  regression      texts (or pairs) and numbers of many values    text, label
  choice          a text, choices, and the right one             text, choice1, choice2, label    question, choices, answer
  tagging         one word and its tag a line, or lists          words, tags
  span            questions whose answers stand in a context     question, context, answers
  generation      texts and what is written behind them          source, target
Columns of other names are found where only one can be meant; else one sentence says what to decide: --kind, or
--set task.text=COLUMN, task.label=COLUMN and the like. Nothing is guessed without a word: every setting is printed with its
reason, and the file is tried on the data before it is written.
"""
EPILOG = """\
examples:
  promptfleet new reviews --data reviews.csv --set task.text=review --set task.label=stars --kind regression
  promptfleet new names --data data/wnut17 --backbone roberta-base --output names.json
  promptfleet new mine --data data/ --set 'data.files={"train": "a.csv", "dev": "b.csv"}' --set train.epochs=3"""


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "new",
        help="write a run file for your own data, after a look at them",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("name", metavar="NAME", help="what the task is called in results")
    verb.add_argument("--data", required=True, metavar="PATH", help="folder with the files, or the training file")
    verb.add_argument(
        "--kind",
        metavar="KIND",
        help="classification, regression, choice, tagging, span or generation (default: recognised)",
    )
    verb.add_argument(
        "--backbone",
        metavar="PATH",
        help="folder, .gguf file, hub id or package://module/path (default: the quick start's MiniLM; to write texts, Gemma 3 270M"
        " of the extra language-model)",
    )
    verb.add_argument("--output", metavar="FILE", help="run file to write (default: configs/NAME.json)")
    verb.add_argument("--force", action="store_true", help="overwrite it where it is there already")
    add_overrides(verb, "of the run file, also of the task (repeatable, JSON value); it is kept, not chosen")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Look, choose, try, write, and say why."""
    from launcher.first_run import run_file
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.tasks.find import find_task

    output = _output(options)
    given, own = _given(options)
    if "kind" in own:
        find_task({"kind": own["kind"]})
    quiet_libraries()
    files, task, why = _recognised(options, given, own)
    kind = task["kind"]
    base = run_file.base_recipe(output, kind)
    backbone, why_backbone = run_file.choose_backbone(options.backbone or given.pop("backbone.path", None), kind)
    recipe = run_file.recipe_of(base, output, task, backbone, given)
    described = run_file.find_description(recipe.backbone, kind == "generation")
    advice, splits = _advised(files, task, given, described, recipe)
    raw = run_file.make_run_file(options.name, output, base, backbone, task, advice)
    run_file.try_run_file(raw, output, base, described)
    run_file.write_run_file(raw, output)
    whys = {"extends": run_file.why_base(kind), "task": why, "backbone.path": why_backbone}
    _show(splits, raw, whys, advice, output)
    return 0


def _given(options: argparse.Namespace) -> tuple[Json, Json]:
    """What ``--set`` and ``--kind`` decide: settings by dotted key, and those of the task."""
    from prompt_tuning.settings.merge import parse_set

    given: Json = {}
    for key, value in map(parse_set, options.set):
        is_section = isinstance(value, dict) and "." not in key
        given |= {f"{key}.{inner}": own for inner, own in value.items()} if is_section else {key: value}
    if "task" in given:
        raise UserError("--set task: this verb is for data of your own; give its settings, as --set task.label=COLUMN")
    for key, option in (("data.path", "--data"), *([("backbone.path", "--backbone")] if options.backbone else [])):
        if key in given:
            raise UserError(f"--set {key}: {option} says it already; leave one of them out")
    own = {key.removeprefix("task."): value for key, value in given.items() if key.startswith("task.")}
    if options.kind is not None:
        own["kind"] = options.kind
    return given, own


def _output(options: argparse.Namespace) -> Path:
    """The file to write. Raises :class:`UserError` where it is there, or a name will not do."""
    from prompt_tuning.section import FOLDER_NAME
    from prompt_tuning.storage.atomic import expand

    if not re.fullmatch(FOLDER_NAME, options.name) or len(options.name) > 100:
        raise UserError(
            f"{options.name!r} is no name; start with a letter or digit and use only letters, digits, `_`, `.` and `-`"
        )
    output = expand(options.output or f"configs/{options.name}.json")
    if output.is_dir():
        raise UserError(f"--output {output}: a folder; give the file to write")
    if output.exists() and not options.force:
        raise UserError(f"{output} is there already; --force overwrites it, or give another --output")
    return output


def _recognised(options: argparse.Namespace, given: Json, own: Json) -> tuple[Files, Json, str]:
    """The files, the task that they are for, and why."""
    from launcher.first_run.columns import check_header, columns_of
    from launcher.first_run.files import find_files, layout_of, look
    from launcher.first_run.names import KNOWN
    from launcher.first_run.recognise import recognise
    from prompt_tuning.messages import show

    named = given.get("data.files")
    if named is not None and not (isinstance(named, dict) and all(isinstance(name, str) for name in named.values())):
        raise UserError(f'--set data.files: {show(named)} is no object; give {{"train": "a.csv", "dev": "b.csv"}}')
    files = find_files(options.data, named)
    if "train" not in files.by_split:
        raise UserError("data.files: no file for train; name one to learn from")
    train = files.by_split["train"]
    layout = layout_of(train, own.get("kind"))
    found: Json
    if layout != "table":
        kind, why = {
            "columns": ("tagging", f"{train.name} has a word and its tag a line, and empty lines between sentences"),
            "questions": ("span", f"{train.name} has SQuAD's layout"),
        }[layout]
        if own.get("kind", kind) != kind:
            raise UserError(f"{train}: {why}, which is kind {kind} and not {own['kind']}; leave --kind out")
        found = {"kind": kind}
    else:
        columns = columns_of(look(train, None).rows)
        check_header(train, columns, KNOWN | {str(value).lower() for value in own.values()})
        recognised = recognise(columns, own, str(train))
        found = recognised.task
        why = recognised.why + (f"; not used: {', '.join(recognised.unused)}" if recognised.unused else "")
    task = {"kind": found["kind"], "name": options.name, **found, **{key: own[key] for key in own if key != "kind"}}
    return files, task, why


def _advised(
    files: Files, task: Json, given: Json, described: Description | None, recipe: RunFile
) -> tuple[Advice, dict[str, Split]]:
    """All settings with their reasons, and the splits that are used."""
    from launcher.first_run.advice import advise
    from launcher.first_run.files import data_section, look
    from launcher.first_run.reasons import Advice
    from prompt_tuning.data.splits import is_label
    from prompt_tuning.tasks.find import find_task

    # Whether questions have no answer is what the look is for.
    found = find_task({**task, "has_null": True} if task["kind"] == "span" else task)
    advice = Advice(given)
    for key, value in data_section(files, found).items():
        advice.say(f"data.{key}", value, files.why)
    splits = {split: look(file, found) for split, file in files.by_split.items()}
    for split in [split for split in splits if split.startswith("test")]:
        if not any(is_label(found, row.get(found.label_column)) for _, row in splits[split].rows):
            advice.notes.append(
                f"{split}: no row has a label, so nothing is scored on it; promptfleet predict answers its rows"
            )
            del splits[split]
    advise(advice, found, splits, described, recipe)
    for key, value in given.items():
        if key not in advice.settings and not key.startswith("task."):
            advice.say(key, value, "")
    return advice, splits


def _show(splits: dict[str, Split], raw: Json, whys: dict[str, str], advice: Advice, output: Path) -> None:
    """A line a setting with its reason, what should be known of the data, and what to do next."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    terminal = Console()
    console = terminal if terminal.is_terminal else Console(width=1000)  # a pipe takes lines of any length
    counted = ", ".join(f"{name} {split.total} rows ({split.file.name})" for name, split in splits.items())
    console.print(Text(f"{counted}"))
    table = Table(show_edge=False)
    table.add_column("setting", no_wrap=True)
    table.add_column("value", overflow="fold")
    table.add_column("why", overflow="fold")
    task = {key: value for key, value in raw["task"].items() if f"task.{key}" not in advice.settings}
    values = {
        "extends": raw["extends"],
        "task": task,
        "backbone.path": raw["backbone"]["path"],
        **advice.settings,
    }
    for key, why in {**whys, **advice.whys}.items():
        value = values[key]
        shown = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        table.add_row(Text(key), Text(shown), Text(why))
    console.print(table)
    for note in advice.notes:
        console.print(Text(f"note: {note}", style="yellow"), soft_wrap=True)
    console.print(Text(f"{output}: written, and fits the data. Next:"), soft_wrap=True)
    for command in (f"python launcher/run.py --config {output}", f"promptfleet report runs/{output.stem}"):
        console.print(Text(f"  {command}"), soft_wrap=True)
