"""The web server of a hub: it drains on a signal, says when it listens, and renews the certificate that it serves with."""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

import uvicorn

from edgestill.core.bundle import replace
from edgestill.core.errors import EdgestillError
from edgestill.hub.tls import believe

if TYPE_CHECKING:
    import socket
    import ssl
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.hub.service import Hub
    from edgestill.hub.tls import OwnCertificate

log: Final = logging.getLogger(__name__)


class Server(uvicorn.Server):
    """A server that drains the hub on a signal, and says when it listens."""

    def __init__(
        self,
        config: uvicorn.Config,
        hub: Hub,
        *,
        url: str,
        ready: Path | None,
        own: OwnCertificate | None = None,
        context: ssl.SSLContext | None = None,
    ) -> None:
        super().__init__(config)
        self._hub = hub
        self._url = url
        self._ready = ready
        self._own = own
        self._context = context
        self._home = hub.home

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Ends on a signal by returning; the library's own way would die of it again afterwards."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._end)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and tells."""
        await super().startup(sockets)
        if self._ready is not None:
            replace(self._ready, f"{self._url}\n".encode())
        log.info("serves at %s", self._url)

    async def on_tick(self, counter: int) -> bool:
        """Ten times a second: whether it is time to end. Looks after the hub's own certificate, once in a minute and when the authority changes."""
        is_new = self._hub.home is not self._home
        if is_new:
            self._home = self._hub.home
            self._follow()
        if self._own is not None and (is_new or counter % 600 == 0):
            try:
                self._own.renew_if_due()
            except (EdgestillError, OSError) as error:  # which errors of TLS are too
                log.warning("the hub's certificate cannot be renewed: %s", error)
        return await super().on_tick(counter)

    def _follow(self) -> None:
        if self._context is not None:
            believe(self._context, self._home)
        if self._own is not None:
            self._own.follow(self._home)

    def _end(self) -> None:
        log.info("was told to end; answers what is under way")
        self._hub.drain()
        self.should_exit = True
