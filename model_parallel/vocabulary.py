"""The output embedding over tensor ranks, whose logits are never put together to score a token.

Shape letters: A tokens, H hidden size, V vocabulary, v of it on this rank.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model_parallel.collectives import (
    enter_tensor_ranks,
    gather_over_tensor_ranks,
    max_over_tensor_ranks,
    sum_over_tensor_ranks,
)
from model_parallel.grid import Grid
from model_parallel.plan import vocabulary_range


class VocabularyParallelOutput(nn.Module):
    """``x W^T + b`` for x [..., H], equal on all tensor ranks: the logits [..., v] of this rank's part of the ``size`` tokens.

    ``weight`` [v, H] and ``bias`` [v] are cut as an embedding's rows are.
    """

    def __init__(self, weight: nn.Parameter, bias: nn.Parameter | None, size: int, grid: Grid) -> None:
        super().__init__()
        self.weight, self.bias, self.size, self.grid = weight, bias, size, grid
        self.first, _ = vocabulary_range(size, grid.tensor_rank, grid.tensor)

    @property
    def most(self) -> int:
        """The most tokens that a rank has, the same number on each."""
        return -(-self.size // self.grid.tensor)

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits [..., v]; the gradient of the inputs is summed over the tensor ranks."""
        return nn.functional.linear(enter_tensor_ranks(inputs, self.grid.tensor_group), self.weight, self.bias)

    def log_probabilities(self, logits: Tensor, wanted: Tensor) -> Tensor:
        """Natural logarithm of the probability of each wanted token [A] or, several in each place, [A, k], int64, over all ranks'
        logits, of which these [A, v] are mine.

        Differentiable in them, and the same on every tensor rank.
        """
        group = self.grid.tensor_group
        shifted = logits - max_over_tensor_ranks(logits.detach().amax(-1), group)[:, None]
        local = wanted.view(len(wanted), -1) - self.first
        is_mine = (local >= 0) & (local < logits.shape[1])
        chosen = shifted.gather(1, local.masked_fill(~is_mine, 0)).masked_fill(~is_mine, 0)
        summed = sum_over_tensor_ranks(torch.cat([shifted.exp().sum(-1, keepdim=True), chosen], 1), group)
        found: Tensor = summed[:, 1:] - summed[:, :1].log()
        return found.view(wanted.shape)

    def whole(self, logits: Tensor) -> Tensor:
        """Logits [..., V], the same bits on every tensor rank, from each one's [..., v]; no gradient."""
        parts = gather_over_tensor_ranks(nn.functional.pad(logits, (0, self.most - logits.shape[-1])), self.grid)
        ranges = [vocabulary_range(self.size, rank, self.grid.tensor) for rank in range(self.grid.tensor)]
        return torch.cat([part[..., : end - first] for part, (first, end) in zip(parts, ranges, strict=True)], -1)
