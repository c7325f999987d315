"""Surgery on a model that is still on ``meta``: its layers become this rank's cuts of them."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model_parallel.collectives import enter_tensor_ranks
from model_parallel.grid import Grid, TopologyError
from model_parallel.layers import FrozenLinear, RowParallelLinear, VocabularyParallelEmbedding
from model_parallel.plan import Plan, Ranges, Rule, Sizes, columns, cut_ranges, head_range, matches, vocabulary_range
from model_parallel.quantise import SCHEMES, block_size
from model_parallel.vocabulary import VocabularyParallelOutput


@dataclass(frozen=True)
class Cut:
    """What a rank keeps of one tensor: the ranges along one dimension."""

    dimension: int
    ranges: Ranges


def shard_modules(
    model: nn.Module, plan: Plan, sizes: Sizes, grid: Grid, freeze: bool = False, quantize: str | None = None
) -> dict[str, Cut]:
    """Replace the layers that ``plan`` cuts by this rank's; returns the cut of every tensor that is not whole, by name.

    ``freeze`` replaces the other linear layers too, so that none holds its weight from forward to backward.
    ``quantize`` names what all linear layers turn their weights into when they get them.
    Raises :class:`TopologyError` before anything is allocated.
    """
    cuts: dict[str, Cut] = {}
    entered: set[str] = set()
    for name, module in list(model.named_modules()):
        rule = plan.rule(name)
        is_cut = grid.tensor > 1 and rule is not None and rule.cut != "whole"
        if is_cut and rule is not None:
            _replace(model, name, _cut_module(name, module, rule, sizes, grid, cuts, quantize))
            if rule.cut == "columns":
                entered.add(name if rule.alone else name.rpartition(".")[0])
        elif (freeze or quantize) and (isinstance(module, nn.Linear) or (rule is not None and rule.transposed)):
            weight, bias = module.weight, module.bias
            assert isinstance(weight, nn.Parameter) and (bias is None or isinstance(bias, nn.Parameter))
            transposed = rule is not None and rule.transposed
            quantised = _quantised(name, weight.shape[int(not transposed)], quantize)
            _replace(model, name, FrozenLinear(weight, bias, transposed, **quantised))
    for name in entered:
        model.get_submodule(name).register_forward_pre_hook(_entering(grid.tensor_group), with_kwargs=True)
    if grid.tensor > 1:
        for name in plan.enters:
            model.get_submodule(name).register_forward_hook(_entered(grid.tensor_group))
        _divide_vectors(model, plan, sizes, grid, cuts)
        _divide_attributes(model, plan, sizes, grid)
    return cuts


def _cut_module(
    name: str,
    module: nn.Module,
    rule: Rule,
    sizes: Sizes,
    grid: Grid,
    cuts: dict[str, Cut],
    quantize: str | None,
) -> FrozenLinear | VocabularyParallelEmbedding:
    weight, bias = module.weight, getattr(module, "bias", None)
    assert isinstance(weight, nn.Parameter)
    dimension = int((rule.cut == "rows") != rule.transposed) if rule.cut != "vocabulary" else 0
    length = weight.shape[dimension]
    ranges = cut_ranges(rule, length, sizes, grid.tensor_rank, grid.tensor, name)
    cuts[f"{name}.weight"] = cut = Cut(dimension, ranges)
    assert bias is None or isinstance(bias, nn.Parameter)
    local = _shrunk(weight, cut)
    if rule.cut == "vocabulary":
        return VocabularyParallelEmbedding(local, length, ranges[0][0], grid.tensor_group, _scale(module, weight.dtype))
    quantised = _quantised(name, weight.shape[int(not rule.transposed)], quantize)
    if rule.cut == "rows":
        block = quantised.get("block", 1)
        if any(place % block for kept in ranges for place in kept):
            raise TopologyError(
                f"parallel.tensor={grid.tensor} cuts the {length} inputs of {name} within blocks of {block}, which"
                f" backbone.quantize={quantize!r} keeps whole; use fewer tensor ranks or no quantisation"
            )
        return RowParallelLinear(local, bias, rule.transposed, grid.tensor_group, **quantised)
    if bias is not None:
        cuts[f"{name}.bias"] = cut = Cut(0, ranges)
        bias = _shrunk(bias, cut)
    return FrozenLinear(local, bias, rule.transposed, **quantised)


def _scale(embedding: nn.Module, dtype: torch.dtype) -> float | None:
    """By what an embedding multiplies its vectors."""
    rounded = getattr(embedding, "scalar_embed_scale", None)
    if rounded is not None:  # Gemma's is rounded to the weights' type
        return float(torch.tensor(rounded, dtype=dtype))
    return getattr(embedding, "embed_scale", None)


def share_output(model: nn.Module, name: str, grid: Grid) -> dict[str, Cut]:
    """Replace an output embedding, a linear layer, by this tensor rank's part of its vocabulary; returns its cuts by name.

    A weight that is not on ``meta`` is another module's and the part already.
    """
    layer = model.get_submodule(name)
    assert isinstance(layer, nn.Linear) and isinstance(layer.weight, nn.Parameter)
    cut = Cut(0, (vocabulary_range(layer.out_features, grid.tensor_rank, grid.tensor),))
    cuts = {f"{name}.{kind}": cut for kind, tensor in layer.named_parameters() if tensor.is_meta}
    weight: nn.Parameter = _shrunk(layer.weight, cut) if layer.weight.is_meta else layer.weight
    bias = None if layer.bias is None else _shrunk(layer.bias, cut)
    _replace(model, name, VocabularyParallelOutput(weight, bias, layer.out_features, grid))
    return cuts


def _quantised(name: str, inputs: int, quantize: str | None) -> dict[str, Any]:
    """What a layer with so many inputs over all ranks is told of its quantisation."""
    if quantize is None:
        return {}
    if quantize == "nf4" and inputs % 2:
        raise TopologyError(f"backbone.quantize='nf4' stores inputs in pairs, and {name} has {inputs}; use 'int8'")
    return {"scheme": SCHEMES[quantize], "block": block_size(inputs)}


def _shrunk(tensor: Tensor, cut: Cut) -> nn.Parameter:
    shape = list(tensor.shape)
    shape[cut.dimension] = sum(end - start for start, end in cut.ranges)
    return nn.Parameter(torch.empty(shape, dtype=tensor.dtype, device=tensor.device), requires_grad=False)


def _replace(model: nn.Module, name: str, new: nn.Module | nn.Parameter) -> None:
    parent, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(parent), attribute, new)


def _entering(group: Any) -> Callable[..., Any]:
    """A hook that passes a module's input, which all its column-parallel layers share, through ``enter_tensor_ranks``."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        if args:
            return (enter_tensor_ranks(args[0], group), *args[1:]), kwargs
        return args, {**kwargs, "hidden_states": enter_tensor_ranks(kwargs["hidden_states"], group)}

    return hook


