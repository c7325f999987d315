"""Modules whose class is ours over packed tokens, and transformers' own while it writes texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn

_STOCK = "transformers_class"


def swap(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another class, until :func:`as_stock`."""
    module.__dict__[_STOCK] = type(module)
    module.__class__ = kind


@contextmanager
def as_stock(model: nn.Module) -> Iterator[None]:
    """Every swapped module of a model has transformers' class while this is open."""
    ours = [(module, type(module)) for module in model.modules() if _STOCK in module.__dict__]
    for module, _ in ours:
        module.__class__ = module.__dict__[_STOCK]
    try:
        yield
    finally:
        for module, kind in ours:
            module.__class__ = kind
