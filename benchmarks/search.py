"""A search of learning rates and seeds as one fleet against as many runs one after the other, and against halving.

    python benchmarks/search.py --json search.json

By turns in one process, each round some steps of every member: all in one fleet; each in a fleet of its own, over the same
backbone; PEFT's prefix tuning on every member's rows with equal settings (precision, no dropout, padded to the longest row of
a batch). Memory is the peak of a step in a process of its own; runs one after the other hold one run's at a time.

Then the same search is trained to its end twice, evaluations included: whole, and with `fleet.halving`, where after an eighth, a
quarter and a half of the steps the better half goes on. The winner is the member with the best score on dev that it ever had.
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
if __name__ == "__main__":
    # Started as a file, Python puts benchmarks/ on the path, and not the root of the project.
    sys.path[0] = str(ROOT)

    from launcher.ranks.environment import share_processor

    # Before torch is imported, as the worker does.
    share_processor()

import argparse
import tempfile
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks import ours, theirs, timing
from benchmarks.contenders import PEFT, PROMPTFLEET, Contender
from benchmarks.peak import STEPS, peak_bytes
from benchmarks.report import Report, milliseconds, range_of
from benchmarks.work import Work, add_backbones, backbone, check, data_folder, parser, quiet
from model_parallel.grid import Grid
from prompt_tuning.errors import UserError
from prompt_tuning.trainer import build_fleet, train

DTYPES = ("float32", "bfloat16")
RATES = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
WAYS = {"fleet": "one fleet", "separate": "runs of ours", "PEFT": "runs of PEFT, equal settings"}
"""What a step of all members is called in tables."""


def section(options: argparse.Namespace) -> dict[str, Any]:
    """The run file's fleet section."""
    seeds = range(ours.SEED, ours.SEED + options.seeds)
    return {"grid": {"optimizer.lr": list(options.rates)}, "seeds": list(seeds)}


