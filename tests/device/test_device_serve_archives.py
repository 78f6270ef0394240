"""A device hands out what its slots hold: the right bytes from any byte on, to a few at once, and nothing else."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from device_bundles import release_name, tiny_bundle
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.protocols import Request
from edgestill.device.mirrors import Mirrors, Nearby
from edgestill.device.serve import archives
from edgestill.device.serve.app import Outermost
from edgestill.device.serve.archives import OF_ONE, Archives
from edgestill.device.slots import Slots
from edgestill.device.state import Target
from edgestill.link.download import download
from edgestill.testing.clock import FakeClock
from edgestill.testing.transport import AsgiTransport
from edgestill.trust.client import target_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

ARCHIVE = tiny_bundle("1.0.0")
TARGET = Target(name=release_name("1.0.0"), digest=Digest.of(ARCHIVE), size=len(ARCHIVE))
PATH = "/" + target_path(TARGET.name, TARGET.digest)
URL = "http://10.0.0.2:8000"


async def elsewhere(_scope: Any, _receive: Any, send: Any) -> None:
    """The application behind."""
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]})
    await send({"type": "http.response.body", "body": b"model"})


def holding(folder: Path) -> Path:
    """Slots, the first of which holds the bundle."""
    slots = Slots.open(folder)
    slots.archive("a", TARGET).write_bytes(ARCHIVE)
    slots.stage("a", TARGET, 1)
    return folder


@pytest.fixture
def there(tmp_path: Path) -> Iterator[AsgiTransport]:
    """A device that serves."""
    with AsgiTransport(Outermost(Archives(holding(tmp_path), elsewhere))) as transport:
        yield transport


def call(there: AsgiTransport, path: str = PATH, method: str = "GET", **headers: str) -> Any:
    """Status, header fields, body."""
    response = there.send(Request(method, URL + path, headers), timeout=30)
    return response.status, dict(response.headers), b"".join(response.chunks())


def test_a_bundle_is_handed_out_whole(there: AsgiTransport) -> None:
    """Under the path that the hub has."""
    status, headers, body = call(there)
    assert (status, body) == (200, ARCHIVE)
    assert headers["content-length"] == str(len(ARCHIVE))
    assert call(there, method="HEAD")[2] == b""


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=20)
@given(start=st.integers(0, len(ARCHIVE) - 1))
def test_from_any_byte_on(there: AsgiTransport, start: int) -> None:
    """As a download that goes on asks for."""
    status, headers, body = call(there, range=f"bytes={start}-")
    assert (status, body) == (206, ARCHIVE[start:])
    assert headers["content-range"] == f"bytes {start}-{len(ARCHIVE) - 1}/{len(ARCHIVE)}"


@pytest.mark.parametrize(
    "given_", ["bytes=0-5", "bytes=-5", "bytes=0-1,4-5", "lines=1-", "bytes=x-", "bytes=1-" * 9]
)
def test_other_ranges_are_not_understood(there: AsgiTransport, given_: str) -> None:
    """The whole is the answer, as the standard allows."""
    assert call(there, range=given_)[::2] == (200, ARCHIVE)


@pytest.mark.parametrize("start", [len(ARCHIVE), 10**17])
def test_a_range_beyond_the_end(there: AsgiTransport, start: int) -> None:
    """416, with the size."""
    status, headers, body = call(there, range=f"bytes={start}-")
    assert (status, headers["content-range"], body) == (416, f"bytes */{len(ARCHIVE)}", b"")


@pytest.mark.parametrize(
    "path",
    [
        "/targets/",
        "/targets/../state.json",
        "/targets/a/slot.json",
        f"/targets/{TARGET.digest.hex}.esb",
        PATH + "/",
        PATH.replace("1.0.0", "1.0.1"),
        PATH.upper().replace("/TARGETS/", "/targets/"),
        "/targets/tiny/1.0.0/%2e%2e%2fslot.json",
    ],
)
def test_attack_other_paths_lead_nowhere(there: AsgiTransport, path: str) -> None:
    """Attack: only the path of a bundle that a slot holds opens a file; no part of it is used as one."""
    assert call(there, path)[::2] == (404, b"")


def test_attack_a_record_that_names_what_is_not_there(tmp_path: Path) -> None:
    """Attack: a torn or foreign record, or one whose archive is gone, hands out nothing."""
    folder = holding(tmp_path)
    with AsgiTransport(Outermost(Archives(folder, elsewhere))) as there:
        (folder / "a" / f"{TARGET.digest.hex}.esb").unlink()
        assert call(there)[0] == 404
        for record in (b"", b"{}", b"\0" * 9, json.dumps({"target": {"name": "../x"}}).encode()):
            (folder / "a" / "slot.json").write_bytes(record)
            assert call(there)[0] == 404


def test_other_methods_and_paths(there: AsgiTransport) -> None:
    """Nothing is taken; what is not an archive is the model's."""
    status, headers, _ = call(there, method="POST")
    assert (status, headers["allow"]) == (405, "GET, HEAD")
    assert call(there, "/v2")[2] == b"model"


