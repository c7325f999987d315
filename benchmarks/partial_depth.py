"""Prompts in the upper layers alone against prompts in all: the backward ends at the lowest layer with a prefix.

    python benchmarks/partial_depth.py --json partial_depth.json

Fleets of one step by turns on the same rows of BoolQ: with prefixes in all layers, in the upper half and in the upper quarter
(`prompt.layers`), each also with the hidden states under the lowest prompt kept in memory (`data.cache_activations`, without
dropout), and, for comparison, what the counted operations (benchmarks/operations.py) would let one expect. Losses with and
without kept states are compared; those of other depths differ, because other prompts are trained.
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

from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks import ours, timing
from benchmarks.contenders import PROMPTFLEET, Contender
from benchmarks.operations import operations_of_steps
from benchmarks.report import Report, milliseconds, range_of
from benchmarks.work import Work, add_backbones, backbone, check, data_folder, parser, quiet, shape
from prompt_tuning.errors import UserError

DEPTHS = {"all layers": 1, "upper half": 2, "upper quarter": 4}
"""Into how many parts the layers are cut, of which the uppermost has prefixes."""


KEPT = "states kept"


def measure(work: Work, dtype: str, dropout: bool, repeats: int) -> dict[str, Any]:
    """Seconds, ratios to all layers, and ratios of counted operations."""
    config = shape(work)
    layers = config.num_hidden_layers
    first = {name: layers - max(1, layers // parts) for name, parts in DEPTHS.items()}
    built = {}
    for name, lowest in first.items():
        contender = Contender(PROMPTFLEET, dtype, dropout, layers=tuple(range(lowest, layers)))
        built[name] = contender.built(work)
        if lowest and not dropout:
            built[f"{name}, {KEPT}"] = replace(contender, keeps=True).built(work)
    seconds, losses = timing.by_turns({name: one.step for name, one in built.items()}, repeats, work.device)
    assert all(np.isfinite([float(loss) for loss in own]).all() for own in losses.values()), "a loss is not finite"
    lengths = [ours.lengths(built["all layers"].fleet, step) for step in range(1, work.num_steps)]
    counted = {
        name: float(np.mean(operations_of_steps(config, lengths, work.prompt_length, lowest)))
        for name, lowest in first.items()
    }
    return {
        "backbone": work.name,
        "first_layers": first,
        "seconds": seconds,
        "ratios": {name: timing.ratio(seconds["all layers"], own) for name, own in seconds.items()},
        "operations": counted,
        "differences": {
            name: timing.largest_difference(losses[name], losses[name.removesuffix(f", {KEPT}")])
            for name in built
            if name.endswith(KEPT)
        },
    }


def main() -> None:
    options = parser(__doc__, repeats=5, batch_size=16)
    add_backbones(options, "random-12x768")
    options.add_argument("--length", type=int, default=256, help="most tokens of a text (default: %(default)s)")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    options.add_argument("--dropout", action="store_true", help="with the backbone's own dropout")
    chosen = options.parse_args()
    quiet()
    try:
        check(chosen, needs_peft=False)
        report = Report(chosen)
        steps = chosen.repeats + 1
        data = data_folder(chosen, "boolq", steps * chosen.batch_size)
        report.numbers["works"] = []
        for name in chosen.backbones:
            with backbone(name, chosen.length + chosen.prompt_length) as path:
                sizes = (chosen.length, chosen.prompt_length, chosen.batch_size, steps, chosen.device)
                work = Work(path, Path(name).name, data, "boolq", *sizes)
                report.numbers["works"].append(measure(work, chosen.dtype, chosen.dropout, chosen.repeats))
    except UserError as error:
        sys.exit(str(error))
    for found in report.numbers["works"]:
        _tell(report, found)
    report.finish()


def _tell(report: Report, found: dict[str, Any]) -> None:
    options = report.options
    rows = report.table(
        f"{found['backbone']}, {options.dtype}, {'dropout' if options.dropout else 'no dropout'},"
        f" at most {options.length} tokens, batch {options.batch_size}, P={options.prompt_length}, {options.device}",
        ["prompts in", "ms", "times faster (quartiles)", "by counted operations"],
    )
    counted = found["operations"]
    for name, seconds in found["seconds"].items():
        depth = name.removesuffix(f", {KEPT}")
        expected = f"{counted['all layers'] / counted[name]:.2f}" if name in counted else ""
        title = f"{depth} (from layer {found['first_layers'][depth]}){name.removeprefix(depth)}"
        rows.append([title, milliseconds(timing.median(seconds)), range_of(found["ratios"][name]), expected])
    for name, difference in found["differences"].items():
        report.note(f"{found['backbone']}, {name}: losses differ from those without by at most {difference:.1e}.")


if __name__ == "__main__":
    main()
