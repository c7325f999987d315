"""Peak memory of a training step above the weights, against PEFT's prefix tuning and full fine-tuning.

    python benchmarks/memory.py --json memory.json

Every contender runs in a process of its own, on the same rows of BoolQ, with dropout, PEFT and full fine-tuning padded to
the longest row of a batch. Counted is what two steps take above the loaded model: activations, gradients, the optimizer's
state. What malloc would keep in reserve on a CPU comes on top, on all sides. PEFT refuses activation checkpointing with
prefixes, and the table says so in its own words.
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

from benchmarks.contenders import FULL, PEFT, PROMPTFLEET, Contender
from benchmarks.peak import STEPS, peak_bytes
from benchmarks.report import Report
from benchmarks.work import Work, add_backbones, backbone, check, data_folder, parser, quiet
from prompt_tuning.errors import UserError

DTYPES = ("float32", "bfloat16")


def contenders(dtype: str) -> dict[str, Contender]:
    """By the table's names."""
    return {
        "ours": Contender(PROMPTFLEET, dtype),
        "ours, checkpointing": Contender(PROMPTFLEET, dtype, checkpointing=True),
        "PEFT": Contender(PEFT, dtype),
        "PEFT, checkpointing": Contender(PEFT, dtype, checkpointing=True),
        "full fine-tuning": Contender(FULL, dtype),
    }


def measure(work: Work, dtype: str, threads: int) -> dict[str, Any]:
    """Bytes of every contender; what it says where it refuses."""
    found: dict[str, Any] = {"backbone": work.name, "dtype": dtype, "bytes": {}, "refusals": {}}
    for name, contender in contenders(dtype).items():
        try:
            found["bytes"][name] = peak_bytes(contender, work, threads)
        except UserError as error:
            found["refusals"][name] = str(error)
    return found


def main() -> None:
    options = parser(__doc__, repeats=1, batch_size=16)
    add_backbones(options, "minilm", "random-12x768")
    options.add_argument("--length", type=int, default=256, help="most tokens of a text (default: %(default)s)")
    chosen = options.parse_args()
    quiet()
    try:
        check(chosen)
        report = Report(chosen)
        data = data_folder(chosen, "boolq", STEPS * chosen.batch_size)
        report.numbers["works"] = []
        for name in chosen.backbones:
            with backbone(name, chosen.length + chosen.prompt_length) as path:
                sizes = (chosen.length, chosen.prompt_length, chosen.batch_size, STEPS, chosen.device)
                work = Work(path, Path(name).name, data, "boolq", *sizes)
                report.numbers["works"] += [measure(work, dtype, chosen.threads) for dtype in DTYPES]
    except UserError as error:
        sys.exit(str(error))
    _tell(report)
    report.finish()


def _tell(report: Report) -> None:
    options = report.options
    title = (
        f"MiB above the weights, at most {options.length} tokens, batch {options.batch_size}, P={options.prompt_length}"
    )
    names = list(contenders("float32"))
    rows = report.table(f"{title}, {options.device}", ["backbone", *names, "ours over PEFT's"])
    for found in report.numbers["works"]:
        taken = found["bytes"]
        cells = [f"{taken[name] / 2**20:,.0f}" if name in taken else "refused" for name in names]
        share = f"{taken['ours'] / taken['PEFT']:.2f}"
        rows.append([f"{found['backbone']}, {found['dtype']}", *cells, share])
    for text in {text for found in report.numbers["works"] for text in found["refusals"].values()}:
        report.note(f"Refused: {text}")


if __name__ == "__main__":
    main()
