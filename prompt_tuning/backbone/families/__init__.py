"""Backbone families: one small file each, found by the ``model_type`` of a backbone's config.

A file holds ``FAMILY``, a :class:`Family`. Adding a family is adding its file; the contract tests find it.
"""

from __future__ import annotations

import importlib
import pkgutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from torch import Tensor, nn
from transformers import AutoModel, PreTrainedModel

from model_parallel.plan import Plan
from prompt_tuning.backbone.families._declined import DECLINED
from prompt_tuning.errors import UserError

SITES = ("encoder", "decoder", "cross")
"""Names of an encoder-decoder's attentions: the encoder's to itself, the decoder's to itself, the decoder's to the encoder."""


@dataclass(frozen=True)
class Family:
    """How prompts fit one family of transformers models.

    ``plan`` says where the weights are cut over the tensor axis. ``positions`` turns indices counted from 0
    (int64 [1, T]) into position ids. ``table_offset`` is how many rows of the position table text can not use.
    """

    model_types: tuple[str, ...]
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
    """Names, in the module that attends, of the linear layers that make queries and values, of which a model has some: a fused
    one makes the keys too. None: method `lora` is refused."""
    positions: Callable[[Tensor, Any], Tensor] = lambda index, config: index
    table_offset: Callable[[Any], int] = lambda config: 0
    has_positions: Callable[[Any], bool] = lambda config: True
    """Whether tokens have positions of their own, of which a prompt takes some; not where attention sees distances alone."""
    refuse: Callable[[Any], str | None] = lambda config: None
    """What a config asks for that is not done here, as the rest of a sentence that begins with the backbone."""
    num_layers: Callable[[Any], int] = lambda config: int(config.num_hidden_layers)
    """How many times text is attended to, one prefix each."""
    depths: tuple[str, ...] = ("num_hidden_layers",)
    """Names in a config of how many layers each stack has."""
    word_size: Callable[[Any], int] = lambda config: int(config.hidden_size)
    """Numbers of a word's embedding."""
    language_head: tuple[str, ...] = ()
    """Names of what the language model adds behind the backbone, in the order in which it runs; empty: one module."""
    logit_factor: Callable[[Any], float] = lambda config: 1.0
    """By what the language model multiplies its logits, beside what configs of many families say by the same names."""
    has_own_output: bool = False
    """Whether an output embedding that files hold counts, though the config ties it to the word embedding."""
    auto: Any = AutoModel
    """Transformers' class that builds the model from its config."""
    open: Callable[[PreTrainedModel], None] = lambda model: None
    """What a model on ``meta`` needs before it can be cut and take prefixes."""
    sites: tuple[tuple[str, str], ...] = ()
    """Of an encoder-decoder: the list of layers and the module in each that attends, for each of :data:`SITES`. A prefix has
    levels for all, in this order. Empty: one stack of layers."""
    writing: Family | None = None
    """The family where texts are to be written, if that needs more of the model; None: this."""
    beyond_tokens: tuple[str, ...] = ()
    """Globs of modules that see more than tokens, such as relative positions: no member can have deltas of their vectors."""

    @property
    def has_language_head(self) -> bool:
        """Whether transformers has a language model that is this and a head behind it."""
        return self.auto is AutoModel

    def attention_modules(self, model: nn.Module) -> list[nn.Module]:
        """What attends, layer by layer; of an encoder-decoder site by site."""
        if self.sites:
            return [layer.get_submodule(name) for layers, name in self.sites for layer in _children(model, layers)]
        return [layer.get_submodule(self.attention) for layer in self._layers(model)]

    def site_sizes(self, model: nn.Module) -> list[int]:
        """How many levels of a prefix each of :data:`SITES` has."""
        return [len(_children(model, layers)) for layers, _ in self.sites]

    def across_modules(self, model: nn.Module) -> list[nn.Module]:
        """What attends from a decoder's tokens to an encoder's."""
        return [layer.get_submodule(name) for layers, name in self.sites[2:] for layer in _children(model, layers)]

    def _layers(self, model: nn.Module) -> list[nn.Module]:
        return _children(model, self.layers)

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
        # The places of layers stay: models look up by it whether one is local or global.
        layers = self._layers(model)
        known = [_Known(states, layer) for layer in layers[:start]]
        with self._with_layers(model, [*known, *layers[start:]]):
            yield

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
        number, last = list(enumerate(self._layers(model)))[-1]
        first, behind = (last.get_submodule(name) for name in self.by_token)
        reads: list[tuple[Tensor | None, int]] = [(None, 0)]

        def begin(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> None:
            hidden = given[0] if given else named["hidden_states"]
            # Where depths share one module, each says which it is.
            is_last = named.get("depth", number) == number
            rows = named.get("rows")  # none where transformers writes texts
            reads[0] = rows.read if is_last and rows is not None else None, hidden.shape[1]

        def cut(module: nn.Module, given: tuple[Any, ...], named: dict[str, Any]) -> tuple[Any, Any]:
            def some(value: Any) -> Any:
                return value if read is None or not isinstance(value, Tensor) else value.index_select(-2, read)

            read, _ = reads[0]
            return tuple(map(some, given)), {name: some(value) for name, value in named.items()}

        def spread(module: nn.Module, given: Any, found: Tensor) -> Tensor:
            read, width = reads[0]
            if read is None:
                return found
            # [1, T, H]; OPT works on [T, H] there.
            return found.new_zeros(*found.shape[:-2], width, found.shape[-1]).index_copy(-2, read, found)

        # Not of the layer itself, whose hooks do not run when checkpointing runs it anew.
        last.get_submodule(self.attention).register_forward_pre_hook(begin, with_kwargs=True)
        first.register_forward_pre_hook(cut, with_kwargs=True)
        behind.register_forward_hook(spread)

    def max_positions(self, config: Any) -> int:
        """Largest number of prompt and text tokens together; without end where distances have no table."""
        if not hasattr(config, "max_position_embeddings"):
            return sys.maxsize
        return int(config.max_position_embeddings) - self.table_offset(config)


def _children(model: nn.Module, name: str) -> list[nn.Module]:
    return list(model.get_submodule(name).children())


class _Known(nn.Module):
    """In a layer's place: the hidden states that it would give."""

    def __init__(self, states: Tensor, layer: nn.Module) -> None:
        super().__init__()
        self.states = states
        # Some models ask the layer itself for its kind, to choose a mask and positions.
        self.attention_type = getattr(layer, "attention_type", None)

    def forward(self, *_: Any, **__: Any) -> Tensor:
        return self.states


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
    if model_type in known:
        return known[model_type]
    if model_type in DECLINED:
        why = f": {DECLINED[model_type]}"
    else:
        near = get_close_matches(model_type.lower(), known, 1)
        why = f" (the nearest that is: {near[0]!r})" if near else ""
        why += ", and needs a file in prompt_tuning/backbone/families that names its layers and where their weights are cut"
    raise UserError(
        f"backbone of model_type {model_type!r} is not supported{why}; choose one of {', '.join(sorted(known))}"
    )
