"""The one error that users see."""

import textwrap


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, the value met and what to do; no traceback is shown."""


def reason(error: BaseException) -> str:
    """What another library says of an error, on one short line."""
    text = textwrap.shorten(str(error), 240, placeholder=" ...")
    return f"{type(error).__name__} {text}".strip() if isinstance(error, LookupError) or not text else text
