"""A run, resolved: its members with their complete settings, and where its results go."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from prompt_tuning.errors import UserError
from prompt_tuning.settings.merge import Json
from prompt_tuning.settings.schema import RunFile
from prompt_tuning.settings.search import HalvingSection
from prompt_tuning.settings.start import StartText
from prompt_tuning.storage.records import RunRecord


@dataclass(frozen=True)
class MemberSpec:
    """One member of a run: its name, what differs from the run file, and its complete settings."""

    name: str
    overrides: Json
    config: RunFile


@dataclass(frozen=True)
class Run:
    """A resolved run: never empty; an ordinary run has one member."""

    name: str
    output: Path
    members: tuple[MemberSpec, ...]
    shared_prompt: bool = False
    """Whether all members train one prefix."""
    halving: HalvingSection | None = None
    concurrent: int | None = None
    """Most members that train at once; it changes rounding alone."""

    @property
    def shared(self) -> RunFile:
        """Settings that are the same for all members (backbone, parallel, bookkeeping)."""
        return self.members[0].config

    @property
    def writes(self) -> bool:
        """Whether any member's answers are texts, for which an encoder-decoder is loaded whole."""
        return any(member.config.is_written for member in self.members)

    def to_json(self) -> RunRecord:
        """What run.json records: every member's settings, resolved."""
        return {
            "name": self.name,
            "shared_prompt": self.shared_prompt,
            "concurrent": self.concurrent,
            "halving": None if self.halving is None else self.halving.model_dump(mode="json"),
            "members": [
                {"name": m.name, "overrides": m.overrides, "config": m.config.model_dump(mode="json", by_alias=True)}
                for m in self.members
            ],
        }


def with_digest(config: RunFile, path: Path) -> RunFile:
    """Settings with the digest of the file that the prompt starts from, so that another content is another experiment.

    Raises :class:`UserError`, which begins with ``path``.
    """
    init = config.prompt.init
    if not isinstance(init, StartText):
        return config
    try:
        prompt = config.prompt.model_copy(update={"init": init.recorded()})
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return config.model_copy(update={"prompt": prompt})
