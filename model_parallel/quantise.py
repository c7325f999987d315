"""Frozen weights as codes and scales: int8 rows, and NF4 (Dettmers et al. 2023, QLoRA, section 3 and appendix E).

A weight [out, in] is quantised in blocks of neighbouring inputs of one output: w = code * scale. The scale has the weight's own
type, and codes are chosen for the scale as rounded to it. Blocks depend on the whole layer alone, so that a rank that has a part
of it finds the same codes.
"""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

_BLOCK = 64
_CHUNK = 2**20
"""Numbers that are converted at a time: what is needed beside the result stays in a processor's cache."""


@dataclass(frozen=True)
class Scheme:
    """A way to store a weight in fewer bytes."""

    name: str
    to_codes: Callable[[Tensor], Tensor]
    """int8 or uint8 [rows, n] of numbers [rows, in] between -1 and 1."""
    from_codes: Callable[[Tensor, torch.dtype], Tensor]
    """Numbers [rows, in] of a type, which are times the scale, of codes [rows, n]."""
    largest: int
    """The number that a block's largest magnitude becomes."""

    def quantise(self, weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Codes [out, n] and scales [out, in / block], of the weight's type, of a weight [out, in]."""
        exact = torch.promote_types(weight.dtype, torch.float32)
        codes, scales = [], []
        for part in _parts(weight):
            blocks = part.to(exact).unflatten(1, (-1, block))
            scale = (blocks.abs().amax(2) / self.largest).to(weight.dtype)
            unit = (scale.to(exact) * self.largest)[:, :, None]
            # A block of zeros has the scale 0 and any codes.
            shares = blocks.div(unit.clamp_min(torch.finfo(exact).tiny)).clamp_(-1, 1)
            codes.append(self.to_codes(shares.flatten(1)))
            scales.append(scale)
        return torch.cat(codes), torch.cat(scales)

    def empty(self, weight: Tensor, block: int) -> tuple[Tensor, Tensor]:
        """Codes and scales of a weight [out, in], which hold nothing yet."""
        rows, inputs = weight.shape
        one = self.to_codes(weight.new_empty(1, inputs, dtype=torch.float32))
        return one.new_empty(rows, one.shape[1]), weight.new_empty(rows, inputs // block)

    def dense(self, codes: Tensor, scales: Tensor) -> Tensor:
        """The weight [out, in] of the scales' type."""
        numbers = self.from_codes(codes, scales.dtype)
        numbers.unflatten(1, (scales.shape[1], -1)).mul_(scales[:, :, None])
        return numbers


def block_size(inputs: int) -> int:
    """Neighbouring inputs that share a scale: up to 64, and such that 4 tensor ranks have whole blocks."""
    return math.gcd(_BLOCK, inputs // 4 if inputs % 4 == 0 else inputs)


def _parts(matrix: Tensor) -> Iterator[Tensor]:
    return iter(matrix.split(max(1, _CHUNK // max(1, matrix.shape[1]))))


def _to_int8(shares: Tensor) -> Tensor:
    return shares.mul(127).round_().to(torch.int8)


def _from_int8(codes: Tensor, dtype: torch.dtype) -> Tensor:
    return codes.to(dtype)


@functools.cache
def nf4_levels() -> tuple[float, ...]:
    """The 16 levels: quantiles of the normal distribution, 0 among them, over the largest; more of them above 0 than below.

    Between 1/2 and (1 - 1/30 + 1 - 1/32) / 2 in equal steps of probability, 8 above 0 and 7 below (appendix E).
    """
    last = 1 - (1 / 30 + 1 / 32) / 2
    positive, negative = (
        [NormalDist().inv_cdf(0.5 + (last - 0.5) * i / count) for i in range(1, count + 1)] for count in (8, 7)
    )
    return tuple(level / positive[-1] for level in (*(-x for x in reversed(negative)), 0.0, *positive))


def _to_nf4(shares: Tensor) -> Tensor:
    """Two codes a byte, the first in the high half."""
    codes = torch.zeros(shares.shape, dtype=torch.uint8, device=shares.device)
    for low, high in itertools.pairwise(nf4_levels()):
        # A comparison for each level takes half the time of torch.bucketize.
        codes += (shares > (low + high) / 2).view(torch.uint8)
    return codes[:, ::2] << 4 | codes[:, 1::2]


_PAIR = {2: torch.int32, 4: torch.int64, 8: torch.complex128}
"""A type as wide as two numbers of so many bytes."""


def _from_nf4(codes: Tensor, dtype: torch.dtype) -> Tensor:
    levels = torch.tensor(nf4_levels(), dtype=dtype, device=codes.device)
    # [256] Both numbers of every byte, looked up as one.
    table = torch.stack([levels.repeat_interleave(16), levels.repeat(16)], 1).view(_PAIR[dtype.itemsize])[:, 0]
    found = torch.empty(codes.shape, dtype=table.dtype, device=codes.device)
    for part, own in zip(_parts(codes), _parts(found), strict=True):
        torch.index_select(table, 0, part.flatten().int(), out=own.view(-1))
    return found.view(dtype)


SCHEMES = {
    "int8": Scheme("int8", _to_int8, _from_int8, 127),
    "nf4": Scheme("nf4", _to_nf4, _from_nf4, 1),
}
