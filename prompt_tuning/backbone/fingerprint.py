"""What tells backbones apart: the weights by content, the config's values and the tokenizer, each by itself.

Read from the files, not from memory, so that it depends neither on the loaded type nor on sharding.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from transformers import PreTrainedTokenizerBase

from model_parallel.loading import StoredTensor
from prompt_tuning.storage.digests import recall, remember
from prompt_tuning.tokens.tokenise import tokenizer_digest

_SAMPLE = 4096
"""Bytes of every tensor that entered the fingerprint of version 0.1.0."""
_NO_NUMBERS = (
    "architectures", "auto_map", "chunk_size_feed_forward", "dtype", "finetuning_task", "id2label", "initializer_range",
    "keys_to_ignore_at_inference", "label2id", "num_labels", "output_attentions", "output_hidden_states", "problem_type",
    "return_dict", "task_specific_params", "torch_dtype", "transformers_version", "use_cache",
)  # fmt: skip
"""Config values that change no hidden state. Dropouts and names that begin with `_` are left out too."""


@dataclass(frozen=True)
class Identity:
    """A backbone's own marks, as checkpoints and exported prompts record them."""

    weights: str
    """SHA-256 over all tensors of the backbone in the files, pooler apart."""
    config: Mapping[str, Any]
    """Values that differ from the model type's defaults, those apart that change no number."""
    tokenizer: str
    """SHA-256 over what the tokenizer does, padding and truncation apart."""
    sampled: str
    """What version 0.1.0 recorded: SHA-256 over sizes and the first bytes of every tensor."""

    @property
    def fingerprint(self) -> str:
        """All marks in one, as hex digits."""
        marks = {"weights": self.weights, "config": dict(self.config), "tokenizer": self.tokenizer}
        return hashlib.sha256(json.dumps(marks, sort_keys=True).encode()).hexdigest()

    def to_json(self) -> dict[str, Any]:
        """As it is recorded."""
        return {**asdict(self), "config": dict(self.config)}

    def difference(self, recorded: Any) -> str | None:
        """In what a recorded backbone is another one, as a phrase; None: in nothing that is recorded.

        ``recorded`` is :meth:`to_json`'s value, or the text that version 0.1.0 wrote.
        """
        if isinstance(recorded, str):
            return None if recorded == self.sampled else "other weights or sizes"
        if not isinstance(recorded, Mapping) or not isinstance(recorded.get("config"), Mapping):
            return "a record that this version cannot read"
        if recorded.get("weights") != self.weights:
            return "other weights"
        for name in sorted({*recorded["config"], *self.config}):
            there, here = recorded["config"].get(name, "the default"), self.config.get(name, "the default")
            if there != here:
                return f"the same weights, but another config.json ({name}: {there!r} there, {here!r} here)"
        return None if recorded.get("tokenizer") == self.tokenizer else "the same weights, but another tokenizer"


def identify(stored: dict[str, StoredTensor], config: Any, tokenizer: PreTrainedTokenizerBase) -> Identity:
    """The marks of a backbone; reads all its weights once, in the time of a copy."""
    return Identity(_weights(stored), config_values(config), tokenizer_digest(tokenizer), _sampled(stored, config))


def config_values(config: Any) -> dict[str, Any]:
    """A config's values that change numbers and differ from the defaults of its class, as JSON has them."""
    values = json.loads(json.dumps(config.to_diff_dict(), default=str))
    return {
        name: value
        for name, value in sorted(values.items())
        if name not in _NO_NUMBERS and not name.startswith("_") and "dropout" not in name and not name.endswith("pdrop")
    }


def _weights(stored: dict[str, StoredTensor]) -> str:
    digest = hashlib.sha256()
    digests: dict[Path, dict[str, str]] = {}
    for plain, place in sorted(stored.items()):
        if plain.startswith("pooler."):
            continue
        if place.file not in digests:
            names = {other.name for other in stored.values() if other.file == place.file}
            digests[place.file] = _file_digests(place.file, names)
        digest.update(f"{plain} {digests[place.file][place.name]}\n".encode())
    return digest.hexdigest()


def _file_digests(file: Path, names: set[str]) -> dict[str, str]:
    """SHA-256 of type, shape and bytes of some tensors of a file; large files are read once and then remembered."""
    known = recall(file, "weights")
    if known is not None and names <= set(known):
        return known
    found = {}
    with safe_open(file, framework="pt") as tensors:
        for name in sorted(names):
            tensor = tensors.get_tensor(name).contiguous()
            content = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)} ".encode())
            if tensor.numel():
                content.update(memoryview(tensor.reshape(-1).view(torch.uint8).numpy()))
            found[name] = content.hexdigest()
    remember(file, "weights", found)
    return found


def _sampled(stored: dict[str, StoredTensor], config: Any) -> str:
    """The fingerprint of version 0.1.0: sizes of the model and the first bytes of every backbone tensor, pooler apart."""
    sizes = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
    digest = hashlib.sha256(json.dumps({name: getattr(config, name, None) for name in sizes}).encode())
    for plain, place in sorted(stored.items()):
        if plain.startswith("pooler."):
            continue
        with safe_open(place.file, framework="pt") as tensors:
            piece = tensors.get_slice(place.name)
            shape = piece.get_shape()
            digest.update(f"{plain} {shape} {piece.get_dtype()}".encode())
            if 0 in shape or not shape:
                continue
            width = max(1, _SAMPLE // max(1, 4 * math.prod(shape[1:])))
            head = piece[: min(width, shape[0])].contiguous().view(torch.uint8).flatten()[:_SAMPLE]
            digest.update(head.numpy().tobytes())
    return digest.hexdigest()
