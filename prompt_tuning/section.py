"""A strict, frozen part of a run file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict

FOLDER_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]*$"
"""What names may look like that become folders: nothing that leads out of a folder."""


class Section(BaseModel):
    """A strict, frozen part of a run file: unknown keys, silent conversions and infinite numbers are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)
