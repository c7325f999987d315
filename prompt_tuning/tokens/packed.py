"""A member's rows among the tokens of a batch, which stand end to end without padding."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Teacher:
    """What another reader expects in each of ``a`` asked places: its k likeliest tokens."""

    tokens: Tensor
    """[a, k] int64; -1: none, of places without teacher all."""
    log_probabilities: Tensor
    """[a, k] float32: natural logarithms."""


@dataclass(frozen=True)
class MemberRows:
    """Where a member's r rows with their t text tokens stand among a batch's T tokens; all int64 on its device."""

    first: Tensor
    """[r] Place of each row's first text token."""
    lengths: Tensor
    """[r] Text tokens of each row."""
    tokens: Tensor
    """[t] Place of every text token, row after row."""
    row_of_token: Tensor
    """[t] Which of the r rows each belongs to."""
    tags: Tensor | None = None
    """[t] Labels of the tokens, negative where they have none; None where no member of the batch asks tokens."""
    asked: Tensor | None = None
    """[a] Which of the t tokens have a label; None as ``tags``."""
    longest: int = 0
    """Text tokens of the longest row."""
    teacher: Teacher | None = None
    """What a teacher expects in the asked places; None where no member of the batch has one."""

    @property
    def first_of_row(self) -> Tensor:
        """[r] Place of each row's first token among the t."""
        return self.lengths.cumsum(0) - self.lengths

    def sum_rows(self, values: Tensor) -> Tensor:
        """Sums [r, ...] over the tokens of each row, of values [t, ...]."""
        return torch.segment_reduce(values, "sum", lengths=self.lengths)

    def log_sum_exp(self, values: Tensor) -> Tensor:
        """Logarithms of the sums of powers [r, ...] over the tokens of each row, of values [t, ...]."""
        top = torch.segment_reduce(values.detach(), "max", lengths=self.lengths)
        return self.sum_rows((values - top[self.row_of_token]).exp()).log() + top
