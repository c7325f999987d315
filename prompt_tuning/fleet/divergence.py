"""Members whose numbers are no longer finite: found where the device is read, and stopped without harm to the others."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass

import torch

from prompt_tuning.fleet.member import Member
from prompt_tuning.fleet.step import Fleet, StepRecord

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reading:
    """A member's step as the device gave it back: its mean loss and unclipped gradient norm."""

    member: int
    step: int
    """Counted from 1."""
    loss: float
    norm: float

    @property
    def is_finite(self) -> bool:
        """Whether training can go on from it."""
        return math.isfinite(self.loss) and math.isfinite(self.norm)


class Pending:
    """Steps whose numbers are still on the device."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self._records: list[StepRecord] = []
        self._steps: list[list[int]] = []

    def add(self, record: StepRecord) -> None:
        """Remember a step that members have just done, each its own, without waiting for the device."""
        self._records.append(record)
        self._steps.append([self.fleet.members[index].step for index in record.members])

    def read(self) -> list[Reading]:
        """Wait for the device. A member's first reading that is not finite stops it and is its last one."""
        if not self._records:
            return []
        losses = torch.cat([record.losses for record in self._records]).tolist()
        norms = torch.cat([record.norms.double() for record in self._records]).tolist()
        done = zip(self._records, self._steps, strict=True)
        places = [pair for record, steps in done for pair in zip(record.members, steps, strict=True)]
        self._records.clear()
        self._steps.clear()
        readings = []
        for (index, step), loss, norm in zip(places, losses, norms, strict=True):
            member = self.fleet.members[index]
            if member.status == "diverged":
                continue
            readings.append(Reading(index, step, loss, norm))
            if not readings[-1].is_finite:
                stop(member, step, self.fleet.grid.is_first)
        return readings


def stop(member: Member, step: int, says: bool) -> None:
    """Take a member out of the training; the others go on."""
    member.status = "diverged"
    if says:
        logger.warning("%s: diverged in step %d and is stopped; the others go on", member.name, step)
