"""A device's calls, and how refusals and hostile answers end."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from edgestill.core.errors import (
    AccessError,
    ConflictError,
    DeadlineError,
    EdgestillError,
    MessageError,
    NotFoundError,
    RefusedError,
    SettingError,
    UnreachableError,
)
from edgestill.core.protocols import Request
from edgestill.core.wire import Enrol, Enrolled, Poll, Report, reports_from_bytes
from edgestill.link.control import ControlClient
from edgestill.link.exchange import CONFLICTING, MAX_PROBLEM_BYTES, accepted, exchange
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from starlette.requests import Request as WebRequest

URL = "http://hub.test"
DIGEST = "sha256:" + "0" * 64
ENROL = Enrol(join_token="est1.secret.digest", device="d1", hardware_class="x86_64-vnni-onnxruntime")
REPORT = Report(id="r1", at=1.0, bundle=DIGEST, release="watch/1.0.0", state="serving")


class _Hub:
    """Answers what a test says, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answer = Response(b"{}")
        self.asked: list[tuple[str, dict[str, str], bytes]] = []
        self.asgi = Starlette(routes=[Route("/{rest:path}", self.hear, methods=["GET", "POST"])])

    async def hear(self, request: WebRequest) -> Response:
        path = f"{request.method} {request.url.path}?{request.url.query}".rstrip("?")
        self.asked.append((path, dict(request.headers), await request.body()))
        return self.answer


@pytest.fixture
def hub() -> _Hub:
    return _Hub()


@pytest.fixture
def transport(hub: _Hub) -> Iterator[AsgiTransport]:
    with AsgiTransport(hub.asgi) as opened:
        yield opened


@pytest.fixture
def client(transport: AsgiTransport) -> ControlClient:
    return ControlClient(transport, URL + "/", credential="c0ffee")


def _problem(status: int, **parts: str) -> Response:
    return Response(json.dumps(parts).encode(), status_code=status, media_type="application/problem+json")


def test_enrolling(hub: _Hub, transport: AsgiTransport) -> None:
    """The message goes there without a credential, the answer comes back."""
    enrolled = Enrolled(device="d1", credential="secret", root=b"{}", interval=5)
    hub.answer = Response(enrolled.to_bytes(), status_code=201)
    assert ControlClient(transport, URL).enrol(ENROL) == enrolled
    path, headers, body = hub.asked[0]
    assert (path, headers["content-type"]) == ("POST /v1/enrol", "application/json")
    assert Enrol.from_bytes(body) == ENROL
    assert "authorization" not in headers


def test_polling_gives_the_answer_and_its_etag(hub: _Hub, client: ControlClient) -> None:
    """The wait and the credential go along."""
    hub.answer = Response(Poll(assignment={"a": 1}, interval=7).to_bytes(), headers={"etag": '"v1"'})
    assert client.poll(etag=None, wait=0.5) == (Poll(assignment={"a": 1}, interval=7), '"v1"')
    path, headers, _ = hub.asked[0]
    assert path == "GET /v1/poll?wait=0.5"
    assert headers["authorization"] == "Bearer c0ffee"
    assert "if-none-match" not in headers


def test_polling_again_gives_nothing_where_nothing_differs(hub: _Hub, client: ControlClient) -> None:
    """The ETag goes there; 304 keeps it."""
    hub.answer = Response(status_code=304)
    assert client.poll(etag='"v1"', wait=20) == (None, '"v1"')
    path, headers, _ = hub.asked[0]
    assert (path, headers["if-none-match"]) == ("GET /v1/poll?wait=20", '"v1"')


def test_a_long_poll_may_take_its_wait_and_the_timeout(hub: _Hub, transport: AsgiTransport) -> None:
    """The hub may hold it that long, and no longer."""
    hub.answer = Response(Poll(assignment=None, interval=7).to_bytes())
    clock = FakeClock()
    faulty = FaultyTransport(transport, [Fault(delay=25), Fault(delay=31)], clock=clock)
    client = ControlClient(faulty, URL, credential="x", timeout=10)
    assert client.poll(etag=None, wait=20)[0] is not None
    with pytest.raises(DeadlineError, match="no answer in time"):
        client.poll(etag=None, wait=20)


@pytest.mark.parametrize("etag", ["", "v1", '"a\tb"', '"' + "x" * 300 + '"', '"ü"'])
def test_attack_an_etag_that_is_none(hub: _Hub, client: ControlClient, etag: str) -> None:
    """It is never sent back; the next poll asks for everything."""
    hub.answer = Response(Poll(assignment=None, interval=7).to_bytes(), headers={"etag": etag})
    assert client.poll(etag=None, wait=0)[1] == ""


