"""The section of a run file that says what is put in front of the text."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import Field, field_validator

from prompt_tuning.messages import show
from prompt_tuning.section import Section
from prompt_tuning.settings.start import Init, check_init

Positions = Literal["after_prefix", "from_zero"]


class PromptSection(Section):
    """What is put in front of the text."""

    length: int = Field(20, gt=0, le=65536, description="Prompt tokens P in front of every layer's attention.")
    positions: Positions = Field(
        "after_prefix", description="Position of the first text token: P (as the reference) or 0."
    )
    layers: list[int] | None = Field(
        None, min_length=1, description='Layers (from 0) that get a prefix, as a list or as "12-23"; None: all.'
    )
    sites: list[Literal["encoder", "decoder", "cross"]] | None = Field(
        None,
        min_length=1,
        description="Attentions of an encoder-decoder that get a prefix, cross the decoder's to the encoder; None: all.",
    )
    init: Init = Field(
        "normal",
        description="normal: N(0, 0.02); zero; data: the backbone's own keys and values of training text; or of a text below.",
    )
    init_from: str | None = Field(
        None, min_length=1, description="Exported prompt to start from: its folder, or its hub id."
    )
    frozen_tokens: int = Field(
        0,
        ge=0,
        description="First prompt tokens that stay as they start, such as attention sinks; needs a start from text.",
    )
    text: str | None = Field(
        None, min_length=1, description="Of method none: what the language model is told before each source."
    )
    shots: int = Field(
        0, ge=0, le=1000, description="Of method none: training rows shown before each source, drawn by the seed."
    )
    reparameterisation: Literal["none", "mlp"] = Field(
        "none", description="mlp: table -> Linear -> tanh -> Linear; folded to a plain table on export."
    )
    projection_width: int = Field(512, gt=0, le=65536, description="Inner width of the reparameterisation.")
    dropout: float = Field(0.0, ge=0, lt=1, description="Per-example dropout on prompts and on the head's input.")

    @field_validator("init", mode="before")
    @classmethod
    def _start(cls, value: Any) -> Any:
        return check_init(value)

    @field_validator("layers", mode="before")
    @classmethod
    def _ranges(cls, value: Any) -> Any:
        """``"0-2,8"`` is [0, 1, 2, 8]."""
        if not isinstance(value, str):
            return value
        found: list[int] = []
        for piece in value.split(","):
            match = re.fullmatch(r"\s*(\d{1,4})\s*(?:-\s*(\d{1,4})\s*)?", piece)
            first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
            if last < first:
                raise ValueError(f'{show(value)} names no layers; write a list, or ranges such as "12-23" or "0-2,8"')
            found += range(first, last + 1)
        return found
