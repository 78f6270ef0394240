"""The web server: listens, says when, and ends in order on SIGTERM or SIGINT.

From the signal on it is not ready any more, takes no further connection, and answers what is under way.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import ssl
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import uvicorn

from edgestill.core.listening import bound, url_of
from edgestill.device.serve.app import Outermost
from edgestill.device.serve.archives import Archives
from edgestill.device.serve.tokens import Anybody, Bearers
from edgestill.infer.serving.app import App
from edgestill.infer.serving.limits import RateLimit

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgestill.core.protocols import Clock
    from edgestill.device.serve.listening import Listening, Tls
    from edgestill.infer.serving.endpoint import Endpoint
    from edgestill.infer.serving.limits import Rate

log: Final = logging.getLogger(__name__)

DRAIN_SECONDS: Final = 20
MOST_CONNECTIONS: Final = 256


def app_of(
    endpoint: Endpoint,
    listening: Listening,
    *,
    rate: Rate,
    clock: Clock,
    max_body: int,
    archives: Path | None = None,
) -> Outermost:
    """The application that is served; with the slots of a folder, before the gate: bundles are no secret."""
    gate = Bearers(listening.tokens, clock) if listening.tokens else Anybody()
    limit = RateLimit(rate, clock=clock)
    app = App(endpoint, gate=gate, limit=limit, max_body=max_body)
    return Outermost(app if archives is None else Archives(archives, app))


def serve(
    app: Outermost, endpoint: Endpoint, listening: Listening, *, ready: Callable[[str], object]
) -> None:
    """Serves until a signal comes; closes the endpoint.

    Args:
        app: over the endpoint.
        endpoint: what is served.
        listening: where.
        ready: is told the address once it listens.

    Raises:
        PortError: the port cannot be bound.
    """
    with bound(listening.host, listening.port) as listener:
        url = url_of(listening.host, listener, tls=listening.tls is not None)
        server = Server(_config(app, listening), endpoint, ready=lambda: ready(url), tls=listening.tls)
        try:
            asyncio.run(server.serve([listener]))
        finally:
            endpoint.close()


class Server(uvicorn.Server):
    """Drains the endpoint on a signal, and says when it listens."""

    def __init__(
        self,
        config: uvicorn.Config,
        endpoint: Endpoint,
        *,
        ready: Callable[[], object],
        tls: Tls | None = None,
    ) -> None:
        super().__init__(config)
        self._endpoint = endpoint
        self._ready = ready
        self._tls = tls if tls is not None and tls.renews else None

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends on a signal by returning; the library's own way would die of it again afterwards."""
        loop, numbers = asyncio.get_running_loop(), (signal.SIGTERM, signal.SIGINT)
        for number in numbers:
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in numbers:
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and tells."""
        await super().startup(sockets)
        self._ready()

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to end. Once in a minute it takes up a certificate that was renewed."""
        if self._tls is not None and counter % 600 == 0:
            self.take_up()
        return await super().on_tick(counter)

    def take_up(self) -> None:
        """Reads certificate and authorities again; connections that are open go on."""
        if self._tls is None or self.config.ssl is None:
            return
        try:
            self.config.ssl.load_cert_chain(self._tls.certificate, self._tls.key)
            self.config.ssl.load_verify_locations(self._tls.clients)
        except OSError as error:  # which errors of TLS are too
            log.warning("the renewed certificate cannot be used: %s", error)

    def _end(self) -> None:
        self._endpoint.drain()
        self.should_exit = True


def _config(app: Outermost, listening: Listening) -> uvicorn.Config:
    tls = listening.tls
    return uvicorn.Config(
        app,
        interface="asgi3",
        lifespan="off",
        ws="none",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MOST_CONNECTIONS,
        timeout_graceful_shutdown=DRAIN_SECONDS,
        ssl_certfile=None if tls is None else tls.certificate,
        ssl_keyfile=None if tls is None else tls.key,
        ssl_ca_certs=None if tls is None or tls.clients is None else str(tls.clients),
        ssl_cert_reqs=ssl.CERT_NONE if tls is None or tls.clients is None else ssl.CERT_REQUIRED,
    )
