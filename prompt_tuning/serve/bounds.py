"""How much a server takes, with its defaults; nothing heavy is imported, so that `--help` can tell them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Of one request and of all together."""

    requests: int = 256
    """Being read, waiting or running at once."""
    body_bytes: int = 1 << 20
    rows: int = 256
    """Or texts."""
    tokens: int = 1 << 16
    """Of texts and of the prompt in front of each; for texts to be written, with what may come behind."""
    new_tokens: int = 1024
    """Written behind a text."""
    body_seconds: float = 10.0
    """Within which a body has to arrive."""
    seconds: float = 60.0
    """From then on to the answer."""
    stop_seconds: float = 30.0
    """Within which requests are answered once the server was asked to stop."""
    prompt_bytes: int | None = None
    """Of prompts' tensors on the device; None: all stay there."""