def test_reporting(hub: _Hub, client: ControlClient) -> None:
    """A batch goes there; each report is new to the hub or a repeat."""
    hub.answer = Response(b'{"accepted":1,"duplicates":0}')
    client.report([REPORT])
    assert hub.asked[0][0] == "POST /v1/reports"
    assert reports_from_bytes(hub.asked[0][2]) == [REPORT]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>Welcome to our hotel</html>",
        b"{}",
        b"",
        b'{"accepted":true,"duplicates":0}',
        b'{"accepted":0,"duplicates":0}',
        b'{"accepted":1,"duplicates":1}',
        b'{"accepted":-1,"duplicates":2}',
    ],
)
def test_reports_that_nobody_accounts_for_are_not_delivered(
    hub: _Hub, client: ControlClient, body: bytes
) -> None:
    """A captive portal says 200 to everything; believing it would lose reports for ever."""
    hub.answer = Response(body)
    with pytest.raises(MessageError):
        client.report([REPORT])


@pytest.mark.parametrize("accepted", [True, False])
def test_statistics_carry_their_id(hub: _Hub, client: ControlClient, accepted: bool) -> None:
    """Whether they were new comes back."""
    hub.answer = Response(json.dumps({"accepted": accepted}).encode())
    assert client.statistics("s-1", b"message") is accepted
    path, headers, body = hub.asked[0]
    assert (path, headers["x-edgestill-id"], body) == ("POST /v1/evidence/statistics", "s-1", b"message")
    assert "x-edgestill-sequence" not in headers
    client.statistics("s-2", b"message", sequence=2**53 - 1)
    assert hub.asked[1][1]["x-edgestill-sequence"] == "9007199254740991"
    assert headers["content-type"] == "application/octet-stream"


def test_artefacts_come_as_they_are(hub: _Hub, client: ControlClient) -> None:
    """Up to the bound, and not a byte more."""
    hub.answer = Response(b"x" * 100)
    assert client.artefact("metadata/1.root.json", 100) == b"x" * 100
    assert hub.asked[0][0] == "GET /metadata/1.root.json"
    with pytest.raises(
        RefusedError, match=r"an answer that is too long; .*; expected at most 99 bytes; got 100"
    ):
        client.artefact("metadata/1.root.json", 99)


def test_an_absent_artefact_is_not_found(hub: _Hub, client: ControlClient) -> None:
    """404 means something there, and nowhere else."""
    hub.answer = _problem(404, what="no such file")
    with pytest.raises(NotFoundError, match="no such file"):
        client.artefact("metadata/2.root.json", 100)
    with pytest.raises(RefusedError, match="no such file"):
        client.report([])


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc",
        "../secret",
        "a/../b",
        "a/./b",
        "a//b",
        "a/",
        "http://elsewhere/",
        "a?b",
        "a#b",
        "a%2e",
        "a\nb",
        "ü",
        "..",
    ],
)
def test_attack_a_path_that_leads_elsewhere(hub: _Hub, client: ControlClient, path: str) -> None:
    """Names from metadata cannot leave the hub's address."""
    with pytest.raises(MessageError, match="not a path of an artefact"):
        client.artefact(path, 100)
    assert hub.asked == []


def test_attack_endless_answer(hub: _Hub, client: ControlClient) -> None:
    """A body without a length is read to the bound and then left."""
    left = []

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1_000
        finally:
            left.append(True)

    hub.answer = StreamingResponse(pieces())
    with pytest.raises(RefusedError, match=r"too long; .*; expected at most 5000 bytes; got more"):
        client.artefact("metadata/timestamp.json", 5_000)


def test_attack_endless_refusal(hub: _Hub, client: ControlClient) -> None:
    """Of a refusal only the beginning is read."""

    async def pieces() -> AsyncIterator[bytes]:
        while True:
            yield b"x" * 1_000

    hub.answer = StreamingResponse(pieces(), status_code=500)
    with pytest.raises(
        RefusedError, match=r"the peer refuses; at GET http://hub.test/v1/poll.*; got HTTP 500"
    ):
        client.poll(etag=None, wait=0)


