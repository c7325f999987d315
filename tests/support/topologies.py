"""One backbone and one prompt over several topologies: forward and prefix gradients of each, to be compared."""

from __future__ import annotations

import hashlib
import warnings
from pathlib import Path
from types import MethodType
from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig

from model_parallel.collectives import gather_over_data_ranks, sum_gradients
from model_parallel.grid import Grid, make_grid
from prompt_tuning.backbone.load import Backbone, load_backbone
from prompt_tuning.forward.run import hidden_states
from prompt_tuning.settings.sections import BackboneSection, DeepSpeedSection
from tests.contracts.test_families import has_types, make_batch, make_prompt, prefix_gradients, ramp_loss

QUIET = DeepSpeedSection(stage3_prefetch_bucket_size=0).model_dump(exclude_none=True)


def open_sharded(
    folder: Path,
    grid: Grid,
    tensor: int,
    zero: bool,
    dtype: str = "float64",
    settings: Any = None,
    quantize: Any = None,
    **options: Any,
) -> Backbone:
    section = BackboneSection(path=str(folder), dtype=dtype, quantize=quantize)
    options.setdefault("language", is_two_sided(folder))
    shared = make_grid(grid.rank, grid.size, grid.device, tensor)
    warnings.simplefilter("ignore", FutureWarning)  # DeepSpeed calls torch by old names
    backbone = load_backbone(section, shared, zero=(settings or QUIET) if zero else None, **options)
    if dtype == "float64":
        exact_norms(backbone.model)
    return backbone


def is_two_sided(folder: Path) -> bool:
    """Whether a folder holds an encoder-decoder that was saved to write texts."""
    return any("ConditionalGeneration" in name for name in AutoConfig.from_pretrained(folder).architectures)


def exact_norms(model: Any) -> None:
    for module in model.modules():
        kind = type(module).__name__
        if kind.endswith("RMSNorm") or kind in ("CohereLayerNorm", "Cohere2LayerNorm"):
            module.forward = MethodType(_exact_norm, module)


def _exact_norm(module: Any, hidden: Tensor) -> Tensor:
    """RMSNorm, or Cohere's norm, in the type of its input.

    Stock ones round to float32, which turns a last bit of float64 into one of float32.
    """
    is_gemma = type(module).__name__.startswith("Gemma")
    if "LayerNorm" in type(module).__name__:
        hidden = hidden - hidden.mean(-1, keepdim=True)
    weight, epsilon = (1 + module.weight, module.eps) if is_gemma else (module.weight, module.variance_epsilon)
    return weight * hidden * torch.rsqrt(hidden.pow(2).mean(-1, keepdim=True) + epsilon)


def one_pass(backbone: Backbone, dropout: float = 0.0) -> list[Tensor]:
    """Hidden states of the real tokens, then the prefix gradients over all ranks, each rank running all rows.

    Every data rank counts 1 / (number of data ranks), so that the sum over the grid is one process's gradient.
    """
    prompt = make_prompt(backbone)
    prompt.dropout = dropout
    batch = make_batch([prompt], with_types=has_types(backbone), has_encoder=backbone.description.has_encoder)
    keys = torch.arange(len(batch.lengths)) if dropout else None
    with backbone.at_work():
        hidden = hidden_states(backbone, [prompt], batch, row_keys=keys)
        loss = ramp_loss(hidden, batch) / backbone.grid.data
        prefix_gradients(loss, [prompt])
    sum_gradients([prompt.prefix.embedding], [], backbone.grid)
    table = prompt.prefix.embedding.grad.view(prompt.length, -1, 2, prompt.prefix.shape.layer_width // 2)
    return [hidden.detach()[batch.tokens], *[table[:, n, side] for n in range(table.shape[1]) for side in range(2)]]


def digest(backbone: Backbone) -> str:
    """SHA-256 of this rank's own bytes of the backbone."""
    found = hashlib.sha256()
    for parameter in backbone.model.parameters():
        mine = getattr(parameter, "ds_tensor", parameter)
        found.update(mine.detach().contiguous().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()


def in_topologies(grid: Grid, folder: Path, topologies: list[tuple[int, bool]], quantize: Any = None) -> dict[Any, Any]:
    """By (tensor, zero, checkpointing): the tensors of :func:`one_pass`, whether bytes changed, bytes read."""
    found: dict[Any, Any] = {}
    for tensor, zero in topologies:
        for checkpointing in (False, True):
            backbone = open_sharded(
                folder, grid, tensor, zero, activation_checkpointing=checkpointing, quantize=quantize
            )
            before = digest(backbone)
            results = one_pass(backbone, dropout=0.3)
            same = gather_over_data_ranks(digest(backbone) == before, backbone.grid)
            found[tensor, zero, checkpointing] = (results, all(same), backbone.bytes_read)
    return found


def local_tensors(grid: Grid, folder: Path) -> dict[str, Tensor]:
    """This rank's parameters of a backbone over all ranks' tensor axis."""
    backbone = open_sharded(folder, grid, grid.size, False)
    return {name: parameter.detach() for name, parameter in backbone.model.named_parameters()}
