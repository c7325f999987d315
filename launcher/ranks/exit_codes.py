"""What the exit codes of the worker and of the driver mean, beside 0 (done) and 1 (a sentence on stderr says why)."""

DIVERGED = 3
"""The run is complete, but a member of it diverged."""
STOPPED = 75
"""Asked to stop, and saved: start it again (EX_TEMPFAIL of sysexits.h)."""
INTERRUPTED = 130
"""By Ctrl-C, as a shell names it."""
BROKEN_PIPE = 141
"""The reader of the output has gone, as a shell names it."""


def of_signal(number: int) -> int:
    """Of a process that a signal has ended before there was anything to save."""
    return 128 + number
