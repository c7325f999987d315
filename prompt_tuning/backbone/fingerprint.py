"""What tells backbones apart."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

import torch
from safetensors import safe_open

from model_parallel.loading import StoredTensor

_SAMPLE = 4096
"""Bytes of every tensor that enter the fingerprint."""


def fingerprint(stored: dict[str, StoredTensor], config: Any) -> str:
    """SHA-256 over the sizes of the model and the first bytes of every backbone tensor in the files, pooler apart.

    Read from the files, not from memory, so it depends neither on the loaded type nor on sharding, and costs kilobytes.
    """
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
