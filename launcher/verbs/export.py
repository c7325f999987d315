"""promptfleet export: the best prompts of a run, finished or not, out of its newest checkpoint, also for other tools."""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from prompt_tuning.prompt.export import ExportedPrompt


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "export", help="write the best prompts of a run, finished or not, from its newest checkpoint"
    )
    verb.add_argument(
        "run",
        metavar="RUN",
        help="run folder, for example runs/quickstart (or, with --format, a prompt's folder or hub id)",
    )
    verb.add_argument("--member", action="append", help="only this member (repeatable)")
    verb.add_argument(
        "--output", required=True, metavar="DIR", help="folder that gets one prompt folder a member (onnx: the graph)"
    )
    verb.add_argument(
        "--format",
        metavar="NAME",
        help="another tool's format: peft, or onnx: all prompts and their backbone in one graph (default: our own)",
    )
    verb.add_argument("--backbone", metavar="PATH", help="onnx: the backbone, where it is not at its recorded path")
    verb.add_argument(
        "--int8",
        metavar="FILE",
        help="onnx: write 8-bit weights too, and say how many answers to the rows of this file stay as they are",
    )
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Write members' best prompts, in our format or another."""
    for name in ("backbone", "int8"):
        if getattr(options, name) is not None and options.format != "onnx":
            raise UserError(f"--{name} {getattr(options, name)}: only --format onnx takes it; leave it out")
    if options.format is None:
        return _own(options)
    if options.format == "onnx":
        return _onnx(options)
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.prompt.export import load_prompt
    from prompt_tuning.prompt.formats import formats, written_formats
    from prompt_tuning.prompt.hub import local_copy

    if options.format not in written_formats():
        known = ", ".join([*written_formats(), "onnx"])
        raise UserError(f"--format {options.format}: not written; choose {known}")
    write, output = formats()[options.format].write, Path(options.output)
    quiet_libraries()
    given = local_copy(options.run)
    if (given / "prompt.json").is_file():
        write(output, load_prompt(given))
        print(output)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        for name, exported in _members(options, folder).items():
            write(output / name, exported)
            print(output / name)
    return 0


def _members(options: argparse.Namespace, folder: str) -> dict[str, ExportedPrompt]:
    """The best prompts of a run by name, out of a folder that goes away, and so is not what messages call them."""
    from prompt_tuning.prompt.export import load_prompt

    _own(argparse.Namespace(run=options.run, member=options.member, output=folder), quiet=True)
    found = {}
    for path in sorted(file.parent for file in Path(folder).rglob("prompt.json")):
        exported = load_prompt(path)
        is_full = exported.manifest["method"] == "full"  # finds its model beside it
        found[path.name] = exported if is_full else replace(exported, folder=Path(path.name))
    return found


def _onnx(options: argparse.Namespace) -> int:
    """Write prompts and their backbone as one graph."""
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.onnx.write import write_onnx
    from prompt_tuning.prompt.export import load_prompt, name_of
    from prompt_tuning.prompt.hub import local_copy

    quiet_libraries()
    given = local_copy(options.run)
    with tempfile.TemporaryDirectory() as folder:
        is_prompt = (given / "prompt.json").is_file()
        found = {name_of(given.resolve()): load_prompt(given)} if is_prompt else _members(options, folder)
        if not found:
            raise UserError(f"{given}: no prompt to write; wait for the first evaluation")
        for line in write_onnx(Path(options.output), found, options.backbone, options.int8):
            print(line)
    return 0


def _own(options: argparse.Namespace, quiet: bool = False) -> int:
    """Write them in our own format. The checkpoint is enough: neither data nor backbone are read, but for method ``full``."""
    from launcher.ranks.environment import quiet_libraries
    from prompt_tuning.fleet import checkpoint
    from prompt_tuning.prompt.export import rebuild_prompt, write_prompt
    from prompt_tuning.settings.identity import experiment, load_recorded_run

    quiet_libraries()
    run = load_recorded_run(Path(options.run))
    path = checkpoint.newest(run.output / "checkpoints")
    if path is None:
        raise UserError(f"{options.run}: no usable checkpoint yet; wait for the first evaluation")
    state = checkpoint.read_state(path)
    known = [spec.name for spec in run.members]
    names = options.member or known
    unknown = set(names) - set(known)
    if unknown:
        raise UserError(f"--member {sorted(unknown)[0]}: not in {options.run}; its members: {', '.join(known)}")
    if run.shared.method == "full" or any("prompt" not in saved for saved in state["members"]):
        return _from_fleet(run, path, names, Path(options.output), quiet)
    by_place = dict(zip(checkpoint.places(path, state, experiment(run)), state["members"], strict=True))
    for place, spec in enumerate(run.members):
        saved = by_place.get(place)  # None: of a member that was added since
        if spec.name not in names:
            continue
        if saved is None or saved["best"] is None:
            _nothing(spec.name)
            continue
        tensors = checkpoint.read_tensors(path, saved)
        own: dict[str, Any] = {}
        for kind in ("frozen.", "best."):
            own |= {name.removeprefix(kind): value for name, value in tensors.items() if name.startswith(kind)}
        best = {"step": saved["best"]["step"], "metrics": saved["best"]["metrics"]}
        folder = Path(options.output) / spec.name
        write_prompt(folder, rebuild_prompt(spec.config, saved["prompt"], own), saved["prompt"], best)
        if not quiet:
            print(folder)
    return 0


def _from_fleet(run: Any, path: Path, names: list[str], output: Path, quiet: bool) -> int:
    """As :func:`_own` where the checkpoint alone is not enough: a trained backbone, or one that version 0.1.0 wrote."""
    from model_parallel.grid import Grid, local_device
    from prompt_tuning.fleet import checkpoint
    from prompt_tuning.report.results import export_member
    from prompt_tuning.settings.identity import experiment
    from prompt_tuning.trainer import build_fleet

    fleet = build_fleet(run, Grid(device=local_device(0)))
    checkpoint.load(path, fleet, experiment(run))
    for member in fleet.members:
        if member.name not in names:
            continue
        if member.best is None:
            _nothing(member.name)
            continue
        member.part()
        member.load_tensors(member.best.tensors)
        export_member(output / member.name, member, {"step": member.best.step, "metrics": member.best.metrics})
        if not quiet:
            print(output / member.name)
    return 0


def _nothing(name: str) -> None:
    print(f"{name}: not evaluated yet, nothing to export", file=sys.stderr)
