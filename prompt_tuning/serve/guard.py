"""Around the application: who is let in, how many at once, and what is counted."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from prompt_tuning.serve.bounds import Limits
from prompt_tuning.serve.limits import Keys, Refusal, refused

PATHS = (
    "/predict",
    "/generate",
    "/prompts",
    "/v1/models",
    "/v1/completions",
    "/v1/chat/completions",
    "/health",
    "/metrics",
)
_POWERS = tuple(4.0**i for i in range(9))
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, math.inf)


class Meters:
    """What `/metrics` tells."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()

        def histogram(name: str, text: str, buckets: tuple[float, ...], labels: tuple[str, ...] = ()) -> Histogram:
            return Histogram(f"promptfleet_{name}", text, labels, registry=self.registry, buckets=buckets)

        self.requests = Counter(
            "promptfleet_requests", "Requests answered.", ("path", "status"), registry=self.registry
        )
        self.rows = Counter("promptfleet_rows", "Rows and texts answered.", registry=self.registry)
        self.seconds = histogram("request_seconds", "From a request to the end of its answer.", _SECONDS, ("path",))
        self.batch_requests = histogram("batch_requests", "Requests that were run together.", _POWERS[:6])
        self.batch_tokens = histogram("batch_tokens", "Tokens that were run together.", _POWERS)
        self._of_prompts = {
            "load": Counter("promptfleet_prompt_loads", "Prompts read when asked for.", registry=self.registry),
            "eviction": Counter(
                "promptfleet_prompt_evictions", "Prompts put aside for others.", registry=self.registry
            ),
        }

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Tell a number of the moment when asked."""
        Gauge(f"promptfleet_{name}", text, registry=self.registry).set_function(value)

    def batch(self, requests: int, tokens: int) -> None:
        """Count a batch."""
        self.batch_requests.observe(requests)
        self.batch_tokens.observe(tokens)

    def of_prompts(self, event: str) -> None:
        """Count a "load" or an "eviction" of a prompt."""
        self._of_prompts[event].inc()


class Gate:
    """How many requests are inside, and whether more may come."""

    def __init__(self, most: int) -> None:
        self.most, self.inside, self.is_closed = most, 0, False

    def check(self) -> None:
        """Raise :class:`Refusal` where nobody else may come in."""
        if self.is_closed:
            raise Refusal(503, "the server is stopping", {"Retry-After": "10", "Connection": "close"})
        if self.inside >= self.most:
            raise Refusal(429, f"{self.inside} requests are waiting; try again in a second", {"Retry-After": "1"})


class Guard:
    """The application behind keys, gate and meters. `/health` is open to all; reading alone does not wait at the gate."""

    def __init__(self, app: ASGIApp, keys: Keys, limits: Limits, meters: Meters) -> None:
        self.app, self.keys, self.meters = app, keys, meters
        self.gate = Gate(limits.requests)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request."""
        if scope["type"] != "http":
            return
        began, status, entered = time.monotonic(), 499, False  # 499: the client has gone

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if scope["path"] != "/health":
                self.keys.check(_header(scope, b"authorization"))
            if scope["method"] not in ("GET", "HEAD"):
                self.gate.check()
                self.gate.inside += 1
                entered = True
            await self.app(scope, receive, noted)
        except Refusal as refusal:
            await refused(scope["path"], refusal.status, str(refusal), refusal.headers)(scope, receive, noted)
        finally:
            self.gate.inside -= entered
            path = next((path for path in PATHS if f"{scope['path']}/".startswith(f"{path}/")), "other")
            self.meters.requests.labels(path, status).inc()
            self.meters.seconds.labels(path).observe(time.monotonic() - began)


def _header(scope: Scope, name: bytes) -> bytes:
    return next((bytes(value) for own, value in scope["headers"] if own.lower() == name), b"")
