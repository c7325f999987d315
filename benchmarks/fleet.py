"""Members trained as one fleet against as many runs one after the other, ours and PEFT's, on rows of WiC and COPA.

    python benchmarks/fleet.py --json fleet.json

Members are seeds with few rows each. By turns in one process: one step of the fleet; one step of every member in a fleet of
its own, over the same backbone; one step of PEFT's prefix tuning on every member's rows, once with equal settings (precision, no
dropout, padded to the longest row) and once with its defaults (float32, dropout, padded to the most tokens of a text). The
fleet's losses are compared with the separate runs', and the first member with PEFT: loss and gradient of the prefix.

With --assembly, how much of a step many long prompts cost before they are used: stacking the members' prefixes and gathering
each row's, forward and backward, timed by itself, by turns with whole steps.
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

from typing import Any

import torch

from benchmarks import ours, theirs, timing
from benchmarks.contenders import PEFT, PROMPTFLEET, Built, Contender, start_alike
from benchmarks.report import Report, milliseconds, range_of
from benchmarks.work import Work, add_backbones, backbone, check, data_folder, parser, quiet
from prompt_tuning.errors import UserError
from prompt_tuning.fleet.step import Fleet

DTYPES = ("float32", "bfloat16")
OTHERS = {"separate": "runs of ours", "PEFT": "PEFT, equal settings", "PEFT, defaults": "PEFT, defaults"}


def compare(work: Work, dtypes: list[str], members: int, repeats: int) -> list[dict[str, Any]]:
    """For each precision: seconds of a step of all members, ratios to the fleet, and differences."""
    defaults = theirs.one_after_the_other(theirs.peft_model(work, "float32", True), work, work.max_length, members)
    tasks: dict[str, ours.Step] = {"PEFT, defaults": defaults}
    differences = {}
    for dtype in dtypes:
        fleet = ours.build(work, dtype, False, members)
        alone = [ours.fleet_step(single) for single in ours.separate_fleets(fleet)]
        peft = Contender(PEFT, dtype, False).built(work)
        differences[dtype] = start_alike(Built(ours.fleet_step(fleet), fleet=fleet), peft)
        tasks |= {
            f"fleet, {dtype}": ours.fleet_step(fleet),
            f"separate, {dtype}": ours.one_after_the_other(alone),
            f"PEFT, {dtype}": theirs.one_after_the_other(peft.model, work, None, members),
        }
    seconds, losses = timing.by_turns(tasks, repeats, work.device)
    found = []
    for dtype in dtypes:
        pair = losses[f"fleet, {dtype}"], losses[f"separate, {dtype}"]
        differences[dtype]["largest_loss"] = timing.largest_difference(*pair)
        own = {name: seconds[f"{name}, {dtype}"] for name in ("fleet", "separate", "PEFT")}
        own["PEFT, defaults"] = seconds["PEFT, defaults"]
        ratios = {name: timing.ratio(own[name], own["fleet"]) for name in OTHERS}
        found.append(
            {
                "backbone": work.name,
                "task": work.task,
                "dtype": dtype,
                "seconds": own,
                "ratios": ratios,
                "differences": differences[dtype],
            }
        )
    return found


def measure_assembly(work: Work, dtypes: list[str], members: int, repeats: int) -> list[dict[str, Any]]:
    """For each precision: seconds of a fleet's step, and of assembling its prefixes alone."""
    return [_measure_assembly(work, dtype, members, repeats) for dtype in dtypes]


def _measure_assembly(work: Work, dtype: str, members: int, repeats: int) -> dict[str, Any]:
    fleet = Contender(PROMPTFLEET, dtype, False, members=members).built(work).fleet
    assert fleet is not None
    tasks = {"step": ours.fleet_step(fleet), "assembly": lambda: _assemble(fleet)}
    seconds, _ = timing.by_turns(tasks, repeats, work.device)
    shares = timing.ratio(seconds["assembly"], seconds["step"])
    return {"backbone": work.name, "dtype": dtype, "members": members, "seconds": seconds, "shares": shares}


