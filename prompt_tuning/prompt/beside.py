"""What a member trains beside its prompt: deltas of the frozen backbone's bias and norm vectors, 0 at the start."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from prompt_tuning.backbone.deltas import Deltas
from prompt_tuning.errors import UserError


class Beside(nn.Module):
    """One trained vector, ``delta`` [all lengths], that holds a delta for each of some vectors of the backbone.

    ``lengths``: of these vectors, by the backbone's own names. ``first_layer``: the lowest layer in which one stands; -1:
    below all of them.
    """

    def __init__(self, lengths: Mapping[str, int], dtype: torch.dtype, first_layer: int = -1) -> None:
        super().__init__()
        self.lengths, self.first_layer = dict(sorted(lengths.items())), first_layer
        self.delta = nn.Parameter(torch.zeros(sum(self.lengths.values()), dtype=dtype))

    def vectors(self) -> dict[str, Tensor]:
        """The deltas by the names of what they are added to; differentiable."""
        # Split at once: the gradient of a slice would be as large as all.
        return dict(zip(self.lengths, self.delta.split(list(self.lengths.values())), strict=True))

    @torch.no_grad()
    def fill(self, vectors: Mapping[str, Tensor]) -> None:
        """Set those of its deltas that are given, by name."""
        for name, own in self.vectors().items():
            if name in vectors:
                own.copy_(vectors[name])


def build_beside(
    also: Sequence[str], layers: Sequence[int] | None, deltas: Deltas, dtype: torch.dtype, where: str
) -> Beside:
    """Deltas of the kinds ``also``, in some layers or in all and what stands before and behind them.

    Raises :class:`UserError` where the backbone at ``where`` has no vector of a kind.
    """
    found: dict[str, int] = {}
    lowest = []
    for kind in also:
        own = {
            name: vector
            for name, vector in deltas.vectors.items()
            if vector.kind == kind and (layers is None or vector.layer in layers)
        }
        if not own:
            place = "" if layers is None else f" in the layers {', '.join(map(str, layers))}"
            others = [other for other in also if other != kind]
            remedy = f"set it to {others}" if others else "leave it out"
            raise UserError(f"train.also={list(also)}: {where} has no {kind}{place} to train; {remedy}")
        found |= {name: vector.length for name, vector in own.items()}
        lowest += [-1 if vector.layer is None else vector.layer for vector in own.values()]
    return Beside(found, dtype, min(lowest))
