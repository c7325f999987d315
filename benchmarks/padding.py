"""A step's time against the share of real tokens: what shorter rows save, and what padding costs.

    python benchmarks/padding.py --json padding.json

Each batch has one row of BoolQ with the most tokens of a text and others that are shorter, chosen by their lengths so that the
wanted share of the padded batch is real. The same rows are trained again and again by PromptFleet, which pads nothing, and
by PEFT's prefix tuning, which pads to the longest row; dropout is off on both sides, and both compute the same.
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

import tempfile
from typing import Any

import numpy as np

from benchmarks import ours, timing
from benchmarks.contenders import PEFT, PROMPTFLEET, Contender, start_alike
from benchmarks.report import Report, milliseconds, range_of
from benchmarks.work import Work, add_backbones, backbone, check, data_folder, parser, quiet
from prompt_tuning.errors import UserError

SPREAD = 0.3
"""Rows around a mean length reach from so much below to so much above it."""


def choose(lengths: np.ndarray, share: float, count: int, longest: int) -> np.ndarray:
    """Rows of a batch: one of the longest, and others spread around the mean length that gives the wanted share.

    Raises :class:`UserError` where there are too few rows.
    """
    if len(lengths) < count or lengths.max() < longest:
        raise UserError(f"no row of {longest} tokens among {len(lengths)}, or fewer than {count} rows; lower --length")
    mean = longest * max(share * count - 1, 0) / max(1, count - 1)
    wanted = [float(longest), *np.minimum(mean * np.linspace(1 - SPREAD, 1 + SPREAD, count - 1), longest)]
    if share >= 1:
        wanted = [float(longest)] * count
    chosen: list[int] = []
    for length in wanted:
        distance = np.abs(lengths - length).astype(float)
        distance[chosen] = np.inf
        chosen.append(int(distance.argmin()))
    return np.array(chosen)


def measure(work: Work, source: Path, rows: np.ndarray, dtype: str, repeats: int) -> dict[str, Any]:
    """Times of both sides on some rows of a file."""
    lines = [line for line in (source / "train.jsonl").read_text(encoding="utf-8").splitlines() if line.strip()]
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "train.jsonl").write_text("".join(lines[row] + "\n" for row in rows), encoding="utf-8")
        Path(folder, "val.jsonl").write_text(lines[0] + "\n", encoding="utf-8")
        own = Work(**{**vars(work), "data": folder, "num_steps": 1})
        first, second = (Contender(side, dtype, False).built(own) for side in (PROMPTFLEET, PEFT))
        differences = start_alike(first, second)
        seconds, losses = timing.by_turns({"ours": first.step, "PEFT": second.step}, repeats, work.device)
    differences["largest_loss"] = timing.largest_difference(losses["ours"], losses["PEFT"])
    lengths = ours.lengths(first.fleet, 0)
    return {
        "real_share": float(lengths.mean() / lengths.max()),
        "real_tokens": int(lengths.sum()),
        "seconds": seconds,
        "ratio": timing.ratio(seconds["PEFT"], seconds["ours"]),
        "differences": differences,
    }


def main() -> None:
    options = parser(__doc__, repeats=5, batch_size=16)
    add_backbones(options, "random-12x768")
    options.add_argument("--length", type=int, default=256, help="most tokens of a text (default: %(default)s)")
    options.add_argument("--shares", type=float, nargs="+", default=[1.0, 0.75, 0.5, 0.25], help="(%(default)s)")
    options.add_argument(
        "--rows", type=int, default=2000, help="rows of the file to choose from (default: %(default)s)"
    )
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="(default: %(default)s)")
    chosen = options.parse_args()
    quiet()
    try:
        check(chosen)
        report = Report(chosen)
        data = data_folder(chosen, "boolq", chosen.batch_size)
        report.numbers["works"] = []
        for name in chosen.backbones:
            with backbone(name, chosen.length + chosen.prompt_length) as path:
                sizes = (chosen.length, chosen.prompt_length, chosen.batch_size)
                work = Work(
                    path, Path(name).name, data, "boolq", *sizes, -(-chosen.rows // chosen.batch_size), chosen.device
                )
                features = ours.features(work)
                lengths = features.lengths(np.arange(len(features)))
                found = []
                for share in chosen.shares:
                    rows = choose(lengths, share, chosen.batch_size, chosen.length)
                    found.append(measure(work, Path(data), rows, chosen.dtype, chosen.repeats))
                report.numbers["works"].append({"backbone": work.name, "shares": found})
                _tell(report, work.name, found)
    except UserError as error:
        sys.exit(str(error))
    report.finish()


def _tell(report: Report, name: str, found: list[dict[str, Any]]) -> None:
    options = report.options
    rows = report.table(
        f"{name}, {options.dtype}, no dropout, batch {options.batch_size}, longest row {options.length} tokens,"
        f" P={options.prompt_length}, {options.device}",
        ["real tokens", "ours, ms", "ours, ms a 1000 real tokens", "PEFT, ms", "times faster (quartiles)"],
    )
    for one in found:
        mine, other = (timing.median(one["seconds"][side]) for side in ("ours", "PEFT"))
        tokens = f"{100 * one['real_share']:.0f} % ({one['real_tokens']:,})"
        rows.append(
            [tokens, *map(milliseconds, (mine, 1000 * mine / one["real_tokens"], other)), range_of(one["ratio"])]
        )
    worst = {key: max(one["differences"][key] for one in found) for key in found[0]["differences"]}
    report.note(
        f"{name}: first loss differs by at most {worst['first_loss']:.1e}, its prefix gradient by"
        f" {worst['first_prefix_gradient']:.1e} (relative L2), any later loss by {worst['largest_loss']:.1e}."
    )


if __name__ == "__main__":
    main()
