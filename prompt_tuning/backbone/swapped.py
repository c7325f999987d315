"""Modules whose class is ours over packed tokens, and transformers' own while it writes texts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn
from transformers import PreTrainedModel

_STOCK = "transformers_class"


def swap(module: nn.Module, kind: type[nn.Module]) -> None:
    """Give a module another class, until :func:`as_stock`."""
    module.__dict__[_STOCK] = type(module)
    module.__class__ = kind


def mix_in(model: PreTrainedModel, kind: type) -> None:
    """Swap a class of ours in before a model's own, under the same name: a saved config.json names the class."""
    swap(model, type(type(model).__name__, (kind, type(model)), {}))


def read_words_once(model: PreTrainedModel, *stacks: nn.Module) -> None:
    """Files hold the word embedding of these stacks once, by the model's own name; transformers' forward finds it in each."""
    for stack in stacks:
        del stack.embed_tokens
        # Unregistered, and found when it is asked: tensor ranks put their part in its place.
        stack.__dict__["embed_tokens"] = lambda ids: model.get_input_embeddings()(ids)


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
