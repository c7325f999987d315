"""The process: a socket, uvicorn on it, and a stop that leaves nobody without an answer."""

from __future__ import annotations

import logging
import socket
import time
from types import FrameType

import uvicorn

from prompt_tuning.errors import UserError
from prompt_tuning.serve.app import Service


def bind(host: str, port: int) -> socket.socket:
    """A socket that does not listen yet; 0: any free port. Raises :class:`UserError`."""
    if not 0 <= port < 1 << 16:
        raise UserError(f"--port {port}: ports are 0 to 65535; choose another")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        found = socket.socket(family, kind, protocol)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"--host {host} --port {port}: {error}; choose another") from None
    return found


class _Server(uvicorn.Server):
    """Asked to stop, it lets nobody in, waits for those inside, and only then closes its socket; asked twice, it ends."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self._service = service
        self._deadline: float | None = None

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """A signal."""
        if self._deadline is not None:
            self.should_exit = self.force_exit = True
            return
        self._deadline = time.monotonic() + self._service.limits.stop_seconds
        self._service.stop()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether to end."""
        is_asked = self._deadline is not None and (self._service.is_empty or time.monotonic() > self._deadline)
        return await super().on_tick(counter) or is_asked


def run(service: Service, listener: socket.socket) -> bool:
    """Answer requests until a signal; whether all that were let in have been answered."""
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)  # not a line for everyone who speaks no HTTP
    config = uvicorn.Config(
        service.app,
        http="h11",
        ws="none",
        loop="asyncio",
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        # Connections, of which clients keep more than they use.
        limit_concurrency=4 * service.limits.requests + 64,
        timeout_graceful_shutdown=1,
    )
    try:
        _Server(config, service).run(sockets=[listener])
        return service.is_empty
    finally:
        service.close(1.0)
