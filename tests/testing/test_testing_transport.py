"""The in-memory transport behaves as a server would."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from edgestill.core.errors import DeadlineError, EngineError, UnreachableError
from edgestill.core.protocols import Request
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

    from starlette.requests import Request as WebRequest

    from edgestill.testing.transport import Message

URL = "http://hub.test:8080"


class _App:
    """A small application, and what it saw."""

    def __init__(self) -> None:
        self.life: list[str] = []
        self.sent = 0
        self.left = threading.Event()
        routes = [
            Route("/echo", self.echo, methods=["GET", "POST", "HEAD"]),
            Route("/name/{rest:path}", self.name),
            Route("/endless", self.endless),
            Route("/never", self.never),
            Route("/crash", self.crash),
            Route("/half", self.half),
            Route("/empty", self.empty),
            Route("/twice", self.twice),
        ]
        self.asgi = Starlette(routes=routes, lifespan=self.lifespan)

    @asynccontextmanager
    async def lifespan(self, _: Starlette) -> AsyncIterator[dict[str, str]]:
        self.life.append("started")
        yield {"greeting": "hello"}
        self.life.append("stopped")

    async def echo(self, request: WebRequest) -> Response:
        body = await request.body()
        return JSONResponse(
            {
                "method": request.method,
                "url": str(request.url),
                "header": request.headers.get("x-colour"),
                "body": body.decode(),
                "greeting": request.state.greeting,
                "client": request.client.host if request.client else None,
            }
        )

    async def name(self, request: WebRequest) -> Response:
        return PlainTextResponse(request.path_params["rest"])

    async def endless(self, _: WebRequest) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            try:
                while True:
                    self.sent += 1
                    yield b"x" * 1000
            finally:
                self.left.set()

        return StreamingResponse(pieces())

    async def never(self, _: WebRequest) -> Response:
        await asyncio.Event().wait()
        raise AssertionError

    async def crash(self, _: WebRequest) -> Response:
        raise ValueError("boom")

    async def half(self, _: WebRequest) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"half"
            raise ValueError("boom")

        return StreamingResponse(pieces())

    async def empty(self, _: WebRequest) -> Response:
        return Response(status_code=304)

    async def twice(self, _: WebRequest) -> Response:
        answer = Response(b"")
        answer.headers.append("x-part", "one")
        answer.headers.append("X-Part", "two")
        return answer


@pytest.fixture
def app() -> _App:
    return _App()


@pytest.fixture
def transport(app: _App) -> Iterator[AsgiTransport]:
    with AsgiTransport(app.asgi) as opened:
        yield opened


def _get(transport: AsgiTransport, path: str, *, method: str = "GET", timeout: float = 5.0) -> bytes:
    return b"".join(transport.send(Request(method, URL + path), timeout=timeout).chunks())


def test_the_application_sees_the_request_as_it_was_made(transport: AsgiTransport) -> None:
    """Method, address, header and body arrive, and the lifespan's state with them."""
    request = Request("POST", f"{URL}/echo?a=1", {"x-colour": "blue"}, b"body")
    answer = transport.send(request, timeout=5)
    assert answer.status == 200
    assert answer.headers["content-type"] == "application/json"
    text = b"".join(answer.chunks()).decode()
    assert '"method":"POST"' in text
    assert f'"url":"{URL}/echo?a=1"' in text
    assert '"header":"blue","body":"body","greeting":"hello","client":"127.0.0.1"' in text


def test_escapes_in_a_path_are_resolved_once(transport: AsgiTransport) -> None:
    """A percent sign that was escaped stays a percent sign."""
    assert _get(transport, "/name/a%20b/%2541") == b"a b/%41"


def test_lifespan_starts_once_and_stops_once(app: _App) -> None:
    """Opening and closing twice is opening and closing once."""
    transport = AsgiTransport(app.asgi)
    assert app.life == []
    transport.open()
    transport.open()
    assert app.life == ["started"]
    transport.close()
    transport.close()
    assert app.life == ["started", "stopped"]


def test_a_closed_transport_opens_again(app: _App) -> None:
    """A hub may be restarted within a test."""
    transport = AsgiTransport(app.asgi)
    for _ in range(2):
        assert _get(transport, "/name/x") == b"x"
        transport.close()
    assert app.life == ["started", "stopped"] * 2


