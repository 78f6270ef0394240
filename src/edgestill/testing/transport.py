"""A `core.protocols.Transport` without sockets: runs a real ASGI application in memory.

- The application runs on an event loop of the transport's own, in one background thread, from `open` to `close`; `send`
  may be called from any number of threads. `send` opens the transport where nobody has.
- Lifespan: start-up runs at `open` and shutdown at `close`; an application that knows no lifespan does without.
- The application sees what a server would show it: chunks are not taken faster than the caller reads them, a caller
  who hangs up is `http.disconnect`, a body longer or shorter than its `content-length` is an error, `HEAD`, 204 and 304
  have no body. What it raises is answered with 500 and kept in `crashes`.
- The timeout counts real seconds, also where the application is handed a fake clock.

Source: ASGI specification 3.0, HTTP and lifespan protocols, version 2.4.
"""

from __future__ import annotations

import asyncio
import contextlib
import queue
import threading
from collections.abc import Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self, final
from urllib.parse import unquote, urlsplit

from edgestill.core.clock import SystemClock
from edgestill.core.errors import DeadlineError, EngineError, UnreachableError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from edgestill.core.protocols import Request

Message = MutableMapping[str, object]
AsgiApp = Callable[
    [Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]
]

CHUNKS_AHEAD: Final = 8
START_SECONDS: Final = 30.0
STOP_SECONDS: Final = 10.0

_VERSIONS: Final = {"version": "3.0", "spec_version": "2.4"}


@final
class AsgiTransport:
    """Carries requests to an application in this process.

    Args:
        app: any ASGI 3 application.
        client: the address it sees its callers at.

    Attributes:
        crashes: what the application raised, in order; empty in a test that went well.
        shown: certificate (PEM) that callers show from now on, as over TLS (ASGI TLS extension); None speaks plain HTTP.
    """

    def __init__(self, app: AsgiApp, *, client: str = "127.0.0.1") -> None:
        self.crashes: list[BaseException] = []
        self.shown: str | None = None
        self._app = app
        self._client = client
        self._lock = threading.Lock()
        self._host: _Host | None = None

    def __enter__(self) -> Self:
        self.open()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def open(self) -> None:
        """Starts the application; safe to call twice.

        Raises:
            EngineError: its start-up failed.
        """
        self._opened()

    def close(self) -> None:
        """Hangs up on what is under way and shuts the application down; safe to call twice."""
        with self._lock:
            host, self._host = self._host, None
        if host is not None:
            host.stop()

    def send(self, request: Request, *, timeout: float) -> AsgiResponse:
        """Hands the request to the application; see `core.protocols.Transport`.

        Raises:
            DeadlineError: no head of an answer within `timeout` real seconds.
            UnreachableError: the transport was closed meanwhile.
        """
        host = self._opened()
        exchange = _Exchange(request, host.loop, _Deadline.after(timeout))
        scope = _scope(request, self._client, host.state)
        if self.shown is not None:
            scope["extensions"] = {"tls": {"client_cert_chain": (self.shown,)}}
        host.run(self._serve(exchange, scope))
        return exchange.head()

    def _opened(self) -> _Host:
        with self._lock:
            if self._host is None:
                self._host = _Host.start(self._app)
            return self._host

    async def _serve(self, exchange: _Exchange, scope: Message) -> None:
        try:
            await self._app(scope, exchange.receive, exchange.accept)
        except asyncio.CancelledError:
            exchange.fail(
                UnreachableError(
                    "the transport was closed",
                    where=exchange.where,
                    expected="an open transport",
                    got="a closed one",
                )
            )
            raise
        except Exception as error:  # noqa: BLE001  # whatever an application raises, a server outlives it
            if not exchange.hung_up:
                self.crashes.append(error)
        exchange.finish()


@final
class AsgiResponse:
    """The head of an answer, and its body as the application sends it."""

    def __init__(self, exchange: _Exchange, status: int, headers: Mapping[str, str]) -> None:
        self._exchange = exchange
        self._status = status
        self._headers = headers

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self._status

    @property
    def headers(self) -> Mapping[str, str]:
        """Header fields, names in lower case; repeated ones joined by commas."""
        return self._headers

    def chunks(self) -> Iterator[bytes]:
        """The body in the pieces that the application made.

        Raises:
            UnreachableError: the application broke off.
            DeadlineError: the rest did not come in time.
        """
        while not self._exchange.hung_up:
            item = self._exchange.take()
            if item is None:
                self.close()
                return
            assert isinstance(item, bytes)
            yield item

    def close(self) -> None:
        """Hangs up; safe to call twice."""
        self._exchange.hang_up()


