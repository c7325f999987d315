"""What a computation on tensors without storage would take: memory, operations and memory traffic, counted as it runs.

Under :func:`on_paper` tensors have shapes, types and a device, but no numbers, so a model of any size runs forward and backward
in seconds.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, cast

import torch
from torch import Tensor
from torch._subclasses import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry, sdpa_backward_flop_count, sdpa_flop_count


def on_paper() -> AbstractContextManager[Any]:
    """Tensors that are made in here have no storage."""
    return FakeTensorMode(allow_non_fake_inputs=True)


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_flop_count(query, key, value))


def _attention_backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(sdpa_backward_flop_count(gradient, query, key, value))


ATTENTION: dict[Any, Callable[..., int]] = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
"""Operations of the fused attention for processors, from shapes; torch's counter knows that of other devices only."""


class Tally(TorchDispatchMode):
    """Counts what runs inside it: the most bytes that its own tensors took at once, and each operator's work.

    ``work`` is how often an operator ran that did so many floating-point operations (a multiplication and an addition are two)
    and read and wrote so many bytes. Views cost nothing.
    """

    def __init__(self) -> None:
        super().__init__()
        self.live_bytes = self.peak_bytes = 0
        self.work: Counter[tuple[int, int]] = Counter()
        self._seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        made = [leaf for leaf in tree_leaves(found) if isinstance(leaf, Tensor)]
        for tensor in given:
            self._is_new(tensor, counts=False)
        new = [tensor for tensor in made if self._is_new(tensor)]
        packet = func._overloadpacket
        operations = 0
        if packet in ATTENTION:
            shapes = [leaf.shape if isinstance(leaf, Tensor) else leaf for leaf in args]
            operations = ATTENTION[packet](*shapes)
        elif packet in flop_registry:
            operations = int(cast(Any, flop_registry[packet])(*args, **kwargs, out_val=found))
        if new or operations or func._schema.is_mutable:
            self.work[operations, sum(tensor.nbytes for tensor in (*given, *made))] += 1
        self.peak_bytes = max(self.peak_bytes, self.live_bytes)
        return found

    def _is_new(self, tensor: Tensor, counts: bool = True) -> bool:
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes() if counts else 0
        if key in self._seen:
            return False
        self._seen.add(key)
        self.live_bytes += size
        weakref.finalize(storage, self._free, key, size)
        return True

    def _free(self, key: int, size: int) -> None:
        self._seen.discard(key)
        self.live_bytes -= size
