"""Layers over frozen plain tensors: their weights never get a gradient, and each rank holds its own cut of them.

A column-parallel layer is a :class:`FrozenLinear` with some of the outputs; what enters it passes
``enter_tensor_ranks`` once for all layers that share the input.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from model_parallel.collectives import sum_over_tensor_ranks
from model_parallel.quantise import Scheme


class _FrozenProduct(torch.autograd.Function):
    """x W^T whose backward asks the layer for its weight again.

    Autograd would keep a view of the gathered weight alive from forward to backward, so that ZeRO-3 could free nothing, and
    all dense weights of a quantised model.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, layer: FrozenLinear, bias: Tensor | None) -> Tensor:
        ctx.layer = layer
        return nn.functional.linear(inputs, layer.dense(), bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0] @ ctx.layer.dense(), None, None


class FrozenLinear(nn.Module):
    """``x W^T + b`` for x [..., in]; weight [out, in], or [in, out] if ``transposed`` (GPT-2's Conv1D).

    One with a ``scheme`` turns its weight into codes and scales by blocks of ``block`` inputs as soon as it is loaded.
    """

    weight: nn.Parameter | None

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        transposed: bool = False,
        scheme: Scheme | None = None,
        block: int = 0,
    ) -> None:
        super().__init__()
        self.weight, self.bias, self.transposed = weight, bias, transposed
        self.scheme, self.block = scheme, block
        self._read: Callable[[], Tensor] | None = None
        self.is_exact = False
        """Whether a quantised layer reads its full weight anew whenever it is asked, and keeps none."""

    def take(self, weight: Tensor, read: Callable[[], Tensor] | None, is_loaded: bool = True) -> list[nn.Parameter]:
        """Keep a weight as codes and scales, which are returned; ``read`` gives the weight again.

        Those of a weight that is not loaded hold nothing: another rank's will be received, or its size alone counts.
        """
        assert self.scheme is not None
        convert = self.scheme.quantise if is_loaded else self.scheme.empty
        found = convert(weight.t() if self.transposed else weight, self.block)
        self.codes, self.scales = (nn.Parameter(tensor, requires_grad=False) for tensor in found)
        self.weight, self._read = None, read
        return [self.codes, self.scales]

    def dense(self) -> Tensor:
        """[out, in], not to be kept."""
        if self.weight is None and not self.is_exact:
            assert self.scheme is not None
            return self.scheme.dense(self.codes.detach(), self.scales.detach())
        if self.weight is None:
            assert self._read is not None
            weight = self._read()
        else:
            weight = self.weight.detach()
        return weight.t() if self.transposed else weight

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., out] from [..., in]."""
        product: Tensor = _FrozenProduct.apply(inputs, self, self.bias)
        return product


class RowParallelLinear(FrozenLinear):
    """A linear layer of which each tensor rank has some of the inputs; the whole bias is added once, after the sum."""

    def __init__(
        self,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        transposed: bool,
        group: Any,
        scheme: Scheme | None = None,
        block: int = 0,
    ) -> None:
        super().__init__(weight, bias, transposed, scheme, block)
        self.group = group

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., out], the same on every tensor rank, from this rank's part of the inputs [..., part of in]."""
        part: Tensor = _FrozenProduct.apply(inputs, self, None)
        total = sum_over_tensor_ranks(part, self.group)
        return total if self.bias is None else total + self.bias


def quantised(model: nn.Module) -> Iterator[FrozenLinear]:
    """The layers that store their weights as codes."""
    for module in model.modules():
        if isinstance(module, FrozenLinear) and module.scheme is not None:
            yield module


def stored_bytes(model: nn.Module) -> int:
    """Bytes of the parameters of a model on ``meta`` once they are loaded: of quantised layers, those of codes and scales."""
    layers = [(layer, layer.weight) for layer in quantised(model) if layer.weight is not None]
    dense = {id(weight) for _, weight in layers}
    total = sum(parameter.nbytes for parameter in model.parameters() if id(parameter) not in dense)
    for layer, weight in layers:
        assert layer.scheme is not None
        parts = layer.scheme.empty(weight.t() if layer.transposed else weight, layer.block)
        total += sum(part.nbytes for part in parts)
    return total


@contextmanager
def full_precision(model: nn.Module) -> Iterator[None]:
    """Forwards and backwards inside use the weights that quantised layers were made from, one layer's at a time, from the files."""
    layers = list(quantised(model))
    for layer in layers:
        layer.is_exact = True
    try:
        yield
    finally:
        for layer in layers:
            layer.is_exact = False


class VocabularyParallelEmbedding(nn.Module):
    """An embedding of which each tensor rank has the rows ``first`` to ``first + len(weight)``, its vectors times ``scale``."""

    def __init__(
        self, weight: nn.Parameter, num_embeddings: int, first: int, group: Any, scale: float | None = None
    ) -> None:
        super().__init__()
        self.weight, self.num_embeddings, self.first, self.group = weight, num_embeddings, first, group
        self.scale = scale
        self.rows = weight.shape[0]

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [..., hidden] of token ids [...], the same on every tensor rank."""
        local = ids - self.first
        is_mine = (local >= 0) & (local < self.rows)
        found = nn.functional.embedding(local.masked_fill(~is_mine, 0), self.weight)
        total = sum_over_tensor_ranks(found.masked_fill(~is_mine[..., None], 0), self.group)
        return total if self.scale is None else total * self.scale