@dataclass(frozen=True, slots=True)
class _Deadline:
    """A moment of real time."""

    at: float
    seconds: float

    @classmethod
    def after(cls, seconds: float) -> Self:
        return cls(SystemClock().monotonic() + seconds, seconds)

    def left(self) -> float:
        return max(0.0, self.at - SystemClock().monotonic())


class _Exchange:
    """One request, between the caller's thread and the loop's."""

    def __init__(self, request: Request, loop: asyncio.AbstractEventLoop, deadline: _Deadline) -> None:
        self.where = f"{request.method} {request.url}"
        self.hung_up = False
        self._request = request
        self._loop = loop
        self._deadline = deadline
        self._arrived: queue.SimpleQueue[tuple[int, dict[str, str]] | bytes | Exception | None] = (
            queue.SimpleQueue()
        )
        self._room = asyncio.Semaphore(CHUNKS_AHEAD)
        self._gone = asyncio.Event()
        self._asked = False
        self._started = False
        self._done = False
        self._bodiless = request.method == "HEAD"
        self._remaining: int | None = None

    # The caller's side

    def head(self) -> AsgiResponse:
        first = self.take()
        assert isinstance(first, tuple)
        return AsgiResponse(self, *first)

    def take(self) -> tuple[int, dict[str, str]] | bytes | None:
        """What came next; None at the end."""
        try:
            item = self._arrived.get(timeout=self._deadline.left())
        except queue.Empty:
            self.hang_up()
            raise DeadlineError(
                "no answer in time",
                where=self.where,
                expected=f"within {self._deadline.seconds:g} s",
                got="none",
            ) from None
        if isinstance(item, Exception):
            self.hang_up()
            raise item
        self._tell(self._room.release)
        return item

    def hang_up(self) -> None:
        if not self.hung_up:
            self.hung_up = True
            self._tell(self._gone.set)
            self._tell(self._room.release)

    def _tell(self, action: Callable[[], object]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody is left to be told
            self._loop.call_soon_threadsafe(action)

    # The application's side

    async def receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._request.body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    async def accept(self, message: Message) -> None:
        if self.hung_up:
            raise OSError("the client hung up")
        if message["type"] == "http.response.start":
            self._start(message)
        elif message["type"] == "http.response.body":
            await self._body(message)
        else:
            raise RuntimeError(f"unexpected ASGI message {message['type']!r}")

    def _start(self, message: Message) -> None:
        if self._started:
            raise RuntimeError("the response has already started")
        headers: dict[str, str] = {}
        pairs = message.get("headers", ())
        for name, value in pairs:  # type: ignore[attr-defined]  # the specification's iterable of pairs
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            headers[key] = f"{headers[key]}, {text}" if key in headers else text
        status = message["status"]
        assert isinstance(status, int)
        self._bodiless |= status in {HTTPStatus.NO_CONTENT, HTTPStatus.NOT_MODIFIED}
        self._remaining = int(headers["content-length"]) if "content-length" in headers else None
        self._started = True
        self._arrived.put((status, headers))

    async def _body(self, message: Message) -> None:
        if not self._started or self._done:
            raise RuntimeError("a body before the response started, or after it ended")
        data = message.get("body", b"")
        assert isinstance(data, bytes | bytearray | memoryview)
        if data and not self._bodiless:
            await self._chunk(bytes(data))
        if not message.get("more_body", False):
            if self._remaining and not self._bodiless:
                raise RuntimeError("the body is shorter than its content-length")
            self._done = True
            self._arrived.put(None)

    async def _chunk(self, data: bytes) -> None:
        if self._remaining is not None:
            if len(data) > self._remaining:
                raise RuntimeError("the body is longer than its content-length")
            self._remaining -= len(data)
        await self._room.acquire()
        self._arrived.put(data)

    def finish(self) -> None:
        """The application has returned, or raised."""
        if self._done:
            return
        if self._started:
            self.fail(
                UnreachableError(
                    "the connection broke",
                    where=self.where,
                    got="an unfinished answer",
                    expected="the rest of the answer",
                )
            )
            return
        self._arrived.put((500, {"content-type": "text/plain; charset=utf-8"}))
        self._arrived.put(b"" if self._bodiless else b"Internal Server Error")
        self.fail(None)

    def fail(self, error: Exception | None) -> None:
        self._done = True
        self._arrived.put(error)


class _Host:
    """An event loop in its thread, and the application's lifespan on it."""

    def __init__(self, loop: asyncio.AbstractEventLoop, app: AsgiApp) -> None:
        self.loop = loop
        self.state: dict[str, object] = {}
        self._app = app
        self._thread = threading.Thread(target=self._loop_for_ever, name="asgi-transport", daemon=True)
        self._to_app: asyncio.Queue[Message] = asyncio.Queue()
        self._from_app: queue.SimpleQueue[Message | None] = queue.SimpleQueue()
        self._has_lifespan = False

    @classmethod
    def start(cls, app: AsgiApp) -> Self:
        host = cls(asyncio.new_event_loop(), app)
        host._thread.start()
        host.run(host._lifespan())
        answer = host._ask("lifespan.startup", START_SECONDS)
        if answer is not None and answer["type"] == "lifespan.startup.failed":
            host._has_lifespan = False
            host.stop()
            last = (
                str(answer.get("message", "")).strip().rpartition("\n")[2]
            )  # of a traceback, what was raised
            raise EngineError(
                "the application did not start",
                where="lifespan",
                got=last,
                expected="lifespan.startup.complete",
            )
        host._has_lifespan = answer is not None
        return host

    def run(self, work: Awaitable[None]) -> None:
        async def task() -> None:
            await work

        asyncio.run_coroutine_threadsafe(task(), self.loop)

    def stop(self) -> None:
        if self._has_lifespan:
            self._ask("lifespan.shutdown", STOP_SECONDS)
        asyncio.run_coroutine_threadsafe(_cancel_all(), self.loop).result(STOP_SECONDS)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join(STOP_SECONDS)
        self.loop.close()

    def _ask(self, what: str, seconds: float) -> Message | None:
        """Tells the application; its answer, or None where it knows no lifespan."""
        message: Message = {"type": what}
        self.loop.call_soon_threadsafe(self._to_app.put_nowait, message)
        try:
            return self._from_app.get(timeout=seconds)
        except queue.Empty:
            raise DeadlineError(
                "the application did not answer", where=what, expected=f"within {seconds:g} s", got="none"
            ) from None

    async def _lifespan(self) -> None:
        async def hear(message: Message) -> None:
            self._from_app.put(message)

        scope: Message = {"type": "lifespan", "asgi": _VERSIONS, "state": self.state}
        with contextlib.suppress(Exception):  # an application without lifespan may raise whatever it likes
            await self._app(scope, self._to_app.get, hear)
        self._from_app.put(None)

    def _loop_for_ever(self) -> None:
        asyncio.set_event_loop(self.loop)
        self.loop.run_forever()


async def _cancel_all() -> None:
    tasks = asyncio.all_tasks() - {asyncio.current_task()}
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    await asyncio.get_running_loop().shutdown_asyncgens()


def _scope(request: Request, client: str, state: Mapping[str, object]) -> Message:
    parts = urlsplit(request.url)
    default = {"host": parts.netloc}
    if request.body or request.method in {"POST", "PUT"}:
        default["content-length"] = str(len(request.body))
    headers = default | {name.lower(): value for name, value in request.headers.items()}
    return {
        "type": "http",
        "asgi": _VERSIONS,
        "http_version": "1.1",
        "method": request.method,
        "scheme": parts.scheme,
        "path": unquote(parts.path) or "/",
        "raw_path": parts.path.encode("ascii") or b"/",
        "query_string": parts.query.encode("ascii"),
        "root_path": "",
        "headers": [(name.encode("ascii"), value.encode("latin-1")) for name, value in headers.items()],
        "client": (client, 0),
        "server": (parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)),
        "state": dict(state),
    }
