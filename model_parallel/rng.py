"""Random numbers as functions of (key, counter): no generator state, so ranks, fleets and resumes draw the same.

A 64-bit key names a purpose; element ``i`` of a draw is a bijective mix of ``key + i * GOLDEN`` (the SplitMix64
construction of Steele, Lea and Flood 2014, with the finaliser constants of Stafford's variant 13). All arithmetic wraps
modulo 2**64 in int64 tensors, on any device with the same bits.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator

import torch
from torch import Tensor


def _signed(value: int) -> int:
    return value - (1 << 64) if value >= 1 << 63 else value


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_MIX_1 = _signed(0xBF58476D1CE4E5B9)
_MIX_2 = _signed(0x94D049BB133111EB)


def key(*parts: int | str) -> int:
    """A 64-bit key (as a signed int) from names and numbers, for example ``key(seed, "order", epoch)``."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def _shift(x: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    x = (x ^ _shift(x, 30)) * _MIX_1
    x = (x ^ _shift(x, 27)) * _MIX_2
    return x ^ _shift(x, 31)


def bits(keys: Tensor | int, count: int, device: torch.device | str = "cpu", first: int = 0) -> Tensor:
    """``count`` 64-bit words per key, counted from ``first``: int64 [*keys.shape, count]."""
    if isinstance(keys, int):
        keys = torch.tensor(keys, device=device)
    counters = torch.arange(first + 1, first + count + 1, device=keys.device) * _GOLDEN
    return _mix(_mix(keys)[..., None] + counters)


def fold(keys: Tensor, data: Tensor | int) -> Tensor:
    """New keys from keys and whole numbers (both int64, broadcast against each other)."""
    data = torch.as_tensor(data, device=keys.device)
    return _mix(_mix(keys) + (data + 1) * _GOLDEN)


def uniform(key_: int, count: int) -> Tensor:
    """``count`` numbers in the open interval (0, 1): float64 [count] on the CPU."""
    return (_shift(bits(key_, count), 11).double() + 0.5) * 2.0**-53


def normal(key_: int, *shape: int, std: float = 1.0) -> Tensor:
    """Gaussian numbers by Box and Muller (1958): float64 [shape] on the CPU."""
    count = math.prod(shape)
    pairs = uniform(key_, 2 * count).view(2, count)
    return (std * torch.sqrt(-2 * torch.log(pairs[0])) * torch.cos(2 * math.pi * pairs[1])).view(shape)


def permutation(key_: int, count: int) -> Tensor:
    """A random order of ``range(count)``: int64 [count] on the CPU."""
    return torch.argsort(bits(key_, count), stable=True)


class Order:
    """The order of :func:`permutation`, of which a window is in memory at a time.

    Places are found by counting: the upper 16 bits of the words tell in which of 65,536 bins each falls, the bins' counts
    which bins a window needs, and those alone are sorted.
    """

    def __init__(self, key_: int, count: int, window: int = 1 << 18) -> None:
        self.key, self.count, self.window = key_, count, window
        self._first = 0
        self._order = permutation(key_, count) if count <= window else torch.empty(0, dtype=torch.int64)
        self._ends: Tensor | None = None

    def take(self, start: int, stop: int) -> Tensor:
        """The elements at places from ``start`` up to, not including, ``stop``: int64 [stop - start]."""
        stop = min(stop, self.count)
        if start < self._first or stop > self._first + len(self._order):
            self._load(start, stop)
        return self._order[start - self._first : stop - self._first]

    def _load(self, start: int, stop: int) -> None:
        if self._ends is None:
            counts = torch.zeros(1 << 16, dtype=torch.int64)
            for _, words in self._blocks():
                counts += torch.bincount((words >> 48) + (1 << 15), minlength=1 << 16)
            self._ends = counts.cumsum(0)
        stop = min(self.count, max(stop, start + self.window))
        low, high = torch.searchsorted(self._ends, torch.tensor([start, stop - 1]), right=True).tolist()
        indices, words_in = [], []
        for first, words in self._blocks():
            bins = (words >> 48) + (1 << 15)
            chosen = torch.nonzero((bins >= low) & (bins <= high))[:, 0]
            indices.append(first + chosen)
            words_in.append(words[chosen])
        self._order = torch.cat(indices)[torch.argsort(torch.cat(words_in), stable=True)]
        self._first = int(self._ends[low - 1]) if low else 0

    def _blocks(self, size: int = 1 << 18) -> Iterator[tuple[int, Tensor]]:
        for first in range(0, self.count, size):
            yield first, bits(self.key, min(size, self.count - first), first=first)


def keep_mask(keys: Tensor, count: int, rates: Tensor) -> Tensor:
    """Dropout masks: bool [rows, count], False with probability ``rates`` [rows], one key a row.

    Sixteen bits decide one element, so a rate is met to within 2**-17.
    """
    words = bits(keys, (count + 3) // 4)
    pieces = words.view(torch.int16)[:, :count]
    thresholds = torch.round(rates.double() * 65536 - 32768).clamp(max=32767).to(torch.int16)
    return pieces >= thresholds[:, None]
