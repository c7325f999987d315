"""LoRA (Hu et al. 2021), a baseline: low-rank differences of the query and value projections of every layer, by PEFT.

The layers of the backbone itself get them, so that one backbone carries those of one prompt alone.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from model_parallel import rng
from prompt_tuning.backbone.load import Backbone
from prompt_tuning.errors import UserError

RANK = 8
"""Rank of the differences B A, which count with the factor 1 (alpha = rank): PEFT's defaults, and Hu et al.'s for RoBERTa-base."""


def start_lora(backbone: Backbone, seed: int) -> nn.ParameterDict:
    """Put untrained differences into a backbone; what is trained of them, ``<module>/A`` [r, in] and ``<module>/B`` [out, r].

    A is uniform as PEFT draws it, within the inverse square root of its width, and B is 0. Raises :class:`UserError`.
    """
    found = _inject(backbone, RANK)
    with torch.no_grad():
        for name, parameter in found.items():
            if name.endswith("/A"):
                drawn = 2 * rng.uniform(rng.key(seed, "init", f"lora/{name}"), parameter.numel()) - 1
                parameter.copy_((drawn / math.sqrt(parameter.shape[1])).view_as(parameter))
    return found


def put_lora(backbone: Backbone, trained: Mapping[str, Tensor]) -> None:
    """Put trained differences into a backbone. Raises :class:`UserError`."""
    ranks = {tensor.shape[0] for name, tensor in trained.items() if name.endswith("/A") and tensor.ndim == 2}
    found = _inject(backbone, ranks.pop() if len(ranks) == 1 else RANK)
    if {n: p.shape for n, p in found.items()} != {n: t.shape for n, t in trained.items()}:
        raise UserError(
            "method 'lora': the differences are not of this backbone's layers; export the prompt again, by its run"
        )
    with torch.no_grad():
        for name, parameter in found.items():
            parameter.copy_(trained[name])
            parameter.requires_grad_(False)


def read_lora(tensors: Mapping[str, Tensor]) -> nn.ParameterDict | None:
    """Those among a prompt's tensors by name; None: it has none."""
    found = {name.removeprefix("lora."): tensor for name, tensor in tensors.items() if name.startswith("lora.")}
    return nn.ParameterDict({name: nn.Parameter(tensor.clone()) for name, tensor in found.items()}) if found else None


def _inject(backbone: Backbone, rank: int) -> nn.ParameterDict:
    family, model = backbone.family, backbone.model
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise UserError("method 'lora' needs an extra package: pip install 'promptfleet[lora]'") from None
    names = {id(module): name for name, module in model.named_modules()}
    attention = {id(module): module for module in family.attention_modules(model)}  # layers may share one
    targets = [
        f"{names[key]}.{own}"
        for key, module in attention.items()
        for own in family.query_and_value
        if hasattr(module, own)
    ]
    if not targets:
        raise UserError(
            f"method 'lora': which layers of {model.config.model_type} make queries and values is not known;"
            " choose another method"
        )
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, lora_dropout=0.0, target_modules=targets), model)
    found = nn.ParameterDict()
    for target in targets:
        layer = model.get_submodule(target)
        for name, part in (("A", layer.lora_A), ("B", layer.lora_B)):
            part.to(backbone.grid.device, backbone.prompt_dtype)
            found[f"{target.replace('.', '/')}/{name}"] = part["default"].weight
    return found
