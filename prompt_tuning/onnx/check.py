"""Whether a graph answers as the packed forward that predictions come from, which shares no attention and no head with it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from prompt_tuning.errors import UserError
from prompt_tuning.forward.loop import Loop
from prompt_tuning.kinds import find_kind
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.tokens.features import NO_TAG, Features

TOLERANCE = 1e-4
"""How far logits may be off, as a share of the largest where that is above 1."""
_ROWS = 8
"""Most rows of a batch of the check."""
Logits = list[np.ndarray]
"""Of some prompts, float64 [rows, outputs] each, or [tokens, outputs] where a head sees every token."""


def drawn_features(model: AttachedPrompts, chance: np.random.Generator, has_types: bool) -> list[Features]:
    """Random tokens for each prompt: a single one, a few, and as many as it takes.

    Of many prompts all but the first eight get short texts alone, so that the check takes no longer than it must.
    """
    config, found = model.backbone.model.config, []
    for place, exported in enumerate(model.prompts):
        most = exported.encoding.max_length
        lengths = np.minimum([1, 2, int(chance.integers(3, 24)), *([most] if place < 8 else [])], most)
        offsets = np.concatenate([[0], np.cumsum(lengths)])
        tokens = chance.integers(0, config.vocab_size, offsets[-1])
        types = chance.integers(0, getattr(config, "type_vocab_size", 1) or 1, offsets[-1]) if has_types else None
        tags = np.full(len(tokens), NO_TAG, np.int32) if find_kind(model.tasks[place].kind).per_token else None
        found.append(Features(tokens, types, offsets, 1, np.zeros(len(lengths), np.int64), tags))
    return found


def packed_logits(model: AttachedPrompts, features: Sequence[Features]) -> Logits:
    """What torch says here, of packed rows."""
    kinds = [replace(find_kind(task.kind), keep=lambda logits, targets: logits) for task in model.tasks]
    loop = Loop(model.backbone, [own.prompt for own in model.prompts], kinds, list(features), model.budget)
    found = loop.outputs(range(len(kinds)))
    counts = [len(own.tokens) if kind.per_token else num_rows(own) for kind, own in zip(kinds, features, strict=True)]
    return [found[place].reshape(count, -1) for place, count in enumerate(counts)]


def num_rows(features: Features) -> int:
    """Sequences, of which an example of a choice has several."""
    return len(features.offsets) - 1


def graph_logits(
    session: Any, features: Sequence[Features], outputs: Sequence[int], chance: np.random.Generator
) -> Logits:
    """What a graph says of them, in batches of 1 to 8 rows that mix prompts, padded on either side with random tokens.

    ``outputs``: how many each prompt's head has.
    """
    names = [tensor.name for tensor in session.get_inputs()]
    found = [[np.zeros((0, 0))] * num_rows(own) for own in features]
    pairs = [(place, row) for place, own in enumerate(features) for row in range(num_rows(own))]
    for some in _batches([pairs[i] for i in chance.permutation(len(pairs))]):
        fed = padded(features, some, chance)
        (logits,) = session.run(None, {name: fed[name] for name in names})
        for (place, row), mask, own in zip(some, fed["attention_mask"], logits, strict=True):
            real = own[mask > 0] if own.ndim == 2 else own[None]
            found[place][row] = real[:, : outputs[place]].astype(np.float64)
    return [np.concatenate(rows) for rows in found]


def _batches(pairs: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """One row, two, three and so on, up to the most; then as many again and again."""
    size = 1
    while pairs:
        yield pairs[:size]
        pairs, size = pairs[size:], min(size + 1, _ROWS)


def padded(
    features: Sequence[Features], pairs: Sequence[tuple[int, int]], chance: np.random.Generator
) -> dict[str, np.ndarray]:
    """A graph's inputs for some (prompt, row of its features)."""
    bounds = [features[place].offsets[[row, row + 1]].tolist() for place, row in pairs]
    width = max(end - start for start, end in bounds)
    pool = np.concatenate([own.tokens for own in features])
    tokens, types = chance.choice(pool, (len(pairs), width)).astype(np.int64), np.zeros((len(pairs), width), np.int64)
    mask = np.zeros_like(tokens)
    for row, ((place, _), (start, end)) in enumerate(zip(pairs, bounds, strict=True)):
        first = 0 if chance.random() < 0.5 else width - (end - start)
        own = slice(first, first + end - start)
        tokens[row, own], mask[row, own] = features[place].tokens[start:end], 1
        token_types = features[place].token_types
        if token_types is not None:
            types[row, own] = token_types[start:end]
    return {
        "input_ids": tokens,
        "attention_mask": mask,
        "token_type_ids": types,
        "prompt_ids": np.array([place for place, _ in pairs], np.int64),
    }


def largest_difference(found: Logits, expected: Logits) -> float:
    """The largest of all differences, as a share of the largest logit where that is above 1; NaN where a number is none."""
    # numpy's maximum of what holds NaN is NaN, Python's need not be.
    scale = np.max([1.0, *(np.abs(own).max() for own in expected)])
    return float(np.max([np.abs(a - b).max() for a, b in zip(found, expected, strict=True)]) / scale)


def check(session: Any, model: AttachedPrompts, has_types: bool, file: Path) -> dict[str, Any]:
    """Compare a graph with torch. Returns what was found. Raises :class:`UserError` where it is off."""
    chance = np.random.default_rng(17)
    features = drawn_features(model, chance, has_types)
    expected = packed_logits(model, features)
    found = graph_logits(session, features, [own.shape[1] for own in expected], chance)
    off = largest_difference(found, expected)
    if not off <= TOLERANCE:  # also where it is NaN
        raise UserError(
            f"{file}: onnxruntime's logits are {off:.2g} off torch's, more than {TOLERANCE:g}, so that nothing is written; use"
            " another backbone for ONNX"
        )
    return {"rows": sum(map(len, features)), "largest_difference": float(f"{off:.2g}"), "tolerance": TOLERANCE}
