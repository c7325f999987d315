"""Searches: members whose settings are drawn from distributions (Bergstra and Bengio 2012), and halving among them."""

from __future__ import annotations

import hashlib
import json
import math
from typing import Any

from pydantic import Field, model_validator

from prompt_tuning.section import Section

DIGITS = 4
"""Significant digits of a drawn number: enough to search, few enough to read."""


class Distribution(Section):
    """Where the values of one key come from: exactly one of these."""

    uniform: list[float] | None = Field(None, min_length=2, max_length=2, description="Lowest and highest number.")
    log_uniform: list[float] | None = Field(
        None, min_length=2, max_length=2, description="Lowest and highest number, whose logarithm is drawn evenly."
    )
    integer: list[int] | None = Field(None, min_length=2, max_length=2, description="Lowest and highest whole number.")
    choice: list[Any] | None = Field(None, min_length=1, description="Values, each as likely as any other.")

    @model_validator(mode="after")
    def _sensible(self) -> Distribution:
        given = [name for name in type(self).model_fields if getattr(self, name) is not None]
        if len(given) != 1:
            raise ValueError(
                f"has {' and '.join(given) or 'nothing'}; give one of uniform, log_uniform, integer, choice"
            )
        ends = getattr(self, given[0])
        if given[0] != "choice" and not ends[0] < ends[1]:
            raise ValueError(f"{given[0]}: {ends[0]} is not below {ends[1]}; give the lowest first")
        if given[0] == "log_uniform" and ends[0] <= 0:
            raise ValueError(f"log_uniform: {ends[0]} has no logarithm; give numbers above 0")
        return self

    def value(self, share: float) -> Any:
        """The value below which this share in [0, 1) of the distribution lies."""
        if self.choice is not None:
            return self.choice[int(share * len(self.choice))]
        if self.integer is not None:
            first, last = self.integer
            return first + int(share * (last - first + 1))
        if self.uniform is not None:
            low, high = self.uniform
            return _rounded(low + share * (high - low))
        assert self.log_uniform is not None
        low, high = map(math.log, self.log_uniform)
        return _rounded(math.exp(low + share * (high - low)))


class RandomSection(Section):
    """Members drawn at random."""

    samples: int = Field(gt=0, le=100_000, description="How many; the first ones stay the same when there are more.")
    seed: int = Field(0, description="Seed of the draws.")
    distributions: dict[str, Distribution] = Field(
        min_length=1,
        description='By dotted key: {"uniform": [a, b]}, {"log_uniform": [a, b]}, {"integer": [a, b]} or {"choice": [...]}.',
    )

    def points(self) -> list[dict[str, Any]]:
        """Values by dotted key of every sample, a function of seed, number and key alone; equal ones once."""
        found: dict[str, dict[str, Any]] = {}
        for number in range(self.samples):
            point = {key: own.value(_share(self.seed, number, key)) for key, own in self.distributions.items()}
            found.setdefault(json.dumps(point), point)
        return list(found.values())


class HalvingSection(Section):
    """At some steps only the best members go on."""

    rungs: list[int] = Field(min_length=1, description="Steps after which members are compared on dev, ascending.")
    keep: float = Field(
        0.5, gt=0, lt=1, description="Share of the members that came to a rung which goes on, rounded up."
    )

    @model_validator(mode="after")
    def _sensible(self) -> HalvingSection:
        if self.rungs[0] < 1 or any(b <= a for a, b in zip(self.rungs, self.rungs[1:], strict=False)):
            raise ValueError(
                f"rungs: {self.rungs} do not ascend from a first step; give numbers of steps such as [50, 100, 200]"
            )
        return self


def _share(seed: int, number: int, key: str) -> float:
    """A number in [0, 1) that follows from seed, number of the sample and key."""
    digest = hashlib.sha256(json.dumps([seed, number, key]).encode()).digest()
    return int.from_bytes(digest[:8], "big") / 2**64


def _rounded(number: float) -> float:
    return float(f"{number:.{DIGITS}g}")
