"""Backbone families: one small file each, found by the ``model_type`` of a backbone's config.

A file holds ``FAMILY``, a :class:`Family`. Adding a family is adding its file; the contract tests find it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from model_parallel.plan import Plan
from prompt_tuning.errors import UserError


@dataclass(frozen=True)
class Family:
    """How prompts fit one family of transformers models.

    ``plan`` says where the weights are cut over the tensor axis. ``positions`` turns indices counted from 0
    (int64 [1, T]) into position ids. ``table_offset`` is how many rows of the position table text can not use.
    """

    model_types: tuple[str, ...]
    embeddings: str
    """Name of the module whose output enters the first layer."""
    layers: str
    """Name of the list of layers."""
    attention: str
    """Name, in a layer, of the module that attends."""
    by_token: tuple[str, str]
    """Names, in a layer, of the module from which on, and of the one up to which, it sees every token by itself; the latter
    may be "", the layer."""
    plan: Plan
    pooling: str
    hidden_dropout: tuple[str, ...]
    attention_dropout: tuple[str, ...]
    query_and_value: tuple[str, ...] = ()
    """Names, in the module that attends, of the linear layers that make queries and values; none: method `lora` is refused."""
    positions: Callable[[Tensor, Any], Tensor] = lambda index, config: index
    table_offset: Callable[[Any], int] = lambda config: 0

    def attention_modules(self, model: nn.Module) -> list[nn.Module]:
        """What attends, layer by layer."""
        return [layer.get_submodule(self.attention) for layer in self._layers(model)]

    def _layers(self, model: nn.Module) -> list[nn.Module]:
        return list(model.get_submodule(self.layers).children())

    @contextmanager
    def layers_until(self, model: nn.Module, end: int) -> Iterator[list[Tensor]]:
        """Forwards of the layers below ``end`` alone; gives a list that gets the hidden states which would enter it."""
        layers, entering = self._layers(model), list[Tensor]()
        hook = layers[end - 1].register_forward_hook(lambda module, given, found: entering.append(found))
        with self._with_layers(model, layers[:end]):
            try:
                yield entering
            finally:
                hook.remove()

    @contextmanager
    def layers_from(self, model: nn.Module, start: int, states: Tensor | None) -> Iterator[None]:
        """Forwards that begin at the layer ``start`` with these hidden states [1, T, H]; None: at the embeddings."""
        if states is None:
            yield
            return
        hook = model.get_submodule(self.embeddings).register_forward_hook(lambda module, given, found: states)
        # Their places stay: models look up by it whether a layer is local or global.
        with self._with_layers(model, [*(_Passed() for _ in range(start)), *self._layers(model)[start:]]):
            try:
                yield
            finally:
                hook.remove()

    @contextmanager
    def _with_layers(self, model: nn.Module, layers: list[nn.Module]) -> Iterator[None]:
        parent, _, name = self.layers.rpartition(".")
        owner, whole = model.get_submodule(parent), model.get_submodule(self.layers)
        setattr(owner, name, nn.ModuleList(layers))
        try:
            yield
        finally:
            setattr(owner, name, whole)

    def narrow_last_layer(self, model: nn.Module) -> None:
        """Let the last layer, behind its attention, work for the tokens alone that the forward's ``rows`` say are read.

        Hidden states [1, T, H] of the others are of no use then. Checkpointing, which runs the layer anew, sees the same.
        """
        last = self._layers(model)[-1]
        first, behind = (last.get_submodule(name) for name in self.by_token)
        reads: list[tuple[Tensor | None, int]] = [(None, 0)]

        def begin(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = given[0] if given else named["hidden_states"]
            reads[0] = named["rows"].read, hidden.shape[1]

        def cut(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            def some(value: Any) -> Any:
                return value if read is None or not isinstance(value, Tensor) else value.index_select(1, read)

            read, _ = reads[0]
            return tuple(map(some, given)), {name: some(value) for name, value in named.items()}

        def spread(module: nn.Module, given: Any, found: Tensor) -> Tensor:
            read, width = reads[0]
            return found if read is None else found.new_zeros(1, width, found.shape[2]).index_copy(1, read, found)

        # Not of the layer itself, whose hooks do not run when checkpointing runs it anew.
        last.get_submodule(self.attention).register_forward_pre_hook(begin, with_kwargs=True)
        first.register_forward_pre_hook(cut, with_kwargs=True)
        behind.register_forward_hook(spread)

    def max_positions(self, config: Any) -> int:
        """Largest number of prompt and text tokens together."""
        return int(config.max_position_embeddings) - self.table_offset(config)


class _Passed(nn.Module):
    """In a layer's place: hidden states as they come."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        return hidden_states


OTHERS = {"gemma3": "it sees images too; choose one of its text models, whose model_type is 'gemma3_text'"}
"""Model types that are near a family's, and why they are none."""


def families() -> dict[str, Family]:
    """All families by model type."""
    found: dict[str, Family] = {}
    for module in pkgutil.iter_modules(__path__):
        if module.name.startswith("_"):
            continue
        family: Family = importlib.import_module(f"{__name__}.{module.name}").FAMILY
        found.update(dict.fromkeys(family.model_types, family))
    return found


def find_family(model_type: str) -> Family:
    """The family of a config's ``model_type``. Raises :class:`UserError`."""
    known = families()
    if model_type in OTHERS:
        raise UserError(f"backbone of model_type {model_type!r} is not supported: {OTHERS[model_type]}")
    if model_type not in known:
        raise UserError(
            f"backbone of model_type {model_type!r} is not supported; choose one of {', '.join(sorted(known))}"
        )
    return known[model_type]
