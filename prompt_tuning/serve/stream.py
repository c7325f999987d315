"""A text as it grows: from the tokens of `generate` to server-sent events."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from concurrent.futures import Future

import numpy as np
from torch import Tensor

from prompt_tuning.errors import UserError
from prompt_tuning.forward.write import Text
from prompt_tuning.serve.limits import Refusal
from prompt_tuning.storage.lines import json_line

logger = logging.getLogger(__name__)


class Streamer:
    """Takes the tokens of one text as `generate` of transformers gives them; hands on the text so far, as far as it is sure."""

    def __init__(
        self, text_of: Callable[[np.ndarray], str], stop: Sequence[str], pieces: Callable[[str], None]
    ) -> None:
        self._text_of, self._stop, self._pieces = text_of, stop, pieces
        self._tokens: list[int] | None = None

    def put(self, tokens: Tensor) -> None:
        """The source [1, L], then token after token [1]."""
        if self._tokens is None:
            self._tokens = []
            return
        self._tokens += tokens.flatten().tolist()
        self._pieces(sure_part(self._text_of(np.asarray(self._tokens)), self._stop))

    def end(self) -> None:
        """Nothing comes any more; the whole text is the job's answer."""


def sure_part(text: str, stop: Sequence[str]) -> str:
    """A text so far without what may yet change: characters half there, and what may begin a text at which writing ends."""
    text = text.rstrip("\ufffd")
    unsure = 0
    for piece in stop:
        ends = (n for n in range(min(len(piece) - 1, len(text)), 0, -1) if piece.startswith(text[-n:]))
        unsure = max(unsure, next(ends, 0))
    return text[: len(text) - unsure].rstrip()


class Gone(Exception):
    """Nobody waits for the text any more."""


class Events:
    """How a growing text is told: ``{"text": piece}``, ``{"done": true, "text": whole}`` and ``{"error": sentence}``."""

    def piece(self, text: str) -> bytes:
        """What came since."""
        return event({"text": text})

    def end(self, num_source: int, text: Text) -> bytes:
        """The text is whole; ``num_source``: tokens behind which it stands."""
        return event({"done": True, "text": text.text})

    def error(self, sentence: str) -> bytes:
        """There will be no whole text."""
        return event({"error": sentence})


class Growing:
    """A text between the model's thread, which lets it grow, and the loop that sends it."""

    def __init__(self, is_gone: Callable[[], Awaitable[bool]]) -> None:
        self._client_is_gone = is_gone
        self.has_begun = False
        self._loop = asyncio.get_running_loop()
        self._texts: asyncio.Queue[str | None] = asyncio.Queue()
        self._is_gone = False

    def grow(self, text: str) -> None:
        """The text so far. For the model's thread; raises :class:`Gone`."""
        if self._is_gone:
            raise Gone
        self._loop.call_soon_threadsafe(self._texts.put_nowait, text)

    def give_up(self) -> None:
        """Let the next token be the last one."""
        self._is_gone = True

    async def begun(self, answer: Future[list[tuple[int, Text]]], seconds: float) -> str | None:
        """The first text; None: the job has ended before. Raises :class:`TimeoutError` and what the job ended in."""
        answer.add_done_callback(lambda _: self._loop.call_soon_threadsafe(self._texts.put_nowait, None))
        first = await asyncio.wait_for(self._texts.get(), seconds)
        if first is None:
            answer.result()
        self.has_begun = True
        return first

    async def events(
        self, first: str | None, answer: Future[list[tuple[int, Text]]], deadline: float, events: Events
    ) -> AsyncIterator[bytes]:
        """Server-sent events: a piece again and again, then the end, or an error."""
        sent = ""
        try:
            text = first
            while text is not None:
                if text.startswith(sent) and len(text) > len(sent):
                    yield events.piece(text[len(sent) :])
                    sent = text
                if await self._client_is_gone():
                    return
                text = await asyncio.wait_for(self._texts.get(), max(0.0, deadline - time.monotonic()))
            ((num_source, whole),) = answer.result()
            if whole.text.startswith(sent) and len(whole.text) > len(sent):
                yield events.piece(whole.text[len(sent) :])
            yield events.end(num_source, whole)
        except TimeoutError:
            yield events.error("the text was not complete in time")
        except (UserError, Refusal) as error:
            yield events.error(str(error))
        except Exception:
            logger.exception("a text could not be completed")
            yield events.error("the text could not be completed; the server's log says why")
        finally:
            self.give_up()


def event(content: dict[str, object]) -> bytes:
    """One server-sent event."""
    return b"data: " + json_line(content) + b"\n"
