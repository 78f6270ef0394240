"""Sockets whose every wait ends at one moment, however a peer doles out its bytes.

- A timeout per read is no deadline: a peer that sends one byte just before each timeout holds a caller for ever. Here
  the time left of the whole exchange is set before every single send and receive, of head and body alike.
- The body has one bound more: a stretch of silence (`patience`), so that a connection that died without a word is
  given up long before the deadline of a large download.
- urllib3 sets its own timeouts on a socket; these are ignored, because they count each read afresh.
"""

from __future__ import annotations

import io
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, final

from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

if TYPE_CHECKING:
    import socket

    from _typeshed import ReadableBuffer, WriteableBuffer

    from edgestill.core.protocols import Clock


@dataclass(slots=True)
class Patience:
    """How long one exchange may still take.

    Attributes:
        clock: monotonic time is read from it.
        until: monotonic seconds at which the exchange ends.
        silence: seconds without a byte that are borne; None bears any.
    """

    clock: Clock
    until: float
    silence: float | None = None

    def left(self) -> float:
        """Seconds until the exchange ends, not below 0."""
        return max(0.0, self.until - self.clock.monotonic())

    def for_next_wait(self) -> float:
        """Seconds that the next send or receive may wait.

        Raises:
            TimeoutError: none are left.
        """
        left = self.left()
        if not left:
            raise TimeoutError("the exchange has taken too long")
        return left if self.silence is None else min(left, self.silence)


# urllib3 makes and reuses connections on its own; this carries the patience of the request in hand to the connection
# that is chosen for it, within the one thread that sends it.
IN_HAND: ContextVar[Patience] = ContextVar("IN_HAND")


@final
class PatientSocket:
    """A connected socket under a `Patience`; what `http.client` needs of a socket, and no more.

    Args:
        sock: connected, encrypted or not.
        patience: of the exchange in hand; replaced when the connection is used again.
    """

    def __init__(self, sock: socket.socket, patience: Patience) -> None:
        self.sock = sock
        self.patience = patience

    def settimeout(self, seconds: float | None) -> None:
        """Ignored: the patience decides."""

    def sendall(self, data: ReadableBuffer) -> None:
        """Sends all of it; TimeoutError where the patience ends first."""
        view = memoryview(data).cast("B")
        while view:
            self.sock.settimeout(self.patience.for_next_wait())
            view = view[self.sock.send(view) :]

    def makefile(self, mode: str) -> io.BufferedReader:
        """The receiving side. The socket stays open until this is closed too."""
        assert mode == "rb"
        return io.BufferedReader(_Receiver(self, self.sock.makefile("rb", buffering=0)))

    def fileno(self) -> int:
        """For urllib3 to see whether a kept connection was dropped."""
        return self.sock.fileno()

    def shutdown(self, how: int) -> None:
        """As of the socket."""
        self.sock.shutdown(how)

    def close(self) -> None:
        """As of the socket."""
        self.sock.close()


class _Receiver(io.RawIOBase):
    def __init__(self, owner: PatientSocket, inner: socket.SocketIO) -> None:
        super().__init__()
        self._owner = owner
        self._inner = inner

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int | None:
        self._owner.sock.settimeout(self._owner.patience.for_next_wait())
        return self._inner.readinto(buffer)

    def close(self) -> None:
        self._inner.close()
        super().close()


class _Patient(HTTPConnection):
    """Gives every socket of the connection the patience of the request in hand."""

    def __repr__(self) -> str:  # which the library puts before what went wrong
        return f"{self.host}:{self.port}"

    def connect(self) -> None:
        super().connect()
        self.sock = PatientSocket(self.sock, IN_HAND.get())

    def putrequest(
        self,
        method: str,
        url: str,
        skip_host: bool = False,  # noqa: FBT001, FBT002  # the signature of `http.client`
        skip_accept_encoding: bool = False,  # noqa: FBT001, FBT002  # likewise
    ) -> None:
        if isinstance(self.sock, PatientSocket):
            self.sock.patience = IN_HAND.get()
        super().putrequest(method, url, skip_host, skip_accept_encoding)


class _PatientTls(_Patient, HTTPSConnection):
    pass


@final
class PlainPool(HTTPConnectionPool):
    """Connections of `http` addresses."""

    ConnectionCls = _Patient


@final
class TlsPool(HTTPSConnectionPool):
    """Connections of `https` addresses."""

    ConnectionCls = _PatientTls