def _assemble(fleet: Fleet) -> None:
    """What every batch of a step does with its members' prefixes, and the way back of their gradients."""
    parts = [(i, member.step_examples(member.step), 1.0) for i, member in enumerate(fleet.members)]
    for batch in fleet.loops["train"].batches(parts):
        prefixes = [fleet.members[member].prompt.prefix for member in batch.members]
        found = [side for prefix in prefixes if prefix is not None for side in prefix.by_layer() if side is not None]
        torch.autograd.backward(found, [torch.zeros_like(side) for side in found])
    for member in fleet.members:
        member.optimizer.zero_grad(set_to_none=True)


def main() -> None:
    options = parser(__doc__, repeats=5, batch_size=4)
    add_backbones(options, "minilm", "random-12x768")
    options.add_argument("--members", type=int, default=8, help="(default: %(default)s)")
    options.add_argument("--tasks", nargs="+", choices=("wic", "copa"), default=["wic", "copa"], help="(default: both)")
    options.add_argument("--dtypes", nargs="+", choices=DTYPES, default=list(DTYPES), help="(default: both)")
    options.add_argument("--length", type=int, default=128, help="most tokens of a text (default: %(default)s)")
    options.add_argument(
        "--assembly",
        action="store_true",
        help="measure that alone; meant for --members 64 --backbones random-24x1024 --prompt-length 128 --tasks wic",
    )
    chosen = options.parse_args()
    quiet()
    try:
        check(chosen, needs_peft=not chosen.assembly)
        if chosen.members < 2:
            raise UserError(f"--members {chosen.members}: a fleet of one has nobody to share with; give at least 2")
        report, steps = Report(chosen), chosen.repeats + 1
        data = {task: data_folder(chosen, task, steps * chosen.batch_size) for task in chosen.tasks}
        found = []
        for name in chosen.backbones:
            with backbone(name, chosen.length + chosen.prompt_length) as path:
                for task in chosen.tasks:
                    sizes = (chosen.length, chosen.prompt_length, chosen.batch_size, steps, chosen.device)
                    work = Work(path, Path(name).name, data[task], task, *sizes)
                    measure = measure_assembly if chosen.assembly else compare
                    found += measure(work, chosen.dtypes, chosen.members, chosen.repeats)
    except UserError as error:
        sys.exit(str(error))
    report.numbers["works"] = found
    (_tell_assembly if chosen.assembly else _tell)(report, found)
    report.finish()


def _tell(report: Report, found: list[dict[str, Any]]) -> None:
    options = report.options
    rows = report.table(
        f"{options.members} members of batch {options.batch_size}, P={options.prompt_length}, {options.device}",
        ["rows", "fleet, ms", *(f"times faster than {options.members} {name}" for name in OTHERS.values())],
    )
    for one in found:
        title = f"{one['backbone']}, {one['task']}, {one['dtype']}"
        rows.append(
            [title, milliseconds(timing.median(one["seconds"]["fleet"])), *map(range_of, one["ratios"].values())]
        )
        values = one["differences"]
        report.note(
            f"{title}: the fleet's losses differ from separate runs' by at most {values['largest_loss']:.1e}; from PEFT's"
            f" the first by {values['first_loss']:.1e}, its prefix gradient by {values['first_prefix_gradient']:.1e}"
            " (relative L2)."
        )


def _tell_assembly(report: Report, found: list[dict[str, Any]]) -> None:
    options = report.options
    rows = report.table(
        f"Assembling prefixes: {options.members} members of batch {options.batch_size}, P={options.prompt_length},"
        f" {options.device}",
        ["backbone", "step, ms", "assembling, ms", "share of the step, % (quartiles)"],
    )
    for one in found:
        times = [milliseconds(timing.median(one["seconds"][name])) for name in ("step", "assembly")]
        share = range_of({name: 100 * value for name, value in one["shares"].items()})
        rows.append([f"{one['backbone']}, {one['dtype']}", *times, share])


if __name__ == "__main__":
    main()
