"""What a request may be, and what is said to one that may not."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import json
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from prompt_tuning.messages import show
from prompt_tuning.serve.bounds import Limits
from prompt_tuning.storage.lines import json_line


class Refusal(Exception):
    """A request that gets no answer: HTTP status, one sentence, and headers."""

    def __init__(self, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(sentence)
        self.status, self.headers = status, dict(headers or {})


SENTENCE_CHARACTERS = 500


def reply(content: Any, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    """JSON as `predict` writes it: numbers that are not finite are null."""
    return Response(json_line(content), status, headers, "application/json")


def refused(path: str, status: int, sentence: str, headers: Mapping[str, str] | None = None) -> Response:
    """One sentence as JSON, below /v1 as OpenAI's clients want it; names out of a request do not make it longer than a few lines."""
    line = " ".join(sentence.split())[:SENTENCE_CHARACTERS]
    if not path.startswith("/v1/"):
        return reply({"error": line}, status, headers)
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(status, "invalid_request_error" if status < 500 else "server_error")
    return reply({"error": {"message": line, "type": kind, "param": None, "code": None}}, status, headers)


async def read_json(request: Request, limits: Limits) -> dict[str, Any]:
    """The JSON object of a body. Raises :class:`Refusal`."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":  # what a page of another site can not send to a server on this machine
        raise Refusal(415, "the body is to be JSON; send the header `Content-Type: application/json`")
    try:
        body = await asyncio.wait_for(_read(request, limits.body_bytes), limits.body_seconds)
    except TimeoutError:
        raise Refusal(408, f"the body did not arrive within {limits.body_seconds:g} s") from None
    try:
        found = json.loads(body, parse_constant=_no_number)
    except RecursionError:
        raise Refusal(400, "the body is nested too deep") from None
    except ValueError as error:  # of text that is not Unicode, too
        raise Refusal(400, f"the body is not JSON: {error}") from None
    if not isinstance(found, dict):
        raise Refusal(400, f"the body is {show(found)}, not a JSON object")
    return found


async def _read(request: Request, most: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and len(declared) < 20 and int(declared) > most:
        raise Refusal(413, f"the body has {declared} bytes; send {most} at most")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > most:
            raise Refusal(413, f"the body has more than {most} bytes; send several requests")
    return bytes(body)


def _no_number(name: str) -> None:
    raise ValueError(f"{name} is not a number")


def take(body: dict[str, Any], key: str, kind: type, what: str, otherwise: Any = None) -> Any:
    """A value out of a body, which then no longer has it; ``what``: what it is to be. Raises :class:`Refusal`."""
    if key not in body and otherwise is not None:
        return otherwise
    if key not in body:
        raise Refusal(400, f"no `{key}` in the body; give {what}")
    value = body.pop(key)
    if not isinstance(value, kind):
        raise Refusal(400, f"`{key}` is {show(value)}; give {what}")
    return value


def nothing_else(body: Mapping[str, Any]) -> None:
    """Raise :class:`Refusal` for what :func:`take` has left."""
    if body:
        raise Refusal(400, f"unknown key {show(next(iter(body)))} in the body")


def check_count(count: int, most: int, what: str) -> None:
    """Raise :class:`Refusal` for more rows or texts than one request may have."""
    if count > most:
        raise Refusal(413, f"{count} {what}; send {most} at most in one request")


class Keys:
    """API keys, of which a request has to show one; none: all are let in."""

    def __init__(self, keys: Sequence[str] = ()) -> None:
        self._digests = [hashlib.sha256(key.encode()).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def check(self, authorization: bytes) -> None:
        """Raise :class:`Refusal` unless ``Bearer KEY`` has a key; how long that takes tells nothing about the keys."""
        if not self._digests:
            return
        scheme, _, key = authorization.partition(b" ")
        shown, is_known = hashlib.sha256(key.strip()).digest(), False
        for digest in self._digests:
            is_known |= hmac.compare_digest(digest, shown)
        if not is_known or scheme.lower() != b"bearer":
            raise Refusal(401, "no valid API key; send `Authorization: Bearer KEY`", {"WWW-Authenticate": "Bearer"})
