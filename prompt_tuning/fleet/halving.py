"""Successive halving: at some steps only the best members of a search go on (Jamieson and Talwalkar 2016).

A member's schedule keeps its own horizon, so that those that go on have the numbers they would have had without a search.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence

from prompt_tuning.fleet.member import Member
from prompt_tuning.settings.search import HalvingSection

logger = logging.getLogger(__name__)


def halve(members: Sequence[Member], judged: Sequence[int], halving: HalvingSection, says: bool) -> None:
    """Stop those of the members ``judged`` (places) that are not among the best of their rung, of one task and metric.

    All that ever came to the rung count, also those that came earlier: members that are added later meet their scores.
    """
    for rung in halving.rungs:
        here = [
            i for i in judged if members[i].step == rung and members[i].status == "running" and rung in members[i].rungs
        ]
        for task in dict.fromkeys(_contest(members[i]) for i in here):
            rivals = [i for i, member in enumerate(members) if rung in member.rungs and _contest(member) == task]
            ranked = sorted(rivals, key=lambda i: -members[i].rungs[rung])  # stable: of equals the first goes on
            kept = ranked[: math.ceil(halving.keep * len(ranked))]
            for index in here:
                if _contest(members[index]) == task and index not in kept:
                    members[index].status = "stopped"
                    if says:
                        logger.info(
                            "%s: place %d of %d after %d steps, and only %d go on",
                            members[index].name,
                            ranked.index(index) + 1,
                            len(ranked),
                            rung,
                            len(kept),
                        )


def _contest(member: Member) -> tuple[str, str]:
    """What must be equal for scores to be compared."""
    return member.task.name, member.task.selects_by
