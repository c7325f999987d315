"""Backbone families: one small file each, found by the ``model_type`` of a backbone's config.

A file holds ``FAMILY``, a :class:`Family`. Adding a family is adding its file; the contract tests find it.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable
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
    attention_modules: Callable[[Any], Iterable[nn.Module]]
    plan: Plan
    pooling: str
    hidden_dropout: tuple[str, ...]
    attention_dropout: tuple[str, ...]
    positions: Callable[[Tensor, Any], Tensor] = lambda index, config: index
    table_offset: Callable[[Any], int] = lambda config: 0

    def max_positions(self, config: Any) -> int:
        """Largest number of prompt and text tokens together."""
        return int(config.max_position_embeddings) - self.table_offset(config)


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
    if model_type not in known:
        raise UserError(
            f"backbone of model_type {model_type!r} is not supported; choose one of {', '.join(sorted(known))}"
        )
    return known[model_type]
