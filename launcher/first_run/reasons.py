"""What was chosen, with its reasons: the task, and the settings of a run file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Advice:
    """Settings by dotted key with their reasons, in order, and what should be known of the data."""

    given: Mapping[str, Any]
    """Settings that are decided already, by dotted key."""
    settings: dict[str, Any] = field(default_factory=dict)
    whys: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def say(self, key: str, value: Any, why: str) -> Any:
        """Take a setting unless it is given; the one that holds."""
        if key in self.given:
            value, why = self.given[key], "given with --set"
        self.settings[key], self.whys[key] = value, why
        return value


@dataclass(frozen=True)
class Recognised:
    """A task's settings, why they are these, and the columns that nothing asks for."""

    task: dict[str, Any]
    why: str
    unused: tuple[str, ...] = ()