class Reader:
    """Who fetches, over a connection that is as slow as it likes.

    Args:
        app: of the device.
        host: its address.
        waits: whether it reads no further than the beginning.
    """

    def __init__(self, app: Archives, host: str, *, waits: bool = False) -> None:
        self.got: list[Any] = []
        self.begun, self.goes_on, self.gone = asyncio.Event(), asyncio.Event(), asyncio.Event()
        if not waits:
            self.goes_on.set()
        scope = {"type": "http", "method": "GET", "path": PATH, "headers": [], "client": (host, 1)}
        self.task = asyncio.create_task(app(scope, self._receive, self._send))

    async def done(self) -> int:
        """At its end; the status."""
        await self.task
        return int(self.got[0]["status"])

    @property
    def body(self) -> bytes:
        """What came."""
        return b"".join(one.get("body", b"") for one in self.got)

    async def _receive(self) -> Any:
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.got.append(message)
        self.begun.set()
        if message["type"] == "http.response.body":
            await self.goes_on.wait()


def test_so_many_at_once_and_no_more(tmp_path: Path) -> None:
    """Four, two of one address; who comes while they are served is told to come later, and then there is room again."""
    app = Archives(holding(tmp_path), elsewhere)

    async def story() -> list[int]:
        slow = [Reader(app, host, waits=True) for host in ("a", "a", "b", "b")]
        for one in slow:
            await one.begun.wait()
        refused = [await Reader(app, host).done() for host in ("a", "c")]
        for one in slow:
            one.goes_on.set()
        served = [await one.done() for one in slow]
        assert all(one.body == ARCHIVE for one in slow)
        return [*refused, *served, await Reader(app, "a").done(), await Reader(app, "c").done()]

    assert asyncio.run(story()) == [503, 503, *[200] * 6]


def test_of_one_address_only_two(tmp_path: Path) -> None:
    """The third is refused though there is room, which another then gets."""
    app = Archives(holding(tmp_path), elsewhere)

    async def story() -> list[int]:
        slow = [Reader(app, "a", waits=True) for _ in range(OF_ONE)]
        for one in slow:
            await one.begun.wait()
        found = [await Reader(app, "a").done(), await Reader(app, "b").done()]
        for one in slow:
            one.goes_on.set()
            await one.done()
        return found

    assert asyncio.run(story()) == [503, 200]


def test_attack_readers_that_stall_are_hung_up_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Attack: whoever reads no further loses the place, and the archive is closed."""
    monkeypatch.setattr(archives, "STALL", 0.05)
    app = Archives(holding(tmp_path), elsewhere)

    async def story() -> list[int]:
        slow = [Reader(app, host, waits=True) for host in ("a", "a", "b", "b")]
        for one in slow:
            await one.task
            assert one.body != ARCHIVE or one.got[-1].get("more_body")
        return [await Reader(app, host).done() for host in ("a", "b")]

    assert asyncio.run(story()) == [200, 200]


def test_who_hangs_up_is_not_read_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The rest of the file stays unread."""
    monkeypatch.setattr(archives, "CHUNK", 100)
    app = Archives(holding(tmp_path), elsewhere)

    async def story() -> int:
        one = Reader(app, "a", waits=True)
        await one.begun.wait()
        one.gone.set()
        one.goes_on.set()
        await one.task
        return len(one.body)

    assert asyncio.run(story()) < len(ARCHIVE)


def test_a_device_fetches_from_another(there: AsgiTransport, tmp_path: Path) -> None:
    """Our own client against our own server: whole, and the rest of what it had."""
    clock = FakeClock()
    nearby = Nearby(Mirrors((URL,)), transport=there, clock=clock)
    to = tmp_path / "got.esb"
    assert nearby.archive(TARGET, to=to)
    assert to.read_bytes() == ARCHIVE
    other = tmp_path / "rest.esb"
    (tmp_path / "rest.esb.part").write_bytes(ARCHIVE[:1000])
    download(
        there,
        URL + PATH,
        to=other,
        size=TARGET.size,
        digest=TARGET.digest,
        clock=clock,
        timeout=5,
        minimum_speed=1,
    )
    assert other.read_bytes() == ARCHIVE
    missing = Target(name=release_name("9.9.9"), digest=Digest.of(b"x"), size=1)
    assert not nearby.archive(missing, to=tmp_path / "missing.esb")
