"""Where prompts start: what ``prompt.init`` may be."""

from __future__ import annotations

import hashlib
from typing import Any, Literal

from pydantic import Field

from prompt_tuning.errors import UserError
from prompt_tuning.messages import show
from prompt_tuning.section import Section
from prompt_tuning.storage.texts import as_text, read_content

_KEY = "prompt.init.file"
CHOICES = ("normal", "zero", "data")


class StartText(Section):
    """A text whose keys and values a prompt starts from: exactly one of ``text`` and ``file``."""

    text: str | None = Field(None, description="The text itself, at least as many tokens as `prompt.length`.")
    file: str | None = Field(None, description="A UTF-8 file that holds the text.")
    sha256: str | None = Field(None, description="Digest of the file; null: filled in when the run file is read.")

    def read(self) -> str:
        """The text. Raises :class:`UserError`, also where the file is not the one that was recorded."""
        if self.file is None:
            return self.text or ""
        content = read_content(_KEY, self.file)
        if self.sha256 not in (None, _digest(content)):
            raise UserError(
                f"prompt.init.file={self.file}: its content is not the recorded one (prompt.init.sha256); give the file as"
                " it was, or train in a new folder"
            )
        return as_text(_KEY, self.file, content)

    def recorded(self) -> StartText:
        """With the digest of its file, by which a changed file makes another experiment. Raises :class:`UserError`."""
        if self.file is None or self.sha256 is not None:
            return self
        return self.model_copy(update={"sha256": _digest(read_content(_KEY, self.file))})


def check_init(value: Any) -> Any:
    """``prompt.init`` as the schema takes it; ``"text"`` is an older name of ``"data"``. Raises ValueError."""
    if isinstance(value, StartText) or value in CHOICES:
        return value
    if value == "text":
        return "data"
    if not isinstance(value, dict):
        raise ValueError(
            f'{show(value)} is unknown; choose \'normal\', \'zero\', \'data\', {{"text": "..."}} or {{"file": "..."}}'
        )
    unknown = [key for key in value if key not in StartText.model_fields]
    given = [key for key in ("text", "file") if value.get(key) is not None]
    if unknown or len(given) != 1:
        what = f"has an unknown key {show(unknown[0])}" if unknown else f"has {' and '.join(given) or 'nothing'}"
        raise ValueError(f'{what}; give {{"text": "..."}} or {{"file": "..."}}')
    own = value[given[0]]
    if not isinstance(own, str) or not own.strip() or "\0" in own:
        raise ValueError(f"{given[0]} is {show(own)}; give {'a text' if given[0] == 'text' else 'the path of a file'}")
    return value


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


Init = Literal["normal", "zero", "data"] | StartText
