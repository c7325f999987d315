"""The one error that users see."""


class UserError(Exception):
    """Something the user can mend. The message says what is wrong, the value met and what to do; no traceback is shown."""
