"""A faulty transport fails exactly as it is told."""

from __future__ import annotations

from itertools import islice
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from edgestill.core.errors import DeadlineError, UnreachableError
from edgestill.core.protocols import Request
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from starlette.requests import Request as WebRequest

BODY = bytes(range(100))
GET = Request("GET", "http://hub.test/")


@pytest.fixture
def inner() -> Iterator[AsgiTransport]:
    async def answer(_: WebRequest) -> Response:
        return Response(BODY, headers={"etag": '"1"'})

    with AsgiTransport(Starlette(routes=[Route("/", answer)])) as transport:
        yield transport


def _body(transport: FaultyTransport, timeout: float = 10) -> bytes:
    return b"".join(transport.send(GET, timeout=timeout).chunks())


def test_faults_come_in_turn_and_end(inner: AsgiTransport) -> None:
    """One for each request, None for none, and none after the last; every request is remembered."""
    faulty = FaultyTransport(inner, [Fault(drop=True), None, Fault(lose_answer=True)], clock=FakeClock())
    for lost in (True, False, True, False, False):
        if lost:
            with pytest.raises(UnreachableError, match="no connection, or it broke"):
                _body(faulty)
        else:
            assert _body(faulty) == BODY
    assert faulty.requests == [GET] * 5
    assert inner.crashes == []


def test_a_function_may_decide(inner: AsgiTransport) -> None:
    """By what is asked for."""
    faulty = FaultyTransport(
        inner, lambda request: Fault(drop=True) if request.method == "POST" else None, clock=FakeClock()
    )
    assert _body(faulty) == BODY
    with pytest.raises(UnreachableError, match="at POST"):
        faulty.send(Request("POST", GET.url), timeout=1)


def test_bodies_break_end_and_change_where_told(inner: AsgiTransport) -> None:
    """Broken off, ended quietly, or altered; to the byte, in pieces or not."""
    for chunk in (0, 1, 7, 30, 100):
        faults = [
            Fault(break_after=30, chunk=chunk),
            Fault(end_after=30, chunk=chunk),
            Fault(end_after=0, chunk=chunk),
            Fault(alter_at=30, chunk=chunk),
        ]
        faulty = FaultyTransport(inner, faults, clock=FakeClock())
        got: list[bytes] = []
        with pytest.raises(UnreachableError, match="a fault"):
            got.extend(faulty.send(GET, timeout=1).chunks())
        assert b"".join(got) == BODY[:30]
        assert _body(faulty) == BODY[:30]
        assert _body(faulty) == b""
        assert _body(faulty) == BODY[:30] + b"\xe1" + BODY[31:]


def test_delays_pass_on_the_fake_clock_and_keep_the_deadline(inner: AsgiTransport) -> None:
    """A delay within the timeout is time that passed; one beyond it is a DeadlineError at the deadline."""
    clock = FakeClock(monotonic=0)
    faulty = FaultyTransport(
        inner, [Fault(delay=9), Fault(delay=11), Fault(chunk=10, chunk_delay=3)], clock=clock
    )
    assert _body(faulty) == BODY
    assert clock.monotonic() == 9
    with pytest.raises(DeadlineError, match="no answer in time"):
        _body(faulty)
    assert clock.monotonic() == 19
    with pytest.raises(DeadlineError, match="no answer in time"):
        _body(faulty)
    assert clock.monotonic() == 29


def test_heads_lie_where_told(inner: AsgiTransport) -> None:
    """Status and headers are replaced, added and removed."""
    fault = Fault(status=418, headers=(("etag", '"2"'), ("x", "y")), without=("content-length",))
    answer = FaultyTransport(inner, [fault], clock=FakeClock()).send(GET, timeout=1)
    assert (answer.status, answer.headers["etag"], answer.headers["x"]) == (418, '"2"', "y")
    assert "content-length" not in answer.headers
    answer.close()


def test_endless_bodies_do_not_end(inner: AsgiTransport) -> None:
    """Zeros follow as long as somebody reads."""
    answer = FaultyTransport(inner, [Fault(endless=True)], clock=FakeClock()).send(GET, timeout=1)
    pieces = list(islice(answer.chunks(), 50))
    assert pieces[0] == BODY
    assert set(pieces[49]) == {0}
