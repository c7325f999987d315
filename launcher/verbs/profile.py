"""The verb ``profile``: where the time of a run's training steps goes."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from launcher.options import add_overrides
from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from prompt_tuning.report.profile import Profile


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "profile",
        help="train a few steps and say where their time goes",
        description="Train some steps of a run file in this process, on one device, and say where their time goes: kinds of"
        " work, the dearest operators, and the share of the matrix products that the device could have done (MFU)."
        " Nothing is saved.",
    )
    verb.add_argument("config", metavar="CONFIG")
    add_overrides(verb)
    verb.add_argument(
        "--steps", type=int, default=10, help="measured steps, and as many under the profiler (default: 10)"
    )
    verb.add_argument(
        "--trace", metavar="FILE", help="write a trace for Perfetto (ui.perfetto.dev) or chrome://tracing"
    )
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Profile a run file."""
    from launcher.ranks.environment import Process, quiet_libraries, threads
    from prompt_tuning.settings.members import load_run

    if options.steps < 1:
        raise UserError(f"--steps {options.steps}: give at least 1")
    trace = None if options.trace is None else Path(options.trace)
    if trace is not None and not trace.absolute().parent.is_dir():
        raise UserError(f"--trace {trace}: there is no folder {trace.parent}; create it or choose another")
    run = load_run(options.config, options.set)
    if run.shared.parallel.tensor > 1 or run.shared.parallel.zero:
        raise UserError(
            "profile runs in one process; set parallel.tensor=1 and parallel.zero=false, or a smaller backbone"
        )
    import torch

    from model_parallel.grid import Grid, local_device
    from prompt_tuning.report.profile import profile_steps
    from prompt_tuning.trainer import build_fleet

    quiet_libraries()
    torch.set_num_threads(threads(Process()))
    fleet = build_fleet(run, Grid(device=local_device(0)))
    _show(profile_steps(fleet, options.steps, trace), str(fleet.backbone.model.dtype).removeprefix("torch."))
    if trace is not None:
        print(f"Trace: {trace}")
    return 0


def _show(found: Profile, dtype: str) -> None:
    """The profile as tables."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    table = Table(title="A training step")
    for heading in ("kind of work", "ms", "share", "calls"):
        table.add_column(heading, justify="left" if heading == "kind of work" else "right")
    spent = sum(seconds for _, seconds, _ in found.kinds)
    rest = ("Python, waiting", max(0.0, found.seconds - spent), 0)
    for name, seconds, calls in sorted((*found.kinds, rest), key=lambda line: -line[1]):
        table.add_row(
            name, f"{1000 * seconds:.1f}", f"{100 * seconds / max(spent, found.seconds):.1f} %", str(calls or "")
        )
    console.print(table)
    table = Table(title="The dearest operators")
    for heading in ("operator", "ms", "calls"):
        table.add_column(heading, justify="left" if heading == "operator" else "right")
    for name, seconds, calls in found.operators:
        table.add_row(name, f"{1000 * seconds:.1f}", str(calls))
    console.print(table)
    console.print(
        f"{1000 * found.seconds:.1f} ms a step without the profiler: {found.examples / found.seconds:.1f} examples and"
        f" {found.tokens / found.seconds:.0f} tokens (texts and prompts) a second.\n"
        f"{found.operations / 1e9:.1f} GFLOP a step, {found.operations / found.seconds / 1e9:.1f} GFLOP/s; a large matrix"
        f" product in {dtype} runs at {found.rate / 1e9:.1f} GFLOP/s here: {100 * found.utilisation:.0f} % of it (MFU)."
    )
