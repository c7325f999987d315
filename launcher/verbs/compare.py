"""The verb ``compare``: several methods on one task, each with its own best rate, and how sure their differences are."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.clusters.placement import add_placement, count
from launcher.options import add_overrides
from launcher.ranks.exit_codes import STOPPED
from prompt_tuning.errors import UserError
from prompt_tuning.messages import show
from prompt_tuning.storage.atomic import make_folder
from prompt_tuning.storage.lock import locked

if TYPE_CHECKING:
    from launcher.runs.comparison import Plan
    from launcher.runs.plan import FleetJob

DESCRIPTION = """\
Compare methods on the task of a run file, everything else as the file has it. For each method:
  1. some steps of one member alone say how long a step takes and how much memory (measure-<method>);
  2. N learning rates are tried, the same number for each method, all as long as the final runs; the best one is
     selected on training rows that are held out (data.held_out, 0.1 unless the file says otherwise; with
     --set data.held_out=0 the task's own dev split selects). The test split takes no part (search-<method>);
  3. that rate trains under new seeds, and the test split is scored (seeds-<method>).
The table has mean and spread over the seeds, the difference to the first method with a 95 % interval (a paired
bootstrap over test examples and seeds), trained parameters, seconds and memory. All runs are plain run files in the
output folder, beside their results: `python launcher/run.py --config <output>/seeds-head.json --output DIR` repeats
one. The same command continues what was stopped, and may add seeds and methods."""

EXAMPLES = """\
examples:
  promptfleet compare configs/quickstart.json
  promptfleet compare configs/wnut17_minilm.json --methods deep_prompt,head,lora,full --seeds 3 --equal seconds
  promptfleet compare my.json --methods deep_prompt,lora --trials 6 --rates lora=5e-5:5e-3 --output runs/mine"""


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "compare",
        help="compare methods on one task, each with its own best rate, with intervals",
        description=DESCRIPTION,
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verb.add_argument("config", metavar="CONFIG", help="run file; its fleet is left out")
    add_overrides(verb)
    verb.add_argument(
        "--methods",
        default="deep_prompt,head,lora,full",
        metavar="A,B,...",
        help="the first is what the others are compared with (default: deep_prompt,head,lora,full)",
    )
    verb.add_argument("--seeds", type=count, default=3, metavar="N", help="seeds of the final runs (default: 3)")
    verb.add_argument("--trials", type=count, default=5, metavar="N", help="learning rates tried of each (default: 5)")
    verb.add_argument(
        "--equal",
        choices=("epochs", "seconds"),
        default="epochs",
        help="what all get the same of: the file's epochs (or steps), or the seconds that the first takes for them",
    )
    verb.add_argument(
        "--rates",
        action="append",
        default=[],
        metavar="METHOD=LOW:HIGH",
        help="learning rates among which a method's are tried (repeatable; default: two decades, docs/compare.md)",
    )
    verb.add_argument("--output", metavar="DIR", help="folder of the comparison (default: runs/compare-<name>)")
    add_placement(verb)
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Run what is missing of a comparison, and show it; the exit code."""
    from launcher.runs.comparison import begin, read_plan
    from launcher.runs.stages import run_all

    if options.backend == "slurm":
        raise UserError("--backend slurm: compare waits for its runs; start it inside an allocation, with local or mpi")
    methods = _methods(options.methods)
    plan = read_plan(
        Path(options.config),
        options.set,
        methods,
        options.seeds,
        options.trials,
        options.equal,
        _spaces(options.rates, methods),
        None if options.output is None else Path(options.output),
    )
    make_folder(plan.output)
    with locked(plan.output):
        begin(plan)
        for title, jobs in _stages(plan):
            if not run_all(title, jobs, options, plan.output):
                print("asked to stop; the same command continues", file=sys.stderr)
                return STOPPED
        _show(plan)
    return 0


def _stages(plan: Plan) -> Iterator[tuple[str, list[FleetJob]]]:
    """What is to be run, one stage after the other: each depends on what the ones before have found."""
    from launcher.runs.comparison import chosen, cost, finals, measurements, searches, tested_split

    yield "measuring steps", measurements(plan)
    split = tested_split(plan)
    for method in plan.methods:
        own = cost(plan, method)
        print(f"{method}: {1000 * own.step_seconds:.1f} ms a step", flush=True)
    for method in plan.methods:
        yield f"{method}: trying {plan.trials} rates", searches(plan, method)
        best = chosen(plan, method)
        print(f"{method}: rate {best.rate:g}, {best.score:.4f} on what selects", flush=True)
    for method in plan.methods:
        yield f"{method}: {plan.seeds} seeds, scored on {split}", finals(plan, method)


def _show(plan: Plan) -> None:
    """The table on the terminal, as Markdown and JSON, and the page."""
    from launcher.pages.compare import as_markdown, print_sides, read_sides, write_page
    from prompt_tuning.settings.merge import read_json
    from prompt_tuning.storage.atomic import write_json, write_text

    sides = read_sides(plan)
    print_sides(plan, sides)
    file = plan.output / "compare.json"
    write_json(file, {**read_json(file), "sides": [side.to_json() for side in sides]})
    write_text(plan.output / "compare.md", as_markdown(plan, sides))
    try:
        write_text(plan.output / "compare.html", write_page(plan, sides))
    except UserError as error:
        print(error, file=sys.stderr)
    print(f"Table, page and run files: {plan.output}")


def _methods(text: str) -> tuple[str, ...]:
    from launcher.runs.comparison import SPACES

    found = tuple(name.strip() for name in text.split(","))
    unknown = [name for name in found if name not in SPACES]
    if unknown:
        raise UserError(f"--methods {show(unknown[0])}: no method; choose from {', '.join(SPACES)}")
    if len(found) < 2 or len(set(found)) < len(found):
        raise UserError(f"--methods {text}: give at least two methods, each once")
    return found


def _spaces(items: list[str], methods: tuple[str, ...]) -> dict[str, tuple[float, float]]:
    found = {}
    for item in items:
        method, _, ends = item.partition("=")
        try:
            low, high = map(float, ends.split(":"))
        except ValueError:
            low = high = 0.0
        if method not in methods or not 0 < low < high < float("inf"):
            raise UserError(f"--rates {show(item)}: give METHOD=LOW:HIGH of a method compared, such as lora=1e-4:1e-2")
        found[method] = (low, high)
    return found
