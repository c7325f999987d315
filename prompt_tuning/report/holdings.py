"""What a fleet holds in memory and what of it is trained, said and proved before training."""

from __future__ import annotations

import logging

from model_parallel.collectives import gather_objects
from model_parallel.memory import resident_bytes
from prompt_tuning.fleet.step import Fleet
from prompt_tuning.report.progress import size

logger = logging.getLogger(__name__)


def prove_frozen(fleet: Fleet) -> None:
    """Check that the backbone has no gradient, no gradient buffer and no optimizer state; say what is trained and held."""
    weights = list(fleet.backbone.model.parameters())
    if fleet.members[0].spec.config.method != "full":
        groups = [group for member in fleet.members for group in member.optimizer.param_groups]
        trained = {id(parameter) for group in groups for parameter in group["params"]}
        lora = {id(p) for member in fleet.members for p in (member.prompt.lora or {}).values()}
        loose = [
            w for w in weights if id(w) not in lora and (w.requires_grad or w.grad is not None or id(w) in trained)
        ]
        assert not loose, "the backbone is not frozen"
    total = fleet.backbone.num_parameters
    for member in fleet.members:
        count = sum(p.numel() for _, p in member.parameters)
        is_all = member.spec.config.method == "full"
        share = "all of the backbone's and a head's" if is_all else f"{100 * count / total:.3f} % of the backbone's"
        logger.info("%s: %s trained parameters, %s", member.name, f"{count:,}", share)
    _say_bytes(fleet)


def _say_bytes(fleet: Fleet) -> None:
    """One line on what each rank holds; ranks differ by little, so the largest number of each kind stands for all."""
    backbone, grid = fleet.backbone, fleet.grid
    trained = sum(p.numel() * p.element_size() for member in fleet.members for _, p in member.parameters)
    mine = (resident_bytes(backbone.model), backbone.bytes_read)
    held, read = (max(column) for column in zip(*gather_objects(mine, grid), strict=True))
    whole = backbone.num_parameters * next(backbone.model.parameters()).element_size()
    logger.info(
        "bytes per rank (tensor %d x data %d%s): backbone %s of %s (%.1f %%), trained %s, their gradients %s, AdamW %s;"
        " read %s",
        grid.tensor,
        grid.data,
        ", ZeRO-3" if backbone.zero else "",
        *(size(held), size(whole), 100 * held / whole, size(trained), size(trained), size(2 * trained), size(read)),
    )
