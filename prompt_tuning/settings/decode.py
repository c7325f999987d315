"""How texts are written, token by token."""

from __future__ import annotations

from typing import Any

from pydantic import Field, ValidationError, model_validator

from prompt_tuning.errors import UserError
from prompt_tuning.messages import sentences
from prompt_tuning.section import Section


class DecodeSection(Section):
    """How the language model writes texts (generation tasks); greedily unless said otherwise."""

    max_new_tokens: int | None = Field(
        None, gt=0, description="Most tokens of a written text; None: `data.max_target_length`."
    )
    num_beams: int = Field(1, gt=0, le=64, description="Beams that are searched; 1: none but the likeliest token.")
    sample: bool = Field(False, description="Draw tokens, by the member's seed, instead of taking the likeliest.")
    temperature: float = Field(1.0, gt=0, description="Divides the logits before tokens are drawn.")
    top_p: float = Field(1.0, gt=0, le=1, description="Draw among the likeliest tokens that have this share together.")
    stop: list[str] = Field([], description="Texts at which writing ends, and which are cut off with all behind them.")
    max_examples: int | None = Field(
        200,
        gt=0,
        description="Rows of dev that are written at an evaluation, the first ones; None: all. Test is whole.",
    )

    @model_validator(mode="after")
    def _consistent(self) -> DecodeSection:
        if not self.sample and (self.temperature != 1 or self.top_p != 1):
            raise ValueError("temperature and top_p are of drawn tokens; set sample to true")
        if self.sample and self.num_beams > 1:
            raise ValueError(f"num_beams={self.num_beams} does not go with sample; keep one of them")
        if "" in self.stop:
            raise ValueError("stop has an empty text, at which every text ends; remove it")
        return self


def checked_settings(decode: DecodeSection, changes: dict[str, Any]) -> DecodeSection:
    """Settings of writing with some changed. Raises :class:`UserError`."""
    try:
        return DecodeSection.model_validate({**decode.model_dump(), **changes})
    except ValidationError as error:
        raise UserError(
            "; ".join(f"{place}: {text}".lstrip(": ") for place, text in sentences(error, DecodeSection, ()))
        ) from None
