"""Tokenised examples in flat arrays that packing can cut anywhere."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

NO_TAG = -100
"""Tag of a token that has none."""

Remarks = Mapping[str, tuple[int, int]]
"""What to say of a split: a text with two ``%d``, and the two numbers; parts of a split add theirs."""


@dataclass(frozen=True, eq=False)
class Features:
    """Tokenised examples of one split: ``rows_per_example`` sequences an example, stored end to end.

    Row ``i`` is ``tokens[offsets[i]:offsets[i + 1]]``. ``labels`` [examples] is a class index or a value, -1 or NaN where
    there is none; where every token is asked, it only says whether the example is labelled, and ``tags`` [tokens] has the
    labels, negative where a token has none. ``notes`` is what the task's kind needs for scoring beside them, a record of
    :mod:`prompt_tuning.tokens.arrays`. All arrays may be mapped from files.
    """

    tokens: np.ndarray
    token_types: np.ndarray | None
    offsets: np.ndarray
    rows_per_example: int
    labels: np.ndarray
    tags: np.ndarray | None = None
    notes: Any = None
    remarks: Remarks = field(default_factory=dict)
    known: Mapping[str, Any] = field(default_factory=dict)
    """What was computed of mapped arrays when they were written."""

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def has_label(self) -> np.ndarray:
        """[examples] Whether an example is labelled."""
        return ~np.isnan(self.labels) if self.labels.dtype.kind == "f" else self.labels >= 0

    @property
    def has_teacher(self) -> bool:
        """Whether some example's notes have lessons (:class:`prompt_tuning.tokens.lessons.Lessons`)."""
        lessons = getattr(self.notes, "lessons", None)
        return lessons is not None and len(lessons.tokens) > 0

    @property
    def is_labelled(self) -> bool:
        """Whether every example is labelled."""
        return bool(self.has_label.all())

    @cached_property
    def digest(self) -> str:
        """SHA-256 over all tokens, labels and tags, as hex digits: equal where training would see the same."""
        if "digest" in self.known:
            return str(self.known["digest"])
        found = hashlib.sha256(str(self.rows_per_example).encode())
        lessons = [self.notes.lessons.tokens, self.notes.lessons.log_probabilities] if self.has_teacher else []
        for array in (self.tokens, self.token_types, self.offsets, self.labels, self.tags, *lessons):
            if array is not None:
                found.update(f"{array.dtype} {array.shape} ".encode())
                found.update(np.ascontiguousarray(array).data)
        return found.hexdigest()

    @cached_property
    def largest_token(self) -> int:
        """The highest token number, of texts and of what teachers expect; -1 where there is none."""
        if "largest_token" in self.known:
            return int(self.known["largest_token"])
        taught = int(self.notes.lessons.tokens.max()) if self.has_teacher else -1
        return max(int(self.tokens.max(initial=-1)), taught)

    def lengths(self, rows: np.ndarray) -> np.ndarray:
        """Tokens of some rows."""
        return np.asarray(self.offsets[rows + 1] - self.offsets[rows])

    def lengths_of(self, examples: np.ndarray) -> np.ndarray:
        """Tokens of all rows of each of some examples."""
        first = examples * self.rows_per_example
        return np.asarray(self.offsets[first + self.rows_per_example] - self.offsets[first])

    def asked(self, row: int) -> np.ndarray:
        """The labels of a row's tokens that have one."""
        assert self.tags is not None
        own = self.tags[self.offsets[row] : self.offsets[row + 1]]
        return np.asarray(own[own >= 0])

    def num_tokens(self, examples: np.ndarray) -> int:
        """Tokens of all rows of some examples."""
        return int(self.lengths_of(examples).sum())

    def terms(self, examples: np.ndarray) -> int:
        """How many terms the loss of some examples is the mean of: examples, or labelled tokens where a kind counts them."""
        num_labels = getattr(self.notes, "num_labels", None)
        return len(examples) if num_labels is None else int(num_labels[examples].sum())
