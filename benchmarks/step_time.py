"""A training step of one prompt against PEFT's prefix tuning and full fine-tuning, on the same rows of BoolQ.

    python benchmarks/step_time.py --json step_time.json

All contenders step by turns in one process, and ratios are taken round by round, so that whatever else the machine does
hits all of them. Each row of the table names its settings:

  equal             same precision, same dropout; PEFT pads to the longest row of a batch
  defaults          both as they ship: float32, dropout; PEFT pads to the most tokens of a text
  recommended       ours with a bfloat16 backbone without dropout, PEFT with its defaults
  full fine-tuning  ours against all weights trained by transformers, same precision and dropout

Without dropout both sides compute the same, which is checked: the first loss and prefix gradient, and every later loss. The
share of the machine's rate is counted operations (benchmarks/operations.py) a second over those of a plain matrix product
of the same precision, timed by turns with the steps.
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

from functools import partial
from typing import Any

import numpy as np

from benchmarks import ours, timing
from benchmarks.contenders import FULL, PEFT, PROMPTFLEET, Built, Contender, start_alike
from benchmarks.operations import operations_of_steps
from benchmarks.report import Report, milliseconds, range_of
from benchmarks.work import Work, add_backbones, backbone, check, data_folder, parser, quiet, shape
from prompt_tuning.errors import UserError

DTYPES = ("float32", "bfloat16")
OURS, THEIRS, WHOLE = (partial(Contender, side) for side in (PROMPTFLEET, PEFT, FULL))
THEIR_DEFAULTS = THEIRS("float32", True, to_maximum=True)
COMPARISONS: dict[str, tuple[Contender, Contender]] = {
    **{f"equal, {dtype}, no dropout": (OURS(dtype, False), THEIRS(dtype, False)) for dtype in DTYPES},
    **{f"equal, {dtype}, dropout": (OURS(dtype, True), THEIRS(dtype, True)) for dtype in DTYPES},
    "defaults": (OURS("float32", True), THEIR_DEFAULTS),
    "recommended": (OURS("bfloat16", False), THEIR_DEFAULTS),
    **{f"full fine-tuning, {dtype}, dropout": (OURS(dtype, True), WHOLE(dtype, True)) for dtype in DTYPES},
}
"""Ours and the other side, by what the table calls it."""


def compare(work: Work, names: list[str], repeats: int) -> dict[str, Any]:
    """Every comparison over one backbone and one length: seconds, ratios, differences, shares of the machine's rate."""
    sides = dict.fromkeys(side for name in names for side in COMPARISONS[name])
    built: dict[Contender, Built] = {side: side.built(work) for side in sides}
    differences = {}
    for name in names:
        first, second = COMPARISONS[name]
        if first.dropout == second.dropout is False:
            differences[name] = start_alike(built[first], built[second])
    products = {dtype: timing.matrix_product(dtype, work.device) for dtype in {side.dtype for side in sides}}
    tasks = {side.label: made.step for side, made in built.items()} | products
    seconds, losses = timing.by_turns(tasks, repeats, work.device)
    for name in differences:
        first, second = (losses[side.label] for side in COMPARISONS[name])
        differences[name]["largest_loss"] = timing.largest_difference(first, second)
    fleet = next(made.fleet for made in built.values() if made.fleet)
    lengths = [ours.lengths(fleet, step) for step in range(1, work.num_steps)]
    counted = operations_of_steps(shape(work), lengths, work.prompt_length)
    rates = {dtype: timing.MATRIX_OPERATIONS / timing.median(seconds[dtype]) for dtype in products}
    shares = {
        side.label: timing.median(np.array(counted) / np.array(seconds[side.label])) / rates[side.dtype]
        for side in sides
        if side.side == PROMPTFLEET
    }
    ratios = {name: timing.ratio(*(seconds[side.label] for side in reversed(COMPARISONS[name]))) for name in names}
    return {
        "backbone": work.name,
        "max_length": work.max_length,
        "real_tokens": float(np.mean([own.sum() for own in lengths])),
        "real_share": float(np.mean([own.mean() for own in lengths])) / work.max_length,
        "seconds": seconds,
        "ratios": ratios,
        "differences": differences,
        "matrix_product_operations_per_second": rates,
        "shares_of_matrix_product": shares,
    }


def main() -> None:
    options = parser(__doc__, repeats=5, batch_size=16)
    add_backbones(options, "minilm", "random-12x768")
    options.add_argument(
        "--lengths", type=int, nargs="+", default=[128, 256], help="most tokens of a text (default: 128 256)"
    )
    options.add_argument(
        "--comparisons", nargs="+", choices=list(COMPARISONS), default=list(COMPARISONS), help="(default: all)"
    )
    chosen = options.parse_args()
    quiet()
    try:
        check(chosen)
        report = Report(chosen)
        steps = chosen.repeats + 1
        data = data_folder(chosen, "boolq", steps * chosen.batch_size)
        report.numbers["works"] = []
        for name in chosen.backbones:
            with backbone(name, max(chosen.lengths) + chosen.prompt_length) as path:
                for length in chosen.lengths:
                    sizes = (length, chosen.prompt_length, chosen.batch_size, steps, chosen.device)
                    found = compare(
                        Work(path, Path(name).name, data, "boolq", *sizes), chosen.comparisons, chosen.repeats
                    )
                    report.numbers["works"].append(found)
                    _tell(report, found)
    except UserError as error:
        sys.exit(str(error))
    report.finish()


def _tell(report: Report, found: dict[str, Any]) -> None:
    options = report.options
    rows = report.table(
        f"{found['backbone']}, at most {found['max_length']} tokens ({100 * found['real_share']:.0f} % real),"
        f" batch {options.batch_size}, P={options.prompt_length}, {options.device}",
        ["settings", "ours, ms", "other, ms", "times faster (quartiles)", "ours, share of matrix product"],
    )
    seconds = {label: timing.median(values) for label, values in found["seconds"].items()}
    for name, ratio in found["ratios"].items():
        first, second = (side.label for side in COMPARISONS[name])
        share = f"{100 * found['shares_of_matrix_product'][first]:.0f} %"
        rows.append([name, milliseconds(seconds[first]), milliseconds(seconds[second]), range_of(ratio), share])
    rates = ", ".join(f"{v / 1e9:.0f} GFLOP/s in {k}" for k, v in found["matrix_product_operations_per_second"].items())
    report.note(f"{found['backbone']}, {found['max_length']} tokens: matrix product {rates}.")
    for name, values in found["differences"].items():
        report.note(
            f"{found['backbone']}, {found['max_length']} tokens, {name}: first loss differs by {values['first_loss']:.1e},"
            f" its prefix gradient by {values['first_prefix_gradient']:.1e} (relative L2), any later loss by at most"
            f" {values['largest_loss']:.1e}."
        )


if __name__ == "__main__":
    main()
