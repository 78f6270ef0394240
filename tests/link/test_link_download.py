"""Downloads: whole, resumed, and under attack."""

from __future__ import annotations

import random
import re
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.responses import Response
from starlette.routing import Route

from edgestill.core.digest import Digest
from edgestill.core.errors import (
    AccessError,
    DeadlineError,
    EdgestillError,
    NotFoundError,
    PathError,
    RefusedError,
    SettingError,
    SpentError,
    TrustError,
    UnreachableError,
)
from edgestill.link.allowance import Allowance, Meter
from edgestill.link.download import download
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from starlette.requests import Request as WebRequest

    from edgestill.core.protocols import Transport

URL = "http://mirror.test/file"
DATA = random.Random(0).randbytes(10_000)
DIGEST = Digest.of(DATA)


class _Mirror:
    """A server with one file. Knows ranges, unless it is told not to."""

    def __init__(self) -> None:
        self.data = DATA
        self.ranges = True
        self.status = 0
        self.served: list[str] = []
        self.asgi = Starlette(routes=[Route("/file", self.serve)])

    async def serve(self, request: WebRequest) -> Response:
        wanted = request.headers.get("range", "")
        self.served.append(wanted)
        if self.status:
            return Response(b'{"what": "no"}', self.status)
        found = re.fullmatch(r"bytes=(\d+)-", wanted)
        if found is None or not self.ranges:
            return Response(self.data)
        start, size = int(found[1]), len(self.data)
        if start >= size:
            return Response(status_code=416, headers={"content-range": f"bytes */{size}"})
        headers = {"content-range": f"bytes {start}-{size - 1}/{size}"}
        return Response(self.data[start:], 206, headers=headers)


@pytest.fixture
def mirror() -> _Mirror:
    return _Mirror()


@pytest.fixture
def transport(mirror: _Mirror) -> Iterator[AsgiTransport]:
    with AsgiTransport(mirror.asgi) as opened:
        yield opened


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "file.esb"


def _part(to: Path) -> Path:
    return to.with_name("file.esb.part")


def _download(
    transport: Transport, to: Path, clock: FakeClock, *, allowance: Meter | None = None, data: bytes = DATA
) -> None:
    download(
        transport,
        URL,
        to=to,
        size=len(data),
        digest=Digest.of(data),
        clock=clock,
        timeout=10,
        minimum_speed=100,
        allowance=allowance,
    )


def test_a_file_arrives(transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock) -> None:
    """Whole, and nothing is left beside it."""
    _download(transport, to, clock)
    assert to.read_bytes() == DATA
    assert list(to.parent.iterdir()) == [to]
    assert mirror.served == [""]


