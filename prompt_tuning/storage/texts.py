"""Text files that a setting names."""

from __future__ import annotations

from prompt_tuning.errors import UserError
from prompt_tuning.storage.atomic import expand


def read_content(key: str, file: str) -> bytes:
    """The bytes of the file that setting ``key`` names. Raises :class:`UserError`."""
    try:
        return expand(file).read_bytes()
    except OSError as error:
        raise UserError(f"{key}={file}: cannot be read ({error.strerror}); give a text file") from None


def as_text(key: str, file: str, content: bytes) -> str:
    """The text of such bytes, UTF-8. Raises :class:`UserError`."""
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{key}={file}: not UTF-8 (byte {error.start}: {error.reason}); save it as UTF-8") from None
