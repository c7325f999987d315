"""How long members train: the time of the fleet's steps, shared among them by the tokens that each brings."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from prompt_tuning.fleet.member import Member


class Rates:
    """A clock over the steps of several members.

    Steps are launched without waiting for a device, so their time is known only where the program has waited for it:
    between :meth:`settle` and the :meth:`count` before it.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self._tokens = np.zeros(len(members))
        self._started: float | None = None

    def begin(self) -> None:
        """A step begins; the clock runs on where it runs already."""
        if self._started is None:
            self._started = time.perf_counter()

    def count(self, active: Sequence[int], tokens: Sequence[int]) -> None:
        """A step of the members ``active`` is launched, for which they brought ``tokens``."""
        self._tokens[list(active)] += tokens

    def settle(self) -> None:
        """The device has done all steps: share the time since they began, and stop the clock until the next."""
        total = float(self._tokens.sum())
        if self._started is None or not total:
            return
        passed = time.perf_counter() - self._started
        for member, tokens in zip(self.members, self._tokens.tolist(), strict=True):
            member.seconds += passed * tokens / total
        self._tokens[:] = 0
        self._started = None


def rate(examples: int, seconds: float) -> float | None:
    """Examples a second; None where no time has passed."""
    return round(examples / seconds, 3) if seconds else None
