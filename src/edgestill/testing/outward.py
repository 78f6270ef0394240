"""The way out of this machine, watched: a proxy that writes down who is wanted, and lets nobody through.

Libraries that report to their makers honour the usual proxy variables. A process that is given `variables` asks here
instead of the world, so a test sees whom it would have called, and nothing leaves the machine.
"""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Final, Self, final

if TYPE_CHECKING:
    from types import TracebackType

_PROXIES: Final = ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")
_AROUND: Final = ("no_proxy", "NO_PROXY")
_FIRST_BYTES: Final = 300
_PATIENCE: Final = 5.0


@final
class Outward:
    """A proxy on loopback, for the length of a context.

    Attributes:
        wanted: the first line of each request, such as `CONNECT example.org:443 HTTP/1.1`.
    """

    def __init__(self) -> None:
        self.wanted: list[str] = []
        self._socket = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(OSError):  # where it is not connected; it wakes who waits in accept all the same
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join(_PATIENCE)

    @property
    def variables(self) -> dict[str, str]:
        """What sends a process here, except for what it asks of this machine."""
        here = f"http://127.0.0.1:{self._socket.getsockname()[1]}"
        return dict.fromkeys(_PROXIES, here) | dict.fromkeys(_AROUND, "127.0.0.1,localhost")

    def environment(self, *unset: str) -> dict[str, str]:
        """This process's variables without those that are named, and with ours."""
        kept = {name: value for name, value in os.environ.items() if name not in unset}
        return {name: value for name, value in kept.items() if "proxy" not in name.lower()} | self.variables

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:  # closed
                return
            with connection:
                connection.settimeout(_PATIENCE)
                try:
                    first = connection.recv(_FIRST_BYTES).partition(b"\r\n")[0]
                except OSError:
                    first = b""
                self.wanted.append(first.decode("ascii", errors="replace") or "nothing said")
