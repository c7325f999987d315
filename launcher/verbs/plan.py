"""The verb ``plan``: where a run's backbone fits and how fast its steps would be, without a weight."""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from launcher.options import add_overrides, quantity
from prompt_tuning.errors import UserError

if TYPE_CHECKING:
    from prompt_tuning.placement.choose import Choice
    from prompt_tuning.placement.count import Cost, Machine
    from prompt_tuning.placement.outline import Outline

COLUMNS = ("placement", "process", "weights", "gathered", "arriving", "trained", "activations", "memory", "sends", "seconds",
           "examples/s", "fits")  # fmt: skip
"""Of the table; memory has the greater of what is arriving and of the activations."""

CUDA_CONTEXT = 600 * 10**6
"""Bytes that a process takes on a GPU before its first tensor, about."""


def add(verbs: Any) -> None:
    """Describe the verb to argparse."""
    verb = verbs.add_parser(
        "plan",
        help="say where a backbone fits and which placement is the fastest, loading nothing",
        description="Count what each placement of a run file's backbone takes: bytes on a rank, bytes over the wire, time of a"
        " step (a roofline; nothing overlaps). Reads the backbone's config.json and no weights. Rates that are not given are"
        " measured here, on one device.",
    )
    verb.add_argument("config", metavar="CONFIG")
    add_overrides(verb)
    verb.add_argument("--ranks", type=int, default=1, help="processes, one a device (default: 1)")
    verb.add_argument("--host-ranks", type=int, default=8, help="of them on one host (default: 8)")
    verb.add_argument("--device", choices=("cpu", "cuda"), help="what they run on (default: as here)")
    verb.add_argument(
        "--memory", metavar="24GiB", help="what a rank may take (default: what is free here, shared by the ranks)"
    )
    verb.add_argument(
        "--interconnect", metavar="100GB/s", help="between ranks of a host (default: an eighth of --bandwidth)"
    )
    verb.add_argument("--network", metavar="25GB/s", help="of a rank, between hosts (default: as --interconnect)")
    verb.add_argument(
        "--matrix-rate", metavar="400TFLOP/s", help="of one device in the backbone's type (default: measured)"
    )
    verb.add_argument("--bandwidth", metavar="2TB/s", help="of its memory (default: measured)")
    verb.add_argument(
        "--latency", type=float, default=2e-5, metavar="SECONDS", help="of a collective (default: %(default)s)"
    )
    verb.add_argument("--text", type=int, metavar="TOKENS", help="of every text (default: data.max_length)")
    verb.add_argument("--json", action="store_true", help="print the counted numbers as JSON")
    verb.set_defaults(call=run)


def run(options: argparse.Namespace) -> int:
    """Plan a run file."""
    from launcher.ranks.environment import Process, quiet_libraries, threads
    from prompt_tuning.settings.members import load_run

    for name in ("ranks", "host_ranks", "text"):
        if getattr(options, name) is not None and getattr(options, name) < 1:
            raise UserError(f"--{name.replace('_', '-')} {getattr(options, name)}: give at least 1")
    given = {
        name: quantity(getattr(options, name), name)
        for name in ("memory", "interconnect", "network", "matrix_rate", "bandwidth")
    }
    run = load_run(options.config, options.set)
    import torch

    from prompt_tuning.placement.choose import choose
    from prompt_tuning.placement.outline import Outline

    quiet_libraries()
    torch.set_num_threads(threads(Process()))
    outline = Outline(run, options.text)
    machine = _machine(options, given, outline)
    choice = choose(outline, machine)
    if options.json:
        print(json.dumps({"machine": asdict(machine), **_record(choice)}, indent=2))
    else:
        _show(outline, machine, choice)
    return 0


def _machine(options: argparse.Namespace, given: dict[str, float | None], outline: Outline) -> Machine:
    import torch

    from model_parallel.grid import local_device
    from model_parallel.memory import free_memory, process_memory
    from model_parallel.rates import matrix_rate, memory_rate
    from prompt_tuning.placement.count import Machine

    here = local_device(0)
    device = options.device or here.type
    if device != here.type and None in (given["matrix_rate"], given["bandwidth"], given["memory"]):
        raise UserError(
            f"--device {device}: there is none here to measure; give --memory, --matrix-rate and --bandwidth"
        )
    base = process_memory().get("anonymous", 0) if device == "cpu" else CUDA_CONTEXT
    free = given["memory"]
    if free is None:
        found = free_memory(here)
        if found is None:
            raise UserError("this system does not say how much memory is free; give --memory")
        free = (found + base) / (min(options.ranks, options.host_ranks) if device == "cpu" else 1)
    dtype = getattr(torch, outline.config.backbone.dtype)
    rate = given["matrix_rate"] or matrix_rate(outline.backbone_config.hidden_size, dtype, here)
    bandwidth = given["bandwidth"] or memory_rate(here)
    interconnect = given["interconnect"] or bandwidth / 8
    network = given["network"] or interconnect
    ranks = options.ranks
    return Machine(
        ranks, rate, bandwidth, interconnect, network, options.host_ranks, options.latency, int(free), base, device
    )


def _record(choice: Choice) -> dict[str, Any]:
    considered = [
        {**asdict(cost), "name": cost.placement.name, "memory": cost.memory, "wire": cost.wire}
        for cost in choice.considered
    ]
    return {
        "considered": considered,
        "taken": None if choice.taken is None else choice.taken.placement.name,
        "reason": choice.reason,
    }


def _show(outline: Outline, machine: Machine, choice: Choice) -> None:
    """The plan as a table and a sentence."""
    from launcher.pages.scores import print_table

    members = "1 member" if outline.num_members == 1 else f"{outline.num_members} members"
    title = f"{outline.config.backbone.path} on {machine.ranks} ranks, {members}: GB of a rank, GB it sends in a step, seconds of a step"
    console = print_table(title, COLUMNS, [_row(cost, machine, choice) for cost in choice.considered])
    console.print(
        f"A step has {outline.examples} examples of {outline.tokens_per_example} tokens (texts and prompts)."
        f" A device does {machine.matrix_rate / 1e12:.3g} TFLOP/s and moves {machine.bandwidth / 1e9:.3g} GB/s; ranks of a host"
        f" exchange {machine.interconnect / 1e9:.3g} GB/s, hosts {machine.network / 1e9:.3g} GB/s a rank."
    )
    console.print(f"{choice.reason}.", soft_wrap=True)
    if choice.taken is not None:
        console.print(f"Run it with: {choice.taken.placement.settings}", soft_wrap=True)


def _row(cost: Cost, machine: Machine, choice: Choice) -> list[str]:
    parts = (
        cost.base,
        cost.weights,
        cost.gathered,
        cost.arriving,
        cost.trained,
        cost.activations,
        cost.memory,
        cost.wire,
    )
    fits = "yes" if cost.memory <= machine.memory else "no"
    fits = "chosen" if cost is choice.taken else fits
    name = cost.placement.name
    if cost.placement.quantize != choice.considered[0].placement.quantize:
        name += f" (needs backbone.quantize={cost.placement.quantize})"
    return [
        name,
        *(f"{part / 1e9:.3g}" for part in parts),
        f"{cost.seconds:.3g}",
        f"{cost.examples / cost.seconds:.3g}",
        fits,
    ]
