"""Layers over frozen plain tensors: their weights never get a gradient, and each rank holds its own cut of them.

A column-parallel layer is a :class:`FrozenLinear` with some of the outputs; what enters it passes
``enter_tensor_ranks`` once for all layers that share the input.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from model_parallel.collectives import sum_over_tensor_ranks


class _FrozenProduct(torch.autograd.Function):
    """x W^T whose backward refers to the parameter itself.

    Autograd would keep a view of the gathered weight alive from forward to backward, so that ZeRO-3 could free nothing.
    """

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, weight: nn.Parameter, bias: Tensor | None, transposed: bool) -> Tensor:
        ctx.weight, ctx.transposed = weight, transposed
        return nn.functional.linear(inputs, weight.t() if transposed else weight, bias)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        weight = ctx.weight.detach()
        return gradients[0] @ (weight.t() if ctx.transposed else weight), None, None, None


class FrozenLinear(nn.Module):
    """``x W^T + b`` for x [..., in]; weight [out, in], or [in, out] if ``transposed`` (GPT-2's Conv1D)."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, transposed: bool = False) -> None:
        super().__init__()
        self.weight, self.bias, self.transposed = weight, bias, transposed

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., out] from [..., in]."""
        product: Tensor = _FrozenProduct.apply(inputs, self.weight, self.bias, self.transposed)
        return product


class RowParallelLinear(FrozenLinear):
    """A linear layer of which each tensor rank has some of the inputs; the whole bias is added once, after the sum."""

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, transposed: bool, group: Any) -> None:
        super().__init__(weight, bias, transposed)
        self.group = group

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., out], the same on every tensor rank, from this rank's part of the inputs [..., part of in]."""
        part: Tensor = _FrozenProduct.apply(inputs, self.weight, None, self.transposed)
        total = sum_over_tensor_ranks(part, self.group)
        return total if self.bias is None else total + self.bias


class VocabularyParallelEmbedding(nn.Module):
    """An embedding of which each tensor rank has the rows ``first`` to ``first + len(weight)``, its vectors times ``scale``."""

    def __init__(
        self, weight: nn.Parameter, num_embeddings: int, first: int, group: Any, scale: float | None = None
    ) -> None:
        super().__init__()
        # Rounded to the weights' type, as the whole embedding has it.
        self.scale = None if scale is None else torch.tensor(scale, dtype=weight.dtype).item()
        self.weight, self.num_embeddings, self.first, self.group = weight, num_embeddings, first, group
        self.rows = weight.shape[0]

    def forward(self, ids: Tensor) -> Tensor:
        """Vectors [..., hidden] of token ids [...], the same on every tensor rank."""
        local = ids - self.first
        is_mine = (local >= 0) & (local < self.rows)
        found = nn.functional.embedding(local.masked_fill(~is_mine, 0), self.weight)
        total = sum_over_tensor_ranks(found.masked_fill(~is_mine[..., None], 0), self.group)
        return total if self.scale is None else total * self.scale
