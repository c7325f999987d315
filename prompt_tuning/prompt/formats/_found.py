"""What the files of another tool say of a prompt, and the checks that all formats share.

Shape letters: P prompt tokens, N layers, G key/value heads, D head size, H hidden size, C outputs of a head.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prompt_tuning.backbone.attention import PrefixShape
from prompt_tuning.backbone.find import Description
from prompt_tuning.backbone.stored.pickles import unpickled
from prompt_tuning.errors import UserError, reason


@dataclass(frozen=True)
class Found:
    """A prompt as another tool left it, in our terms."""

    prefix: Tensor
    """[P, layers * 2 * G * D]: row p holds, layer by layer, the key and then the value of prompt token p, heads in order, keys as
    attention sees them, that is after any rotation."""
    positions: str
    """The tool's rule for the text's positions, as `prompt.positions`."""
    kinds: tuple[str, ...]
    """Kinds of task that its head can answer."""
    pooling: str | None
    """Of the head; None: the language model answers."""
    head: Mapping[str, Tensor] = field(default_factory=dict)
    """By the names of :class:`prompt_tuning.prompt.head.Head`'s parameters."""
    layers: tuple[int, ...] | None = None
    labels: tuple[str, ...] | None = None
    """In the order of the head's outputs, where the files name them."""
    frozen: Mapping[str, Tensor] = field(default_factory=dict)
    """What the files hold of the backbone, by the base model's own names."""
    remarks: tuple[str, ...] = ()
    """What a reader should know of the tool's numbers, a sentence each."""


class Stored:
    """Tensors of some files by name; each is taken once, so that none is passed over unseen."""

    def __init__(self, folder: Path, tensors: Mapping[str, Tensor]) -> None:
        self.folder, self._left = folder, dict(tensors)

    def __contains__(self, name: str) -> bool:
        return name in self._left

    def names(self, start: str = "") -> list[str]:
        """Of those that are left."""
        return sorted(name for name in self._left if name.startswith(start))

    def take(self, name: str, *shape: int | None) -> Tensor:
        """A tensor in float32; None of its sizes may be any. Raises :class:`UserError`."""
        if name not in self._left:
            raise UserError(f"{self.folder}: no tensor {name}; the files are not whole, copy them anew")
        tensor = self._left.pop(name)
        wanted = "[" + ", ".join("any" if size is None else str(size) for size in shape) + "]"
        fits = len(shape) == tensor.dim() and all(
            size in (None, own) for size, own in zip(shape, tensor.shape, strict=True)
        )
        if not fits:
            raise UserError(
                f"{self.folder}: {name} is {list(tensor.shape)}, where {wanted} belongs; it is of another model"
            )
        if not tensor.isfinite().all():
            raise UserError(f"{self.folder}: {name} holds NaN or infinity; it cannot be used")
        return tensor.to(torch.float32)

    def take_as_is(self, name: str) -> Tensor:
        """A tensor in its own type."""
        return self._left.pop(name)

    def drop(self, names: Iterable[str]) -> None:
        """Leave tensors out that say nothing new."""
        for name in names:
            self._left.pop(name, None)

    def linear(self, name: str, outputs: int | None, inputs: int, ours: str = "") -> dict[str, Tensor]:
        """Weight [outputs, inputs] and bias [outputs] of a layer, by our name of it."""
        weight = self.take(f"{name}.weight", outputs, inputs)
        return {f"{ours}weight": weight, f"{ours}bias": self.take(f"{name}.bias", len(weight))}

    def folded(self, embedding: str, projection: str, length: int | None, shape: PrefixShape) -> Tensor:
        """A table [P, width]: stored, or Linear(tanh(Linear(embedding))) where a projection is stored beside it."""
        first, last = f"{projection}.0.weight", f"{projection}.2.weight"
        if first not in self and last not in self:
            return self.take(embedding, length, None)
        vectors = self.take(embedding, length, None)
        inner = self.linear(f"{projection}.0", None, vectors.shape[1])
        outer = self.linear(f"{projection}.2", None, len(inner["weight"]))
        states = torch.tanh(torch.nn.functional.linear(vectors, inner["weight"], inner["bias"]))
        return torch.nn.functional.linear(states, outer["weight"], outer["bias"])

    def done(self, tool: str) -> None:
        """Raise :class:`UserError` where something is left."""
        if self._left:
            names = sorted(self._left)
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(
                f"{self.folder}: {names[0]}{more} would be left out, and is no part of {tool} that is known here;"
                " without it the prompt would answer otherwise"
            )


def read_tensors(folder: Path, *names: str) -> Stored:
    """The tensors of the first file that is there; of pickles nothing but tensors is read. Raises :class:`UserError`."""
    file = next((folder / name for name in names if (folder / name).is_file()), None)
    if file is None:
        raise UserError(f"{folder}: no {' and no '.join(names)} there; give the folder that holds it")
    try:
        return Stored(folder, load_file(file) if file.suffix == ".safetensors" else unpickled(file))
    except (OSError, SafetensorError) as error:
        raise UserError(f"{folder}: {file.name} cannot be read ({reason(error)}); copy it anew") from None
    except UserError as error:
        raise UserError(f"{folder}: {error}") from None


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A JSON object; empty where the file is not there. Raises :class:`UserError`."""
    try:
        content = json.loads((folder / name).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise UserError(f"{folder}: {name} is not JSON ({reason(error)}); copy it anew") from None
    if not isinstance(content, dict):
        raise UserError(f"{folder}: {name} holds no object; copy it anew")
    return content


def check_recorded(folder: Path, path: str, recorded: Mapping[str, tuple[Any, int | str]]) -> None:
    """Raise :class:`UserError` where what the files record of their backbone is not so of the one given; None is not recorded."""
    for name, (value, own) in recorded.items():
        if value is not None and value != own:
            raise UserError(
                f"{folder}: made on a backbone with {name} {value}, and {path} has {own}; give its own (--backbone)"
            )


def check_prefix(found: Found, folder: Path, path: str, shape: PrefixShape) -> None:
    """Raise :class:`UserError` unless the prefix is of the backbone's layers and heads."""
    layers = shape.num_layers if found.layers is None else len(found.layers)
    width = found.prefix.shape[1]
    if width != layers * shape.layer_width:
        raise UserError(
            f"{folder}: its prefix has {width} numbers a token, and {path}, with {layers} layers of {shape.key_value_heads}"
            f" key/value heads of size {shape.head_size}, takes {layers * shape.layer_width}; give its own (--backbone)"
        )


def names_of(config: Mapping[str, Any]) -> tuple[str, ...] | None:
    """Label names in the order of the outputs, as transformers keeps them; None: none but its own stand-ins."""
    by_name = config.get("label2id") or {name: int(i) for i, name in (config.get("id2label") or {}).items()}
    names = tuple(map(str, sorted(by_name, key=lambda name: by_name[name])))
    if not names or sorted(by_name.values()) != list(range(len(names))):
        return None
    return None if names == tuple(f"LABEL_{i}" for i in range(len(names))) else names


def has_types(described: Description) -> bool:
    """Whether texts of a backbone have token types that matter to it."""
    named = "token_type_ids" in described.tokenizer.model_input_names
    return named and getattr(described.config, "type_vocab_size", 0) > 1
