"""`core.protocols.Transport` over real sockets.

- The timeout is the whole exchange: connecting, sending, the head and the last byte of the body (`link.sockets`).
  Only the name look-up is the operating system's own, and takes what that allows.
- Nothing is followed and nothing is unpacked: a redirect is an answer with status 3xx, a body is what was sent.
- No compression is asked for, so no small answer can become a large one.
- An answer must say where it ends (a length, or chunks): one that ends with its connection may have broken off.
- Heads are bounded (100 fields of 64 KiB), bodies come in pieces, and whoever reads them bounds their sum.
- Plain `http` is spoken with this machine only, unless it was asked for: credentials travel in these requests.
- TLS is a context, or whoever gives one: where another context comes than before, kept connections are closed. So a certificate is
  renewed, or let go once it has ended, without a word to those who send.
- Connections are kept and used again, by any number of threads. A kept connection may die while nobody looks: `GET`
  and `HEAD` are then sent once more, anything else is the caller's to repeat.
"""

from __future__ import annotations

import http.client
import ipaddress
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, Final, Self, final
from urllib.parse import urlsplit

import urllib3
from urllib3.exceptions import HTTPError, NewConnectionError, ProtocolError
from urllib3.exceptions import TimeoutError as PoolTimeoutError

from edgestill.core.clock import SystemClock
from edgestill.core.errors import DeadlineError, EdgestillError, SettingError, UnreachableError
from edgestill.link.sockets import IN_HAND, Patience, PlainPool, TlsPool

if TYPE_CHECKING:
    import ssl
    from collections.abc import Callable, Iterator, Mapping

    from edgestill.core.protocols import Clock, Request

CHUNK: Final = 65_536
SILENCE: Final = 30.0
KEPT_PER_HOST: Final = 4

_REPEATABLE: Final = frozenset({"GET", "HEAD"})
_STALE: Final = (http.client.RemoteDisconnected, ConnectionError)


@final
class HttpTransport:
    """Carries requests over HTTP/1.1.

    Args:
        clock: for deadlines; the machine's own where None.
        tls: verifies `https` peers, and holds a certificate of ours where one is wanted (`link.tls`); None trusts the system's list.
            A function is asked before each request.
        plain_http: whether `http` may be spoken with other machines.
        silence: seconds without a byte, within a body, after which a connection counts as dead.
    """

    def __init__(
        self,
        *,
        clock: Clock | None = None,
        tls: ssl.SSLContext | Callable[[], ssl.SSLContext | None] | None = None,
        plain_http: bool = False,
        silence: float = SILENCE,
    ) -> None:
        self._clock = SystemClock() if clock is None else clock
        self._plain_http = plain_http
        self._silence = silence
        self._tls = tls
        self._lock = threading.Lock()
        self._context = None if callable(tls) else tls
        self._pools = _pools(self._context)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections that are kept; the transport may be used again."""
        self._pools.clear()

    def _current(self) -> urllib3.PoolManager:
        """Connections under the context that is given now."""
        if not callable(self._tls):
            return self._pools
        context = self._tls()
        with self._lock:
            if context is not self._context:
                self._pools.clear()
                self._context, self._pools = context, _pools(context)
            return self._pools

    def send(self, request: Request, *, timeout: float) -> HttpResponse:
        """Sends the request; see `core.protocols.Transport`.

        Raises:
            UnreachableError, DeadlineError: as there.
            SettingError: an address or a header that cannot be sent.
        """
        check_url(request.url, plain_http=self._plain_http)
        patience = Patience(self._clock, self._clock.monotonic() + timeout)
        try:
            raw = self._sent(request, patience)
        except ValueError as error:  # of `http.client`, such as a line break in a header
            raise SettingError(
                "a request that cannot be sent",
                where=_where(request),
                got=error,
                expected="a valid method, address and headers",
                fix="correct the address",
            ) from error
        patience.silence = self._silence
        response = HttpResponse(raw, _where(request), patience)
        if not _says_where_it_ends(request, response):
            response.close()
            raise UnreachableError(
                "an answer that does not say where it ends",
                where=_where(request),
                expected="content-length, or chunks",
                fix="have the server say it: an answer that broke off could not be told from a whole one",
                got="neither",
            )
        return response

    def _sent(self, request: Request, patience: Patience) -> urllib3.BaseHTTPResponse:
        token = IN_HAND.set(patience)
        try:
            return self._once(request, patience)
        except ProtocolError as error:
            cause = error.args[-1]
            if request.method not in _REPEATABLE or not isinstance(cause, _STALE):
                raise failure(error, _where(request), patience) from error
            try:
                return self._once(request, patience)
            except HTTPError as again:
                raise failure(again, _where(request), patience) from again
        except HTTPError as error:
            raise failure(error, _where(request), patience) from error
        finally:
            IN_HAND.reset(token)

    def _once(self, request: Request, patience: Patience) -> urllib3.BaseHTTPResponse:
        return self._current().urlopen(
            request.method,
            request.url,
            headers={"accept-encoding": "identity", "user-agent": "edgestill", **request.headers},
            body=request.body or None,
            timeout=urllib3.Timeout(total=max(patience.left(), 1e-3)),
            redirect=False,
            retries=False,
            preload_content=False,
            decode_content=False,
        )


def _pools(context: ssl.SSLContext | None) -> urllib3.PoolManager:
    # where the context compares no host, urllib3 would do so itself
    compares: dict[str, Any] = {}
    if context is not None and not context.check_hostname:
        compares["assert_hostname"] = False
    pools = urllib3.PoolManager(maxsize=KEPT_PER_HOST, ssl_context=context, **compares)
    pools.pool_classes_by_scheme = {"http": PlainPool, "https": TlsPool}
    return pools


@final
class HttpResponse:
    """The head of an answer, and its body as it arrives."""

    def __init__(self, raw: urllib3.BaseHTTPResponse, where: str, patience: Patience) -> None:
        self._raw = raw
        self._where = where
        self._patience = patience
        self._headers = {name.lower(): raw.headers[name] for name in raw.headers}

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._raw.status

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields, names in lower case; repeated ones joined by commas."""
        return self._headers

    def chunks(self) -> Iterator[bytes]:
        """The body in pieces of at most `CHUNK` bytes, as soon as they are there.

        Raises:
            UnreachableError: the connection broke, or the body is shorter than it was said to be.
            DeadlineError: the rest did not come in time, or nothing came for too long.
        """
        while True:
            try:
                data = self._raw.read1(CHUNK, decode_content=False)
            except HTTPError as error:
                self.close()
                raise failure(error, self._where, self._patience) from error
            if not data:
                return
            yield data

    def close(self) -> None:
        """Gives the connection back if the body was read, and closes it if not."""
        self._raw.close()
        self._raw.release_conn()


