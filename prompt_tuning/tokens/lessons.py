"""What a teacher expects in each place of a target: the record that a kind's notes keep of it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

LESSON_TOKENS = 16
"""The teacher's likeliest tokens that are kept of each place."""


@dataclass(frozen=True, eq=False)
class Lessons:
    """Of the rows of a split, end to end; a row without teacher has no places."""

    tokens: np.ndarray
    """int32 [places, LESSON_TOKENS]: the likeliest tokens."""
    log_probabilities: np.ndarray
    """float32, likewise: natural logarithms."""
    ends: np.ndarray
    """int64 [rows + 1]: where the places of each row begin and end."""

    @property
    def starts(self) -> np.ndarray:
        """[rows] First place of each row."""
        return self.ends[:-1]

    @property
    def counts(self) -> np.ndarray:
        """[rows] Places of each row."""
        return np.diff(self.ends)
