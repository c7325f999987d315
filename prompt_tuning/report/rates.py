"""How long members train, and how fast: the time of the fleet's steps, shared among them by the tokens that each brings."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np

from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import StepRecord
from prompt_tuning.storage.records import ThroughputLine


class Rates:
    """A clock over the steps of several members.

    Steps are launched without waiting for a device, so their time is known only where the program has waited for it:
    between :meth:`settle` and the :meth:`count` before it.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self.members = members
        self._started: float | None = None
        self._clear()

    def _clear(self) -> None:
        self._tokens = np.zeros(len(self.members))
        self._examples, self._waiting = 0, 0.0

    def begin(self) -> None:
        """A step begins; the clock runs on where it runs already."""
        if self._started is None:
            self._started = time.perf_counter()

    def count(self, step: StepRecord) -> None:
        """A step is launched."""
        self._tokens[step.members] += step.tokens
        self._examples += step.examples
        self._waiting += step.waiting

    def settle(self, step: int) -> ThroughputLine | None:
        """The device has done all steps up to ``step``: share the time since they began, and stop the clock until the next.

        Returns what the steps since then amount to; None where there were none.
        """
        total = float(self._tokens.sum())
        if self._started is None or not total:
            return None
        passed = time.perf_counter() - self._started
        for member, tokens in zip(self.members, self._tokens.tolist(), strict=True):
            member.seconds += passed * tokens / total
        line: ThroughputLine = {
            "step": step,
            "seconds": round(passed, 6),
            "examples_per_second": rate(self._examples, passed),
            "tokens_per_second": rate(int(total), passed),
            "waiting_for_data": round(self._waiting / passed, 6) if passed else None,
        }
        self._started = None
        self._clear()
        return line


def rate(count: int, seconds: float) -> float | None:
    """Examples or tokens a second; None where no time has passed."""
    return round(count / seconds, 3) if seconds else None
