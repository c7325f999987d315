"""How the tokens of a batch are laid out: right-padded rows. Another layout replaces :func:`lay_out` alone."""

from __future__ import annotations

import numpy as np
import torch

from prompt_tuning.forward.batch import Batch, Items, Pool
from prompt_tuning.tokens.features import NO_TAG


def lay_out(pool: Pool, items: Items, pad_token: int, device: torch.device) -> Batch:
    """Gather the items' tokens into right-padded rows on the device."""
    items = items.take(np.argsort(items.members, kind="stable"))
    members, member_of_example = np.unique(items.members, return_inverse=True)
    per_example = pool.rows_per_example[items.members]
    row_examples = np.repeat(items.examples * per_example, per_example)
    row_ends = np.cumsum(per_example)
    row_examples += np.arange(row_ends[-1]) - np.repeat(row_ends - per_example, per_example)
    row_members = np.repeat(items.members, per_example)
    lengths = np.empty(len(row_examples), np.int64)
    for source, rows in pool.by_source(row_members):
        lengths[rows] = source.lengths(row_examples[rows])
    shape = len(lengths), int(lengths.max())
    input_ids = np.full(shape, pad_token, np.int64)
    token_types = np.zeros(shape, np.int64) if pool.has_types else None
    tags = np.full(shape, NO_TAG, np.int64) if pool.has_tags else None
    labels = np.empty(len(items), np.result_type(*(source.labels for source in pool.sources)))
    for source, rows in pool.by_source(row_members):
        real = np.arange(shape[1]) < lengths[rows][:, None]
        place, column = np.nonzero(real)
        row = rows[place]
        token = source.offsets[row_examples[row]] + column
        input_ids[row, column] = source.tokens[token]
        if token_types is not None and source.token_types is not None:
            token_types[row, column] = source.token_types[token]
        if tags is not None and source.tags is not None:
            tags[row, column] = source.tags[token]
    for source, examples in pool.by_source(items.members):
        labels[examples] = source.labels[items.examples[examples]]
    example_ends = np.searchsorted(member_of_example, np.arange(len(members)), side="right")
    spans, example_start, row_start = [], 0, 0
    for end in example_ends.tolist():
        row_end = int(row_ends[end - 1])
        spans.append((slice(example_start, end), slice(row_start, row_end)))
        example_start, row_start = end, row_end

    return Batch(
        input_ids=torch.from_numpy(input_ids),
        token_type_ids=None if token_types is None else torch.from_numpy(token_types),
        lengths=torch.from_numpy(lengths),
        members=tuple(members.tolist()),
        member_of_row=torch.from_numpy(np.repeat(member_of_example, per_example)),
        spans=tuple(spans),
        labels=torch.from_numpy(labels),
        tags=None if tags is None else torch.from_numpy(tags),
        weights=torch.from_numpy(items.weights),
        examples=torch.from_numpy(items.examples),
        row_examples=torch.from_numpy(row_examples),
    ).to(device)
