"""The routes: from a request to a job for the model, and from its answer to a response."""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from prompt_tuning.errors import UserError
from prompt_tuning.predict import AttachedPrompts
from prompt_tuning.prompt.export import name_of
from prompt_tuning.serve.batcher import Batcher, Job
from prompt_tuning.serve.bounds import Limits
from prompt_tuning.serve.completions import Asked, Completion, Conversation, model_card, read_asked
from prompt_tuning.serve.guard import PATHS, Guard, Meters
from prompt_tuning.serve.limits import (
    Keys,
    Refusal,
    check_count,
    nothing_else,
    read_json,
    refused,
    reply,
    take,
)
from prompt_tuning.serve.shelf import Shelf
from prompt_tuning.serve.store import Store
from prompt_tuning.serve.stream import Events, Growing
from prompt_tuning.serve.work import Work

logger = logging.getLogger(__name__)

Handler = Callable[[Request], Awaitable[Response]]


class Service:
    """Prompts on their backbone as an ASGI application, :attr:`app`, with the thread that runs the model.

    ``names``: of the model's prompts; ``folders``: those from which clients may add prompts. Where ``limits`` bound the prompts' bytes,
    the model's are put aside, and read from their folders when asked for.
    """

    def __init__(
        self,
        model: AttachedPrompts,
        names: Sequence[str],
        folders: Sequence[Path],
        limits: Limits | None = None,
        keys: Keys | None = None,
    ) -> None:
        self.limits = limits or Limits()
        self.meters = Meters()
        shelf = Shelf(model.device, self.limits.prompt_bytes, self.meters.of_prompts)
        self.store = Store(model, names, folders, shelf)
        self.work = Work(self.store, self.limits)
        self.batcher = Batcher(model.budget, self.meters.batch).start()
        self.meters.watch("queue_length", "Requests that wait for the model.", lambda: self.batcher.length)
        self.meters.watch("prompts", "Prompts that are served.", lambda: len(self.store.places))
        self.meters.watch("prompts_held", "Prompts whose tensors are on the device.", lambda: shelf.num_held)
        self.meters.watch("prompt_bytes", "What the tensors of prompts take there.", lambda: shelf.bytes)
        routes: dict[tuple[str, str], Handler] = {
            ("/predict", "POST"): self.predict,
            ("/generate", "POST"): self.generate,
            ("/prompts", "GET"): self.list_prompts,
            ("/prompts", "POST"): self.add_prompt,
            ("/prompts/{name}", "DELETE"): self.remove_prompt,
            ("/v1/models", "GET"): self.list_models,
            ("/v1/models/{name}", "GET"): self.show_model,
            ("/v1/completions", "POST"): partial(self.completions, Completion),
            ("/v1/chat/completions", "POST"): partial(self.completions, Conversation),
            ("/health", "GET"): self.health,
            ("/metrics", "GET"): self.metrics,
        }
        inner = Starlette(
            routes=[Route(path, _answered(handler), methods=[method]) for (path, method), handler in routes.items()],
            exception_handlers={HTTPException: _no_route},
        )
        inner.router.redirect_slashes = False
        self.app = Guard(inner, keys or Keys(), self.limits, self.meters)

    async def predict(self, request: Request) -> Response:
        """``{"prompt": name, "rows": [...]}`` -> ``{"prompt": name, "answers": [...]}``."""
        body = await read_json(request, self.limits)
        name = take(body, "prompt", str, "a prompt's name")
        rows = take(body, "rows", list, "a list of rows")
        nothing_else(body)
        check_count(len(rows), self.limits.rows, "rows")
        for i, row in enumerate(rows, 1):
            if not isinstance(row, dict):
                raise Refusal(400, f"row {i} is not an object with the prompt's columns")
        answers = await self._done(self.work.predict(name, rows), request)
        self.meters.rows.inc(len(rows))
        return reply({"prompt": name, "answers": answers})

    async def generate(self, request: Request) -> Response:
        """``{"prompt": name, "texts": [...], "settings": {...}, "stream": false}`` -> ``{"prompt": name, "texts": [...]}``."""
        body = await read_json(request, self.limits)
        name = take(body, "prompt", str, "a prompt's name")
        texts = take(body, "texts", list, "a list of texts")
        settings = take(body, "settings", dict, 'settings of writing, such as {"max_new_tokens": 20}', {})
        is_stream = take(body, "stream", bool, "true or false", False)
        nothing_else(body)
        check_count(len(texts), self.limits.rows, "texts")
        if is_stream:
            return await self._stream(request, partial(self.work.generate, name, texts, settings), len(texts), Events())
        written = await self._done(self.work.generate(name, texts, settings), request)
        self.meters.rows.inc(len(texts))
        return reply({"prompt": name, "texts": [text.text for _, text in written]})

    async def completions(self, kind: type[Asked], request: Request) -> Response:
        """Texts by OpenAI's protocol for completions, or a reply by that for chats."""
        asked = read_asked(kind, await read_json(request, self.limits))
        sources = asked.sources
        check_count(len(sources), self.limits.rows, "texts")
        exported = self.store.find(asked.model)
        seed = secrets.randbits(31) if asked.seed is None else asked.seed
        job = partial(self.work.generate, asked.model, sources, asked.settings(exported.decode), seed=seed)
        if asked.stream:
            return await self._stream(request, job, len(sources), asked.events())
        written = await self._done(job(), request)
        self.meters.rows.inc(len(sources))
        return reply(asked.answer(written))

    async def list_models(self, request: Request) -> Response:
        """The prompts that write texts, as models by OpenAI's protocol."""
        return reply({"object": "list", "data": [model_card(name) for name in self.store.writers()]})

    async def show_model(self, request: Request) -> Response:
        """One of them."""
        name = request.path_params["name"]
        if name not in self.store.writers():
            raise Refusal(404, f"no prompt {name[:200]!r} that writes texts here; `GET /v1/models` lists them")
        return reply(model_card(name))

    async def _stream(
        self, request: Request, job: Callable[[Callable[[str], None]], Job], count: int, events: Events
    ) -> Response:
        if count != 1:
            raise Refusal(400, f"{count} texts; a stream is of one")
        growing, deadline = Growing(request.is_disconnected), time.monotonic() + self.limits.seconds
        answer = self.batcher.put(job(growing.grow))
        try:
            first = await growing.begun(answer, self.limits.seconds)
        except TimeoutError:
            raise self._late(answer) from None
        finally:
            if not growing.has_begun:
                growing.give_up()
        self.meters.rows.inc()
        return StreamingResponse(growing.events(first, answer, deadline, events), media_type="text/event-stream")

    async def list_prompts(self, request: Request) -> Response:
        """All prompts with their tasks, columns and labels."""
        return reply({"prompts": self.store.described()})

    async def add_prompt(self, request: Request) -> Response:
        """``{"folder": path below an allowed folder, "name": name}``; without name it is called like its folder."""
        body = await read_json(request, self.limits)
        folder = take(body, "folder", str, "a path below a folder that is served")
        name = take(body, "name", str, "a name", name_of(Path(folder)))
        nothing_else(body)
        self.store.check_new(name)
        exported = await asyncio.to_thread(self.store.read, folder)
        return reply(await self._done(Job(lambda _: [self.store.add(name, exported, folder)]), request), 201)

    async def remove_prompt(self, request: Request) -> Response:
        """Serve a prompt no longer; what waits for it is answered before."""
        name = request.path_params["name"]
        self.store.find(name)
        await self._done(Job(lambda _: [self.store.remove(name)]), request)
        return reply({"removed": name})

    async def health(self, request: Request) -> Response:
        """200 while requests are answered."""
        if self.app.gate.is_closed:
            raise Refusal(503, "the server is stopping")
        if not self.batcher.is_alive:
            raise Refusal(503, "the model's thread has ended; start the server again")
        return reply({"status": "ok", "prompts": len(self.store.places)})

    async def metrics(self, request: Request) -> Response:
        """Prometheus' text format."""
        return Response(generate_latest(self.meters.registry), media_type=CONTENT_TYPE_LATEST)

    async def _done(self, job: Job, request: Request) -> Any:
        """A job's answer. Raises what it ends in, :class:`Refusal` where it is late, and :class:`ClientDisconnect`."""
        waiting = self.batcher.put(job)
        answer, gone = asyncio.wrap_future(waiting), asyncio.ensure_future(_disconnected(request))
        try:
            await asyncio.wait({answer, gone}, timeout=self.limits.seconds, return_when=asyncio.FIRST_COMPLETED)
            if answer.done():
                return answer.result()
            if gone.done():
                raise ClientDisconnect
            raise self._late(waiting)
        finally:
            # At once: the other future would hear of it in the loop's next round, and the thread may be quicker.
            waiting.cancel()
            answer.cancel()
            gone.cancel()

    def _late(self, answer: Future[Any]) -> Refusal:
        if answer.cancel():
            said = f"the request has waited {self.limits.seconds:g} s for its turn; try again later"
            return Refusal(503, said, {"Retry-After": "10"})
        return Refusal(504, f"the model did not answer within {self.limits.seconds:g} s; send less at once")

    def stop(self) -> None:
        """Let nobody in any more."""
        self.app.gate.is_closed = True

    @property
    def is_empty(self) -> bool:
        """Whether every request that was let in has its answer."""
        return self.app.gate.inside == 0

    def close(self, seconds: float = 10.0) -> None:
        """Let nobody in, and end the model's thread behind what waits for it."""
        self.stop()
        self.batcher.close(seconds)


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _answered(handler: Handler) -> Handler:
    """A handler that answers its own errors, each with one sentence."""

    async def answer(request: Request) -> Response:
        try:
            return await handler(request)
        except Refusal as refusal:
            return refused(request.url.path, refusal.status, str(refusal), refusal.headers)
        except UserError as error:
            return refused(request.url.path, 400, str(error))
        except ClientDisconnect:
            return refused(request.url.path, 499, "the client has gone")
        except Exception:
            logger.exception("%s %s failed", request.method, request.url.path)
            return refused(request.url.path, 500, "the request could not be answered; the server's log says why")

    return answer


async def _no_route(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        return refused(request.url.path, 405, f"{request.method} is not for this path", error.headers)
    return refused(request.url.path, error.status_code, f"no such path; there are {', '.join(PATHS)}", error.headers)
