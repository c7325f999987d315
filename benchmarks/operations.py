"""How many floating-point operations a training step of a deep prompt takes, counted from shapes.

Counted are, each multiplication and each addition as one:

- linear layers of the backbone forward, for all real tokens;
- linear layers backward to their input (no weight has a gradient). The text's own queries, keys and values of the lowest
  layer with a prefix need none, and below it nothing does;
- attention of every text token over prefix and text: two products forward, four backward;
- in the last layer, behind its attention, the tokens alone that the head reads: one of each row.

Not counted: embeddings, norms, activations, softmax, dropout, the products that attention kernels repeat in the backward,
pooler, head, clipping and AdamW; and no padding, whoever computes it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np


def step_operations(config: Any, lengths: np.ndarray, prompt_length: int, first_layer: int = 0) -> float:
    """Of one step over rows of ``lengths`` text tokens; the lowest prefix is in ``first_layer``, and in all layers above.

    ``config`` is a BERT's.
    """
    layers, width, inner = config.num_hidden_layers, config.hidden_size, config.intermediate_size
    tokens, rows = float(lengths.sum()), len(lengths)
    in_front = 2.0 * 3 * width * width  # of one token: queries, keys, values
    behind = 2.0 * (width * width + 2 * width * inner)  # output of the attention, MLP
    total = 0.0
    for layer in range(layers):
        read = rows if layer == layers - 1 else tokens
        has_prefix = layer >= first_layer
        seen = float((lengths * (lengths + (prompt_length if has_prefix else 0))).sum())
        product = 2.0 * seen * width
        total += in_front * tokens + behind * read + 2 * product
        if has_prefix:
            total += behind * read + 4 * product + (in_front * tokens if layer > first_layer else 0)
    return total


def operations_of_steps(
    config: Any, steps: Iterable[np.ndarray], prompt_length: int, first_layer: int = 0
) -> list[float]:
    """Of several steps, given the lengths of each one's rows."""
    return [step_operations(config, lengths, prompt_length, first_layer) for lengths in steps]
