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
    rows = np.repeat(pool.first_row[items.members], per_example) + row_examples
    lengths = pool.lengths[rows]
    column = np.arange(lengths.max())
    real = column < lengths[:, None]
    index = np.where(real, pool.starts[rows][:, None] + column, 0)
    input_ids = np.where(real, pool.tokens[index], pad_token).astype(np.int64)
    token_types = None if pool.token_types is None else np.where(real, pool.token_types[index], 0).astype(np.int64)
    tags = None if pool.tags is None else np.where(real, pool.tags[index], NO_TAG).astype(np.int64)
    example_ends = np.searchsorted(member_of_example, np.arange(len(members)), side="right")
    spans, example_start, row_start = [], 0, 0
    for end in example_ends.tolist():
        row_end = int(row_ends[end - 1])
        spans.append((slice(example_start, end), slice(row_start, row_end)))
        example_start, row_start = end, row_end
    labels = pool.labels[pool.first_example[items.members] + items.examples]

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