def test_a_file_that_is_there_is_not_fetched(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """But one that is damaged is."""
    to.write_bytes(DATA)
    _download(transport, to, clock)
    assert mirror.served == []
    to.write_bytes(DATA[:-1] + b"?")
    _download(transport, to, clock)
    assert to.read_bytes() == DATA


def test_an_empty_file_needs_no_request(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """It is known already."""
    _download(transport, to, clock, data=b"")
    assert (to.read_bytes(), mirror.served) == (b"", [])


def test_a_broken_download_continues_where_it_stopped(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """Three times broken, each byte fetched once."""
    faults = [Fault(break_after=4_000), Fault(end_after=1_000), Fault(drop=True)]
    faulty = FaultyTransport(transport, faults, clock=clock)
    for have in (4_000, 5_000, 5_000):
        with pytest.raises(UnreachableError):
            _download(faulty, to, clock)
        assert _part(to).read_bytes() == DATA[:have]
        assert not to.exists()
    _download(faulty, to, clock)
    assert to.read_bytes() == DATA
    assert mirror.served == ["", "bytes=4000-", "bytes=5000-"]


@settings(deadline=None, max_examples=40)
@given(
    breaks=st.lists(st.integers(0, 5_000), max_size=6), ranges=st.booleans(), chunk=st.integers(500, 9_000)
)
def test_it_arrives_however_often_it_breaks(
    tmp_path_factory: pytest.TempPathFactory, breaks: list[int], ranges: bool, chunk: int
) -> None:
    """With and without ranges, in pieces of any length."""
    mirror, clock, to = _Mirror(), FakeClock(), tmp_path_factory.mktemp("breaks") / "file.esb"
    mirror.ranges = ranges
    with AsgiTransport(mirror.asgi) as transport:
        faults = [Fault(break_after=after, chunk=chunk) for after in breaks]
        faulty = FaultyTransport(transport, faults, clock=clock)
        for _ in range(len(breaks) + 1):
            try:
                _download(faulty, to, clock)
            except UnreachableError:
                continue
            break
    assert to.read_bytes() == DATA


def test_a_peer_without_ranges_sends_all_again(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """What was there is not put before it."""
    mirror.ranges = False
    _part(to).write_bytes(DATA[:5_000])
    _download(transport, to, clock)
    assert to.read_bytes() == DATA


def test_a_beginning_of_another_file_is_thrown_away_once(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """The digest tells; the second try starts from zero."""
    _part(to).write_bytes(b"x" * 5_000)
    _download(transport, to, clock)
    assert to.read_bytes() == DATA
    assert mirror.served == ["bytes=5000-", ""]


@pytest.mark.parametrize("left", [DATA, b"x" * 10_000, DATA + b"more"])
def test_what_is_left_in_full_length_is_judged_by_its_digest(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock, left: bytes
) -> None:
    """Right: nothing is fetched. Wrong or too long: all of it is."""
    _part(to).write_bytes(left)
    _download(transport, to, clock)
    assert to.read_bytes() == DATA
    assert mirror.served == ([] if left == DATA else [""])


# Attacks


def test_attack_altered_bytes(transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock) -> None:
    """A file with one byte altered never appears, is not tried twice, and leaves nothing to continue."""
    faulty = FaultyTransport(transport, lambda _: Fault(alter_at=7_000), clock=clock)
    with pytest.raises(
        TrustError, match=rf"another digest; at {URL}; expected {DIGEST}; got sha256:.*another mirror"
    ):
        _download(faulty, to, clock)
    assert list(to.parent.iterdir()) == []
    assert mirror.served == [""]


def test_attack_altered_bytes_on_every_way(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """A continued file is fetched anew once, not for ever."""
    _part(to).write_bytes(DATA[:5_000])
    faulty = FaultyTransport(transport, lambda _: Fault(alter_at=100), clock=clock)
    with pytest.raises(TrustError, match="another digest"):
        _download(faulty, to, clock)
    assert mirror.served == ["bytes=5000-", ""]


def test_attack_endless_data(transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock) -> None:
    """Not a byte beyond the listed size is written."""
    endless = Fault(endless=True, without=("content-length",))
    with pytest.raises(TrustError, match=r"a download of another length; .*; got more"):
        _download(FaultyTransport(transport, [endless], clock=clock), to, clock)
    assert list(to.parent.iterdir()) == []


@pytest.mark.parametrize("data", [DATA + b"!", DATA[:-1]])
def test_attack_another_length(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock, data: bytes
) -> None:
    """A length that is stated wrongly is refused before the body."""
    mirror.data = data
    with pytest.raises(TrustError, match=rf"another length; .*; expected 10000 bytes; got {len(data)}"):
        _download(transport, to, clock)
    assert not to.exists()


def test_attack_slow_retrieval(transport: AsgiTransport, to: Path, clock: FakeClock) -> None:
    """A trickle that keeps the connection alive is given up after the first stretch; what came is kept."""
    start = clock.monotonic()
    trickle = Fault(chunk=10, chunk_delay=1)
    with pytest.raises(
        DeadlineError, match=r"too slow; .*; expected 100 B/s over 10 s; got 10 B/s; it continues"
    ):
        _download(FaultyTransport(transport, [trickle], clock=clock), to, clock)
    assert clock.monotonic() - start == 10
    assert _part(to).read_bytes() == DATA[:100]


def test_attack_slow_retrieval_after_a_quick_start(
    transport: AsgiTransport, to: Path, clock: FakeClock
) -> None:
    """Speed is measured by stretches: early bytes do not pay for a stall."""

    class Stalling:
        def send(self, request: object, *, timeout: float) -> object:
            response = transport.send(request, timeout=timeout)  # type: ignore[arg-type]  # handed through

            class Slowed:
                status, headers, close = response.status, response.headers, response.close

                @staticmethod
                def chunks() -> Iterator[bytes]:
                    data = b"".join(response.chunks())
                    yield data[:9_000]
                    for byte in data[9_000:]:
                        clock.advance(2)
                        yield bytes([byte])

            return Slowed()

    start = clock.monotonic()
    with pytest.raises(DeadlineError, match="too slow"):
        _download(Stalling(), to, clock)  # type: ignore[arg-type]  # near enough a transport
    assert clock.monotonic() - start <= 20


def test_attack_silence(transport: AsgiTransport, to: Path, clock: FakeClock) -> None:
    """A peer that stops sending cannot hold a download longer than size and speed allow."""
    start = clock.monotonic()
    with pytest.raises(DeadlineError, match="no answer in time"):
        _download(FaultyTransport(transport, [Fault(delay=1e9)], clock=clock), to, clock)
    assert clock.monotonic() - start == 10 + 10_000 / 100


def test_a_slow_link_that_keeps_the_minimum_may_take_its_time(
    transport: AsgiTransport, to: Path, clock: FakeClock
) -> None:
    """Longer than the timeout, which is a stretch and not the whole."""
    start = clock.monotonic()
    _download(FaultyTransport(transport, [Fault(chunk=150, chunk_delay=1)], clock=clock), to, clock)
    assert clock.monotonic() - start > 60
    assert to.read_bytes() == DATA


def test_attack_redirect_elsewhere(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """It is not followed."""
    away = Fault(status=302, headers=(("location", "http://evil.test/"),))
    with pytest.raises(RefusedError, match=r"sends elsewhere; .*; got HTTP 302 http://evil.test/"):
        _download(FaultyTransport(transport, [away], clock=clock), to, clock)


def test_attack_compressed_body(transport: AsgiTransport, to: Path, clock: FakeClock) -> None:
    """Nobody asked for one."""
    packed = Fault(headers=(("content-encoding", "gzip"),))
    with pytest.raises(RefusedError, match="a compressed answer"):
        _download(FaultyTransport(transport, [packed], clock=clock), to, clock)


@pytest.mark.parametrize(
    "given",
    [
        "",
        "bytes 0-9999/10000",
        "bytes 5000-9998/10000",
        "bytes 5000-9999/10001",
        "bytes 5001-9999/10000",
        "lines 5000-9999/*",
    ],
)
def test_attack_another_range(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock, given: str
) -> None:
    """Bytes of another place are not joined; the next try starts from zero."""
    _part(to).write_bytes(DATA[:5_000])
    lie = Fault(headers=(("content-range", given),))
    faulty = FaultyTransport(transport, [lie], clock=clock)
    with pytest.raises(RefusedError, match=r"another range; .*; expected bytes 5000-9999/10000"):
        _download(faulty, to, clock)
    _download(faulty, to, clock)
    assert mirror.served == ["bytes=5000-", ""]
    assert to.read_bytes() == DATA


def test_attack_a_part_that_nobody_asked_for(transport: AsgiTransport, to: Path, clock: FakeClock) -> None:
    """206 without a range is an answer to another question; so is 204."""
    for status in (206, 204):
        with pytest.raises(RefusedError, match=rf"another question; .*; got HTTP {status}"):
            _download(FaultyTransport(transport, [Fault(status=status)], clock=clock), to, clock)


def test_a_range_that_the_peer_cannot_satisfy(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """Its file is shorter than what is there: an error, and a start from zero next time."""
    mirror.data = DATA[:3_000]
    _part(to).write_bytes(DATA[:5_000])
    with pytest.raises(RefusedError, match="got HTTP 416"):
        _download(transport, to, clock)
    mirror.data = DATA
    _download(transport, to, clock)
    assert to.read_bytes() == DATA


@pytest.mark.parametrize(("status", "kind"), [(404, NotFoundError), (401, AccessError), (500, RefusedError)])
def test_refusals_are_told_and_keep_what_is_there(
    transport: AsgiTransport,
    mirror: _Mirror,
    to: Path,
    status: int,
    kind: type[EdgestillError],
) -> None:
    """Another time may go better."""
    mirror.status = status
    _part(to).write_bytes(DATA[:5_000])
    with pytest.raises(kind, match=rf"no; at GET {URL}; got HTTP {status}"):
        _download(transport, to, FakeClock())
    assert _part(to).read_bytes() == DATA[:5_000]


# Budgets and disks


def test_the_data_budget_ends_a_download_until_tomorrow(
    transport: AsgiTransport, to: Path, clock: FakeClock
) -> None:
    """One that fits into no day: what arrived is kept and counted; with the next day's budget it goes on."""
    meter = Meter(Allowance(bytes_per_day=6_000), clock)
    faulty = FaultyTransport(transport, lambda _: Fault(chunk=1_000), clock=clock)
    with pytest.raises(SpentError, match=r"used up; at .*; got 6000 of 10000 bytes; it continues tomorrow"):
        _download(faulty, to, clock, allowance=meter)
    assert _part(to).read_bytes() == DATA[:6_000]
    with pytest.raises(SpentError, match="does not fit into the data budget of today"):
        _download(faulty, to, clock, allowance=meter)
    assert len(faulty.requests) == 1
    clock.advance(86_400)
    _download(faulty, to, clock, allowance=meter)
    assert to.read_bytes() == DATA
    assert meter.allowance.spent == 4_000


def test_a_download_that_shall_not_go_on_is_let_go_between_two_pieces(
    transport: AsgiTransport, mirror: _Mirror, to: Path, clock: FakeClock
) -> None:
    """What arrived is kept, and it goes on there; where it shall not begin nothing is asked for, and what is whole is whole."""
    faulty, asked = FaultyTransport(transport, lambda _: Fault(chunk=1_000), clock=clock), 0

    def four() -> bool:
        nonlocal asked
        asked += 1
        return asked <= 5  # before the request, and before each piece

    given: dict[str, Any] = {"to": to, "size": len(DATA), "digest": Digest.of(DATA), "clock": clock}
    given |= {"timeout": 10, "minimum_speed": 100}
    assert not download(faulty, URL, **given, goes_on=four)
    assert _part(to).read_bytes() == DATA[:4_000]
    assert not download(faulty, URL, **given, goes_on=lambda: False)
    assert len(faulty.requests) == 1
    assert download(faulty, URL, **given, goes_on=lambda: True)
    assert to.read_bytes() == DATA
    assert mirror.served == ["", "bytes=4000-"]
    assert download(faulty, URL, **given, goes_on=lambda: False)


def test_a_download_that_does_not_fit_today_is_not_begun(
    transport: AsgiTransport, to: Path, clock: FakeClock
) -> None:
    """Its length is known: not a byte is asked for, and none is spent, until a day on which it can be had whole."""
    meter = Meter(Allowance(bytes_per_day=12_000).charge(2_001, clock.now()), clock)
    faulty = FaultyTransport(transport, lambda _: Fault(), clock=clock)
    with pytest.raises(SpentError, match=r"of today; .*; expected at most 10 kB of 12 kB; got 10 kB; it is"):
        _download(faulty, to, clock, allowance=meter)
    assert (faulty.requests, meter.allowance.spent) == ([], 2_001)
    clock.advance(86_400)
    _download(faulty, to, clock, allowance=meter)
    assert to.read_bytes() == DATA


def test_a_budget_that_is_spent_by_the_last_byte_is_enough(
    transport: AsgiTransport, to: Path, clock: FakeClock
) -> None:
    """A download that is complete is not refused."""
    _download(transport, to, clock, allowance=Meter(Allowance(bytes_per_day=10_000), clock))
    assert to.read_bytes() == DATA


def test_a_folder_that_is_not_there_is_told(
    transport: AsgiTransport, tmp_path: Path, clock: FakeClock
) -> None:
    """As a path, with what to do."""
    with pytest.raises(
        PathError, match=r"cannot write a download; at .*; got No such file or directory; check the disk"
    ):
        _download(transport, tmp_path / "missing" / "file.esb", clock)


@pytest.mark.parametrize(("timeout", "speed"), [(0.0, 1.0), (1.0, 0.0), (1.0, float("nan")), (-1.0, 1.0)])
def test_a_download_without_bounds_is_refused(
    transport: AsgiTransport, to: Path, timeout: float, speed: float
) -> None:
    """Nothing may take for ever."""
    with pytest.raises(SettingError, match="a download without a bound"):
        download(
            transport,
            URL,
            to=to,
            size=1,
            digest=DIGEST,
            clock=FakeClock(),
            timeout=timeout,
            minimum_speed=speed,
        )