def check_url(url: str, *, plain_http: bool = False) -> str:
    """The address, if requests may go there.

    Args:
        url: absolute.
        plain_http: whether `http` may be spoken with other machines.

    Raises:
        SettingError: no `http` or `https` address, or `http` to another machine.
    """
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or parts.scheme not in {"http", "https"} or parts.username is not None or not url.isascii():
        raise SettingError(
            "not an address",
            where=url[:200],
            expected="http://HOST:PORT or https://HOST",
            fix="correct it",
            got="another form",
        )
    if parts.scheme == "http" and not plain_http and not _is_this_machine(host):
        raise SettingError(
            "http would show credentials to the network",
            where=url[:200],
            expected="https",
            fix="use https",
            got="http",
        )
    return url


def failure(error: HTTPError, where: str, patience: Patience) -> EdgestillError:
    """The error of ours that stands for one of urllib3's."""
    cause = error.args[-1] if error.args else None
    # urllib3 counts a connection that is refused among the timeouts
    timed_out = isinstance(error, PoolTimeoutError) and not isinstance(error, NewConnectionError)
    if timed_out or isinstance(cause, TimeoutError):
        if patience.silence is not None and patience.left():
            return DeadlineError(
                "no answer in time",
                where=where,
                got=f"{patience.silence:g} s of silence",
                expected="an answer before the deadline",
            )
        return DeadlineError(
            "no answer in time",
            where=where,
            got="the time of the whole exchange is over",
            expected="an answer before the deadline",
        )
    return UnreachableError(
        "no connection, or it broke", where=where, got=cause or error, expected="a connection that holds"
    )


def _is_this_machine(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _says_where_it_ends(request: Request, response: HttpResponse) -> bool:
    return (
        request.method == "HEAD"
        or response.status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        or "content-length" in response.headers
        or "chunked" in response.headers.get("transfer-encoding", "")
    )


def _where(request: Request) -> str:
    return f"{request.method} {request.url}"
