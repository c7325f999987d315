"""Exported prompts on their backbone, and the verb that writes them."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from prompt_tuning.predict import AttachedPrompts
    from prompt_tuning.prompt.export import ExportedPrompt


def export(options: argparse.Namespace) -> int:
    """Write members' best prompts out of the newest checkpoint."""
    from launcher.ranks.environment import quiet_libraries
    from model_parallel.grid import Grid, local_device
    from prompt_tuning.fleet import checkpoint
    from prompt_tuning.prompt.export import write_prompt
    from prompt_tuning.settings.identity import experiment, load_recorded_run
    from prompt_tuning.trainer import build_fleet

    quiet_libraries()
    run = load_recorded_run(Path(options.run))
    path = checkpoint.newest(run.output / "checkpoints")
    if path is None:
        raise UserError(f"{options.run}: no usable checkpoint yet; wait for the first evaluation")
    fleet = build_fleet(run, Grid(device=local_device(0)))
    checkpoint.load(path, fleet, experiment(run))
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


def attach_prompt(exported: ExportedPrompt, backbone: str | None) -> AttachedPrompts:
    """A prompt on its own backbone, or on another path to it, without the libraries' progress bars."""
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.predict import attach

    quiet_libraries()
    return attach(exported, backbone)