def test_a_failing_start_is_told() -> None:
    """A start-up that raises is an error that carries its words."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        raise ValueError("no database")
        yield

    with pytest.raises(
        EngineError,
        match=r"the application did not start; at lifespan; expected .*; got ValueError: no database",
    ):
        AsgiTransport(Starlette(lifespan=lifespan)).open()


def test_an_application_without_lifespan_is_served() -> None:
    """A bare function that only knows HTTP does."""

    async def app(scope: Message, receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]
        assert scope["type"] == "http"
        await send({"type": "http.response.start", "status": 200})
        await send({"type": "http.response.body", "body": b"bare"})

    with AsgiTransport(app) as transport:
        assert _get(transport, "/") == b"bare"


def test_a_stream_is_not_taken_faster_than_it_is_read(app: _App, transport: AsgiTransport) -> None:
    """An endless answer fills no memory, and ends when the caller hangs up."""
    answer = transport.send(Request("GET", f"{URL}/endless"), timeout=5)
    chunks = answer.chunks()
    assert next(chunks) == b"x" * 1000
    assert _get(transport, "/name/meanwhile") == b"meanwhile"
    assert app.sent < 20
    answer.close()
    answer.close()
    assert app.left.wait(5)
    assert transport.crashes == []


def test_no_head_in_time_is_a_deadline(transport: AsgiTransport) -> None:
    """An application that never answers ends in a DeadlineError."""
    with pytest.raises(DeadlineError, match=r"GET http://hub.test:8080/never; expected within 0.05 s"):
        _get(transport, "/never", timeout=0.05)


def test_no_rest_in_time_is_a_deadline() -> None:
    """The timeout counts for the body too."""

    async def app(scope: Message, receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200})
            await receive()
            assert (await receive())["type"] == "http.disconnect"

    with AsgiTransport(app) as transport:
        answer = transport.send(Request("GET", URL), timeout=0.05)
        with pytest.raises(DeadlineError, match="no answer in time"):
            list(answer.chunks())
    assert transport.crashes == []


def test_a_crash_is_500_and_kept(transport: AsgiTransport) -> None:
    """What the application raises is answered as a server does, and a test can see it."""
    answer = transport.send(Request("GET", f"{URL}/crash"), timeout=5)
    assert (answer.status, b"".join(answer.chunks())) == (500, b"Internal Server Error")
    assert [str(error) for error in transport.crashes] == ["boom"]


def test_a_crash_before_the_head_of_a_bare_application_is_500() -> None:
    """The transport answers where the application has no error page of its own."""

    async def app(scope: Message, receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]
        raise ValueError(scope["type"])

    with AsgiTransport(app) as transport:
        assert transport.send(Request("GET", URL), timeout=5).status == 500
        assert _get(transport, "/") == b"Internal Server Error"


def test_a_crash_within_a_body_is_a_broken_connection(transport: AsgiTransport) -> None:
    """Half an answer never looks like a whole one."""
    answer = transport.send(Request("GET", f"{URL}/half"), timeout=5)
    chunks = answer.chunks()
    assert next(chunks) == b"half"
    with pytest.raises(UnreachableError, match="the connection broke"):
        next(chunks)


@pytest.mark.parametrize("body", [b"1234", b"123456"])
def test_a_body_that_contradicts_its_length_is_a_broken_connection(body: bytes) -> None:
    """Too short and too long are both refused, as a server refuses them."""

    async def app(scope: Message, receive: Callable, send: Callable) -> None:  # type: ignore[type-arg]
        if scope["type"] == "http":
            headers = [(b"Content-Length", b"5")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    with AsgiTransport(app) as transport:
        with pytest.raises(UnreachableError, match="the connection broke"):
            _get(transport, "/")
        assert "than its content-length" in str(transport.crashes[0])


def test_answers_without_a_body_have_none(transport: AsgiTransport) -> None:
    """HEAD keeps the headers only; 304 is empty."""
    answer = transport.send(Request("HEAD", f"{URL}/echo"), timeout=5)
    assert int(answer.headers["content-length"]) > 0
    assert list(answer.chunks()) == []
    assert _get(transport, "/empty") == b""


def test_repeated_headers_are_joined(transport: AsgiTransport) -> None:
    """Names in lower case, values by commas."""
    assert transport.send(Request("GET", f"{URL}/twice"), timeout=5).headers["x-part"] == "one, two"


def test_many_threads_may_send_at_once(transport: AsgiTransport) -> None:
    """Each gets its own answer."""
    got: dict[int, bytes] = {}

    def ask(number: int) -> None:
        got[number] = _get(transport, f"/name/{number}")

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == {number: str(number).encode() for number in range(20)}


def test_closing_breaks_what_is_under_way(transport: AsgiTransport) -> None:
    """A caller who waits for an answer is told at once that there will be none."""
    failures: list[Exception] = []

    def ask() -> None:
        try:
            _get(transport, "/never", timeout=30)
        except UnreachableError as error:
            failures.append(error)

    thread = threading.Thread(target=ask)
    thread.start()
    while not _under_way(transport):
        pass
    transport.close()
    thread.join(10)
    assert "the transport was closed" in str(failures[0])


def _under_way(transport: AsgiTransport) -> bool:
    host = transport._host
    return host is not None and len(asyncio.all_tasks(host.loop)) > 1