def _entered(group: Any) -> Callable[..., Any]:
    """A hook that passes a module's output through ``enter_tensor_ranks``, once for all layers that take it."""

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return enter_tensor_ranks(output, group)

    return hook


def _divide_vectors(model: nn.Module, plan: Plan, sizes: Sizes, grid: Grid, cuts: dict[str, Cut]) -> None:
    for name, vector in list(model.named_parameters()):
        for pattern in plan.vectors:
            if matches(name, pattern):
                ranges = cut_ranges(columns(name), len(vector), sizes, grid.tensor_rank, grid.tensor, name)
                cuts[name] = Cut(0, ranges)
                _replace(model, name, _shrunk(vector, cuts[name]))


def _divide_attributes(model: nn.Module, plan: Plan, sizes: Sizes, grid: Grid) -> None:
    first, last = head_range(sizes.key_value_heads, grid.tensor_rank, grid.tensor)
    for module in model.modules():
        if hasattr(module, "num_key_value_heads"):
            setattr(module, "num_key_value_heads", last - first)  # noqa: B010  mypy
        # The attribute by which transformers' attention repeats key/value heads.
        if hasattr(module, "num_key_value_groups"):
            setattr(module, "num_key_value_groups", sizes.heads // grid.tensor // (last - first))  # noqa: B010  mypy
    for pattern, names in plan.divided:
        found = [module for name, module in model.named_modules() if matches(name, pattern)]
        assert found, f"no module matches {pattern}"
        for module in found:
            for name in names:
                owner: Any = module
                if name.startswith("config."):
                    # A module that reads a number of heads there has a config of its own, whose number is its share.
                    name = name.removeprefix("config.")
                    owner = module.config = copy.copy(module.config)
                setattr(owner, name, getattr(owner, name) // grid.tensor)
