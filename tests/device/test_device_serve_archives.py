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
from edgestill.device.serve.app import Outermost
from edgestill.device.serve.archives import AT_ONCE, Archives
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


def test_so_many_at_once_and_no_more(tmp_path: Path) -> None:
    """Who comes while others are served is told to come later; when they are done there is room again."""
    app = Archives(holding(tmp_path), elsewhere)
    scope = {"type": "http", "method": "GET", "path": PATH, "headers": []}

    async def fetched(go_on: asyncio.Event, begun: asyncio.Event | None = None) -> list[Any]:
        got: list[Any] = []

        async def send(message: Any) -> None:
            got.append(message)
            if begun is not None:
                begun.set()
            if message["type"] == "http.response.body":
                await go_on.wait()

        await app(scope, None, send)  # type: ignore[arg-type]  # nothing is received
        return got

    async def story() -> list[int]:
        wait, free = asyncio.Event(), asyncio.Event()
        free.set()
        begun = [asyncio.Event() for _ in range(AT_ONCE)]
        slow = [asyncio.create_task(fetched(wait, event)) for event in begun]
        for event in begun:
            await event.wait()
        refused = await fetched(free)
        wait.set()
        done = await asyncio.gather(*slow)
        later = await fetched(free)
        return [one[0]["status"] for one in (refused, *done, later)]

    assert asyncio.run(story()) == [503, *[200] * AT_ONCE, 200]


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