def test_attack_a_length_of_many_digits(hub: _Hub, transport: AsgiTransport) -> None:
    """A number that is slow to read is not read."""
    lie = Fault(headers=(("content-length", "9" * 100_000),))
    faulty = FaultyTransport(transport, [lie], clock=FakeClock())
    with pytest.raises(RefusedError, match="too long"):
        ControlClient(faulty, URL).artefact("x", 100)


def test_attack_redirect_elsewhere(hub: _Hub, client: ControlClient) -> None:
    """The credential is not carried to another address, and its answer is not taken."""
    for status in (300, 301, 302, 303, 307, 308):
        hub.answer = Response(status_code=status, headers={"location": "http://evil.test/"})
        with pytest.raises(
            RefusedError, match=rf"an answer that sends elsewhere; .*; got HTTP {status} http://evil.test/"
        ):
            client.poll(etag=None, wait=0)
    assert len(hub.asked) == 6


def test_attack_compressed_answer(hub: _Hub, client: ControlClient) -> None:
    """Nobody asked for one, so no bomb is unpacked."""
    hub.answer = Response(b"\x1f\x8b", headers={"content-encoding": "gzip"})
    with pytest.raises(RefusedError, match=r"a compressed answer; .*; expected identity; got gzip"):
        client.poll(etag=None, wait=0)


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{}", b'{"interval":0}', b'{"interval":1,"assignment":[]}', b"\xff", b"[" * 100_000]
)
def test_attack_an_answer_that_is_none(hub: _Hub, client: ControlClient, body: bytes) -> None:
    """It is a MessageError, whatever it holds."""
    hub.answer = Response(body)
    with pytest.raises(MessageError):
        client.poll(etag=None, wait=0)


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, RefusedError),
        (401, AccessError),
        (403, AccessError),
        (404, NotFoundError),
        (409, ConflictError),
        (503, RefusedError),
    ],
)
def test_a_refusal_says_what_the_peer_said(
    hub: _Hub, transport: AsgiTransport, status: int, kind: type[EdgestillError]
) -> None:
    """Statement, code, what was expected and what to do."""
    hub.answer = _problem(
        status, code="state-conflict", what="it is over", expected="running", got="done", fix="start anew"
    )
    request = Request("POST", f"{URL}/x")
    with pytest.raises(
        kind,
        match=rf"it is over; at POST http://hub.test/x; expected running; got HTTP {status} state-conflict done; start anew",
    ):
        accepted(exchange(transport, request, timeout=5, max_bytes=10), request, documented=CONFLICTING)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": "no such model"}', "no such model"),
        (b'{"detail": "bad", "title": "Bad Request"}', "bad"),
        (b"<html>", "the peer refuses"),
        (b'{"what": 5}', "the peer refuses"),
        (b"", "the peer refuses"),
        (b'{"what": "' + b"x" * MAX_PROBLEM_BYTES + b'"}', "the peer refuses"),
        (b'{"what": "' + b"x" * 1_000 + b'"}', "x" * 300 + "; at"),
    ],
)
def test_other_ways_to_say_no(hub: _Hub, client: ControlClient, body: bytes, said: str) -> None:
    """Of other servers, of proxies, and of those who say too much."""
    hub.answer = Response(body, status_code=500)
    with pytest.raises(RefusedError, match=said):
        client.report([])


def test_attack_terminal_escapes_in_a_refusal(hub: _Hub, client: ControlClient) -> None:
    """They do not reach the one who reads the error."""
    hub.answer = _problem(400, what="\x1b[2Jgone\nsecond line")
    with pytest.raises(RefusedError) as caught:
        client.report([])
    assert "\x1b" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_broken_connection_is_unreachable(hub: _Hub, transport: AsgiTransport) -> None:
    """Before the head, and within the body."""
    hub.answer = Response(Poll(assignment=None, interval=7).to_bytes())
    faulty = FaultyTransport(transport, [Fault(drop=True), Fault(break_after=5)], clock=FakeClock())
    for _ in range(2):
        with pytest.raises(UnreachableError, match="no connection, or it broke"):
            ControlClient(faulty, URL).poll(etag=None, wait=0)


@pytest.mark.parametrize("secret", ["", "a b", "a\r\nx: y", "ü", "x" * 501])
def test_a_credential_that_no_header_can_carry_is_refused_untold(
    transport: AsgiTransport, secret: str
) -> None:
    """The error does not show it."""
    with pytest.raises(SettingError, match="a secret that no header can carry") as caught:
        ControlClient(transport, URL, credential=secret)
    assert not secret or secret not in str(caught.value)