def rungs(horizon: int) -> list[int]:
    """Steps after which the better half goes on."""
    return [horizon // 8, horizon // 4, horizon // 2]


def compare(work: Work, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Seconds of so many steps of all members, ratios to the fleet, differences of losses, and peaks of memory."""
    members = len(options.rates) * options.seeds
    each = {
        "fleet": Contender(PROMPTFLEET, dtype, False, members=members),
        "separate": Contender(PROMPTFLEET, dtype, False),
        "PEFT": Contender(PEFT, dtype, False),
    }
    taken = {name: peak_bytes(contender, work, options.threads) for name, contender in each.items()}
    grid = Grid(device=torch.device(work.device))
    fleet = build_fleet(ours.search(work, dtype, section(options), Path("runs/benchmark")), grid)
    alone = [ours.fleet_step(single) for single in ours.separate_fleets(fleet)]
    model = theirs.peft_model(work, dtype, False)
    tasks = {
        "fleet": _repeated(ours.fleet_step(fleet), options.steps),
        "separate": _repeated(ours.one_after_the_other(alone), options.steps),
        "PEFT": _repeated(theirs.one_after_the_other(model, work, None, members), options.steps),
    }
    seconds, losses = timing.by_turns(tasks, options.repeats, work.device)
    return {
        "members": members,
        "seconds": seconds,
        "ratios": {name: timing.ratio(seconds[name], seconds["fleet"]) for name in tasks if name != "fleet"},
        "largest_loss": timing.largest_difference(losses["fleet"], losses["separate"]),
        "bytes": taken,
    }


def _repeated(step: ours.Step, times: int) -> Callable[[], Tensor]:
    return lambda: torch.cat([step() for _ in range(times)])


def to_the_end(work: Work, dtype: str, options: argparse.Namespace) -> dict[str, Any]:
    """Steps, seconds, winner and its score of the whole search and of the halved one."""
    halving = {"rungs": rungs(options.horizon), "keep": 0.5}
    clock, found = timing.clock_of(work.device), {}
    for name, fleet in (("whole", section(options)), ("halving", {**section(options), "halving": halving})):
        with tempfile.TemporaryDirectory() as folder:
            run = ours.search(work, dtype, fleet, Path(folder) / "run", options.horizon, options.max_eval)
            started = clock()
            result = train(run, Grid(device=torch.device(work.device)))
            assert result is not None
        scored = [(one, one["best"]["metrics"][one["selects_by"]]) for one in result["members"] if one["best"]]
        winner, score = max(scored, key=lambda entry: entry[1])
        found[name] = {
            "seconds": clock() - started,
            "steps": sum(one["steps"] for one in result["members"]),
            "winner": winner["member"],
            "metric": winner["selects_by"],
            "score": score,
            "scores": {one["member"]: own for one, own in scored},
        }
    return {
        "searches": found,
        "share_of_steps": found["halving"]["steps"] / found["whole"]["steps"],
        "share_of_seconds": found["halving"]["seconds"] / found["whole"]["seconds"],
        "same_winner": found["halving"]["winner"] == found["whole"]["winner"],
    }


def main() -> None:
    options = parser(__doc__, repeats=2, batch_size=4)
    add_backbones(options, "minilm")
    options.add_argument("--task", choices=("wic", "copa"), default="copa", help="(default: %(default)s)")
    options.add_argument("--dtype", choices=DTYPES, default="float32", help="(default: %(default)s)")
    options.add_argument("--length", type=int, default=64, help="most tokens of a text (default: %(default)s)")
    options.add_argument("--rates", type=float, nargs="+", default=RATES, help="(default: eight from 1e-4 to 0.3)")
    options.add_argument("--seeds", type=int, default=2, help="of each rate (default: %(default)s)")
    options.add_argument("--steps", type=int, default=4, help="of every member in a round (default: %(default)s)")
    options.add_argument("--horizon", type=int, default=32, help="steps of a search to its end (default: %(default)s)")
    options.add_argument("--max-eval", type=int, default=200, help="most examples of dev (default: %(default)s)")
    chosen = options.parse_args()
    quiet()
    try:
        check(chosen)
        if len(chosen.rates) * chosen.seeds < 2 or chosen.steps < 1 or chosen.max_eval < 1:
            raise UserError(
                "--rates, --seeds, --steps, --max-eval: give two members, one step and one example at least"
            )
        if chosen.horizon < 8 or chosen.horizon % 8:
            raise UserError(f"--horizon {chosen.horizon}: members are judged after every eighth; give a multiple of 8")
        report = Report(chosen)
        # Memory is measured on the first steps, of which there are at least two.
        steps = max(STEPS, (chosen.repeats + 1) * chosen.steps)
        data = data_folder(chosen, chosen.task, steps * chosen.batch_size)
        report.numbers["works"] = []
        for name in chosen.backbones:
            with backbone(name, chosen.length + chosen.prompt_length) as path:
                sizes = (chosen.length, chosen.prompt_length, chosen.batch_size, steps, chosen.device)
                work = Work(path, Path(name).name, data, chosen.task, *sizes)
                found = compare(work, chosen.dtype, chosen) | to_the_end(work, chosen.dtype, chosen)
                report.numbers["works"].append({"backbone": work.name, "task": work.task, **found})
    except UserError as error:
        sys.exit(str(error))
    _tell(report)
    report.finish()


def _tell(report: Report) -> None:
    options = report.options
    count = len(options.rates) * options.seeds
    sizes = f"{options.task}, {options.dtype}, batch {options.batch_size}, P={options.prompt_length}, {options.device}"
    rows = report.table(
        f"A step of all {count} members, {sizes}",
        ["members", "ms", "times as long as the fleet's (quartiles)", "MiB above the backbone"],
    )
    ends = report.table(
        f"{count} members to their end after {options.horizon} steps, {sizes}",
        ["search", "steps of members", "seconds, evaluations included", "score of the winner", "winner"],
    )
    for found in report.numbers["works"]:
        for name, title in WAYS.items():
            time = milliseconds(timing.median(found["seconds"][name]) / options.steps)
            ratio = range_of(found["ratios"][name]) if name in found["ratios"] else ""
            whose = f"{found['backbone']}, {title if name == 'fleet' else f'{count} {title}'}"
            rows.append([whose, time, ratio, f"{found['bytes'][name] / 2**20:,.0f}"])
        for name, one in found["searches"].items():
            score = f"{one['score']:.3f}"
            ends.append(
                [f"{found['backbone']}, {name}", f"{one['steps']:,}", f"{one['seconds']:.0f}", score, one["winner"]]
            )
        whole = found["searches"]["whole"]["scores"]
        rank = 1 + sum(score > whole[found["searches"]["halving"]["winner"]] for score in whole.values())
        winner = "the same winner" if found["same_winner"] else f"a winner that the whole search has in place {rank}"
        report.note(
            f"{found['backbone']}: halving took {100 * found['share_of_steps']:.0f} % of the steps and"
            f" {100 * found['share_of_seconds']:.0f} % of the time, and found {winner}; scores are accuracies on dev."
        )
        report.note(
            f"{found['backbone']}: the fleet's losses differ from separate runs' by at most {found['largest_loss']:.1e};"
            " runs one after the other hold the memory of one at a time, runs side by side all of it and as many backbones."
        )


if __name__ == "__main__":
    main()
