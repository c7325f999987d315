"""Packed tokens as right-padded rows, which independent computations take, and back."""

from __future__ import annotations

import torch
from torch import Tensor

from prompt_tuning.forward.batch import Batch
from prompt_tuning.tokens.packed import MemberRows


def real(batch: Batch) -> Tensor:
    """[R, L] Which places of padded rows have a text token."""
    return torch.arange(int(batch.lengths.max()), device=batch.lengths.device) < batch.lengths[:, None]


def text_rows(values: Tensor, batch: Batch, padding: float = 0) -> Tensor:
    """Values of all tokens [T, ...] as those of padded rows of text [R, L, ...]; differentiable."""
    return rows_of_texts(values[batch.tokens], batch, padding)


def rows_of_texts(values: Tensor, batch: Batch, padding: float = 0) -> Tensor:
    """Values of text tokens [t, ...], row after row, as padded rows [R, L, ...]; differentiable."""
    mask = real(batch)
    rows = values.new_full((*mask.shape, *values.shape[1:]), padding)
    rows[mask] = values
    return rows


def packed(padded: Tensor, lengths: Tensor) -> tuple[Tensor, MemberRows]:
    """Tokens [T, ...] of padded rows [R, L, ...], end to end, and where they stand."""
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    ends = lengths.cumsum(0)
    row = torch.arange(len(lengths)).repeat_interleave(lengths)
    rows = MemberRows(ends - lengths, lengths, torch.arange(int(ends[-1])), row, longest=int(lengths.max()))
    return padded[mask], rows
