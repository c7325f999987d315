"""A word before a run is loaded, where its steps may take more memory than there is."""

from __future__ import annotations

import logging
from pathlib import Path

from model_parallel.grid import Grid
from model_parallel.memory import free_memory, process_memory
from prompt_tuning.backbone.find import Description
from prompt_tuning.errors import reason
from prompt_tuning.forward.plan import default_budget
from prompt_tuning.placement.count import Machine, Placement, count
from prompt_tuning.placement.outline import Outline
from prompt_tuning.report.progress import size
from prompt_tuning.settings.run import Run

logger = logging.getLogger(__name__)

NUMBERS_PER_TOKEN = 40
"""More than any family keeps of a token in a layer from forward to backward, in hidden sizes."""


def foresee(run: Run, described: Description, longest: int, grid: Grid) -> None:
    """Warn where the peak of a step, counted before anything is loaded, exceeds this rank's part of the free memory.

    ``longest``: tokens of the longest text. Counting takes seconds, so it is left out where a bound that takes none has room. It
    never stops a run.
    """
    free = free_memory(grid.device)
    if free is None or run.shared.method not in ("deep_prompt", "shallow_prompt", "head"):
        return
    own = free // (grid.size if grid.device.type == "cpu" else 1)
    if _bound(run, described, longest, grid) <= own:
        return
    try:
        shared = run.shared
        placement = Placement(
            grid.tensor, shared.parallel.zero, shared.train.activation_checkpointing, shared.backbone.quantize
        )
        base = process_memory().get("anonymous", 0) if grid.device.type == "cpu" else 0
        machine = Machine(grid.size, 1.0, 1.0, 1.0, 1.0, grid.size, 0.0, own + base, base, grid.device.type)
        cost = count(Outline(run, longest), placement, machine)
    except Exception as error:  # models raise kinds of their own on paper, and the run itself may still be right
        logger.info("how much memory a step takes could not be counted: %s", reason(error))
        return
    if cost.memory > machine.memory:
        logger.warning(
            "a step may take %s on a rank, where %s are free: %s; `promptfleet plan` compares placements",
            size(cost.memory - base),
            size(own),
            _remedy(placement, cost.activations > cost.weights),
        )


def _bound(run: Run, described: Description, longest: int, grid: Grid) -> int:
    """Bytes that a rank surely does not exceed."""
    config, shared = described.config, run.shared
    files = sum(Path(file).stat().st_size for file in described.folder.glob("*.safetensors"))
    budget = shared.train.tokens_per_batch or default_budget(grid.device, shared.parallel.zero)
    tokens = max(budget, longest + shared.prompt.length)
    width: int = max(config.hidden_size, getattr(config, "intermediate_size", 0) // 4)
    return 2 * files + 4 * NUMBERS_PER_TOKEN * tokens * (described.family.num_layers(config) + 1) * width


def _remedy(placement: Placement, is_activations: bool) -> str:
    if is_activations and not placement.checkpointing:
        return "set train.activation_checkpointing or lower train.tokens_per_batch"
    if is_activations:
        return "lower train.tokens_per_batch"
    return "set backbone.quantize, or share the backbone among more ranks by parallel.tensor or parallel.zero"
