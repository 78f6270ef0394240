"""Bodies and passwords, piece by piece: whatever the chunks, the same bytes; whatever the bound, never more."""

from __future__ import annotations

import asyncio
import base64
import gzip
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import World, esb, teacher_model, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from starlette.exceptions import HTTPException
from starlette.requests import Request

from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError, MessageError
from edgestill.hub import bodies
from edgestill.hub.access import MAX_SECRET, basic_password, bearer, digest_of
from edgestill.hub.app import create_app

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

chunks = st.lists(st.binary(max_size=20), max_size=8)


class Asked:
    """A request whose body comes in these chunks; counts how many were taken."""

    def __init__(self, parts: list[bytes], **headers: str) -> None:
        self.taken = 0
        self._parts = parts
        named = [
            (name.replace("_", "-").encode(), value.encode("latin-1")) for name, value in headers.items()
        ]
        scope: dict[str, Any] = {"type": "http", "method": "POST", "path": "/", "headers": named}
        self.request = Request(scope, self._receive)

    async def _receive(self) -> dict[str, Any]:
        self.taken += 1
        left = self._parts[self.taken :]
        body = self._parts[self.taken - 1] if self.taken <= len(self._parts) else b""
        return {"type": "http.request", "body": body, "more_body": bool(left)}


def read(asked: Asked, at_most: int, **rest: Any) -> bytes:
    """The whole body."""
    return asyncio.run(bodies.read(asked.request, at_most=at_most, **rest))


async def at_once(work: Callable[[], object]) -> object:
    """A thread of its own is not needed here."""
    return work()


@given(parts=chunks, spare=st.integers(0, 3))
def test_a_body_is_the_same_however_it_is_cut(parts: list[bytes], spare: int) -> None:
    """Empty chunks, single bytes, all at once."""
    whole = b"".join(parts)
    assert read(Asked(parts), len(whole) + spare) == whole


@given(parts=chunks.filter(any))
def test_a_body_one_byte_over_its_bound_is_refused(parts: list[bytes]) -> None:
    """With 413, wherever the chunk ends in which it shows."""
    with pytest.raises(HTTPException) as caught:
        read(Asked(parts), len(b"".join(parts)) - 1)
    assert caught.value.status_code == 413


def test_attack_a_body_without_end_is_left_at_its_bound() -> None:
    """No chunk is taken after the one that goes over it."""
    asked = Asked([b"x" * 100] * 10_000)
    with pytest.raises(HTTPException):
        read(asked, 1_000)
    assert asked.taken == 11


def test_a_body_that_says_it_is_too_long_is_not_read_at_all() -> None:
    """Its own word is enough."""
    asked = Asked([b"x"], content_length="1001")
    with pytest.raises(HTTPException):
        read(asked, 1_000)
    assert asked.taken == 0


@given(data=st.binary(max_size=300), at=st.integers(0, 300), name=st.sampled_from(["gzip", "deflate"]))
def test_a_compressed_body_is_the_same_however_it_is_cut(data: bytes, at: int, name: str) -> None:
    """Gzip and zlib, both told as what they are."""
    packed = gzip.compress(data) if name == "gzip" else zlib.compress(data)
    asked = Asked([packed[:at], packed[at:]], content_encoding=name)
    assert read(asked, max(len(data), len(packed)), compressed=True) == data


@given(data=st.binary(min_size=1, max_size=300), cut=st.integers(1, 10))
def test_a_compressed_body_that_is_cut_or_has_a_tail_is_refused(data: bytes, cut: int) -> None:
    """Half a stream is none, and neither are one and a half."""
    packed = gzip.compress(data)
    for damaged in (packed[:-cut], packed + packed[:cut], packed + packed):
        with pytest.raises(MessageError):
            read(Asked([damaged], content_encoding="gzip"), 10_000, compressed=True)


@given(data=st.binary(min_size=1, max_size=300))
def test_the_bound_holds_for_what_comes_out(data: bytes) -> None:
    """Exactly so many bytes pass, one less does not."""
    packed = gzip.compress(data)
    bound = max(len(data), len(packed))
    assert read(Asked([packed], content_encoding="gzip"), bound, compressed=True) == data
    if len(data) > len(packed):
        with pytest.raises(HTTPException):
            read(Asked([packed], content_encoding="gzip"), len(data) - 1, compressed=True)


@pytest.mark.parametrize("said", ["br", "gzip, gzip", "x-gzip", "compress", "zstd", "\xff"])
def test_an_encoding_that_is_not_spoken_is_told(said: str) -> None:
    """Instead of being taken for plain bytes."""
    for compressed in (True, False):
        with pytest.raises(MessageError, match="an encoding that is not spoken here"):
            read(Asked([b"x"], content_encoding=said), 10, compressed=compressed)


@pytest.mark.parametrize("said", ["identity", "Identity", " identity "])
def test_plain_bytes_may_be_told_to_be_plain(said: str) -> None:
    """In any case."""
    assert read(Asked([b"x"], content_encoding=said), 10) == b"x"


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=25)
@given(parts=chunks)
def test_a_file_is_the_same_however_it_comes(tmp_path: Path, parts: list[bytes]) -> None:
    """As it is written while it comes."""
    came: list[bytes] = []
    asyncio.run(bodies.save(Asked(parts).request, came.append, at_most=10_000, in_thread=at_once))
    assert b"".join(came) == b"".join(parts)


def test_a_large_file_is_written_in_pieces() -> None:
    """A megabyte in memory at most, however large it is."""
    sizes: list[int] = []
    part = b"x" * 300_000
    asked = Asked([part] * 20)
    asyncio.run(
        bodies.save(asked.request, lambda data: sizes.append(len(data)), at_most=10**7, in_thread=at_once)
    )
    assert sum(sizes) == 6_000_000
    assert max(sizes) < 2**20 + len(part)
    assert len(sizes) > 4


def test_attack_what_is_over_the_bound_is_never_written() -> None:
    """No chunk is taken after the one that goes over it, and none of it reaches the disk."""
    came: list[bytes] = []
    asked = Asked([b"x" * 300_000] * 1_000)
    with pytest.raises(HTTPException):
        asyncio.run(bodies.save(asked.request, came.append, at_most=1_000_000, in_thread=at_once))
    assert asked.taken == 4
    assert sum(map(len, came)) <= 1_000_000


@given(
    user=st.text(st.characters(exclude_characters=":", exclude_categories=["Cs"]), max_size=10),
    password=st.text(st.characters(exclude_categories=["Cs"]), max_size=60),
)
def test_a_password_comes_out_as_it_was_typed(user: str, password: str) -> None:
    """Whoever the user says to be, and whatever stands in the password: colons, spaces, other alphabets (RFC 7617)."""
    value = base64.b64encode(f"{user}:{password}".encode()).decode()
    for scheme in ("Basic", "basic"):
        assert basic_password(Asked([], authorization=f"{scheme} {value}").request) == password


@given(value=st.text(st.characters(max_codepoint=255), max_size=100))
def test_whatever_else_stands_there_is_no_password(value: str) -> None:
    """And no failure either."""
    found = basic_password(Asked([], authorization=f"Basic {value}").request)
    assert isinstance(found, str)
    assert basic_password(Asked([], authorization=f"Digest {value}").request) == ""


@given(secret=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=MAX_SECRET))
def test_a_secret_comes_out_as_it_was_sent(secret: str) -> None:
    """Up to the longest that could be ours."""
    assert bearer(Asked([], authorization=f"Bearer {secret}").request) == secret
    with pytest.raises(AccessError):
        bearer(Asked([], authorization="Bearer " + secret.ljust(MAX_SECRET + 1, "x")).request)


@given(one=st.binary(max_size=40), other=st.binary(max_size=40))
def test_different_secrets_have_different_digests(one: bytes, other: bytes) -> None:
    """And whatever a header can hold has one."""
    assert (digest_of(one.decode("latin-1")) == digest_of(other.decode("latin-1"))) == (one == other)


CALLERS = {
    "PUT /v1/admin/blobs": "operator",
    "POST /v1/admin/targets": "operator",
    "POST /v1/admin/root": "operator",
    "POST /v1/enrol": "",
    "POST /v1/reports": "device",
    "POST /v1/evidence/statistics": "device",
    "POST /v2/models/teacher/infer": "device",
}


@pytest.mark.parametrize("exchange", list(CALLERS))
@pytest.mark.parametrize("chunks", [0, 3])
def test_attack_who_hangs_up_within_a_body_leaves_nothing_not_even_a_trace(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, exchange: str, chunks: int
) -> None:
    """Networks break: it is no failure of the hub, nothing of it is kept, and the log does not grow with each."""
    with world(tmp_path / "hub", teacher=teacher_model()) as there:
        there.give_root()
        device = there.enrol("d0")
        secret = {"operator": there.operator, "device": device.credential}.get(CALLERS[exchange], "")
        before = there.admin("GET", "evidence").json, there.admin("GET", "fleet").json
        sent = hung_up(there, exchange, secret, chunks)
        assert [one["status"] for one in sent if one["type"] == "http.response.start"] == [400]
        assert (there.admin("GET", "evidence").json, there.admin("GET", "fleet").json) == before
        assert list(there.hub.home.incoming.iterdir()) == []
    assert "unexpected failure" not in caplog.text


def hung_up(there: World, exchange: str, secret: str, chunks: int) -> list[Any]:
    """A caller who sends some chunks and is gone; what the hub would have answered."""
    method, _, path = exchange.partition(" ")
    headers = [(b"authorization", f"Bearer {secret}".encode()), (b"x-edgestill-id", b"m1")]
    scope = {"type": "http", "method": method, "path": path, "query_string": b"", "headers": headers}
    told = [{"type": "http.request", "body": b"x" * 1000, "more_body": True}] * chunks
    left: list[Any] = [*told, {"type": "http.disconnect"}]
    sent: list[Any] = []

    async def receive() -> Any:
        return left.pop(0)

    async def send(message: Any) -> None:
        sent.append(message)

    assert there.transport._host is not None
    call = create_app(there.hub)(scope, receive, send)
    asyncio.run_coroutine_threadsafe(call, there.transport._host.loop).result(timeout=10)
    return sent


def test_the_same_archive_from_several_at_once_is_kept_once(tmp_path: Path) -> None:
    """Uploads share no file while they come: each is whole, and all of them are one blob in the end."""
    archive = esb()
    with world(tmp_path / "hub") as there, ThreadPoolExecutor(6) as pool:
        replies = list(pool.map(lambda _: there.admin("PUT", "blobs", archive), range(6)))
        assert {(one.status, one.json["digest"]) for one in replies} == {(201, str(Digest.of(archive)))}
        assert list(there.hub.home.incoming.iterdir()) == []
        kept = [one for one in there.hub.home.blobs.rglob("*") if one.is_file()]
        assert [one.read_bytes() for one in kept] == [archive]


def test_a_damaged_archive_among_good_ones_harms_none(tmp_path: Path) -> None:
    """At the same time: each upload is judged by its own bytes."""
    good, bad = esb("1.0.0"), esb("1.1.0").replace(b"card.md of watch", b"card.md of witch")
    with world(tmp_path / "hub") as there, ThreadPoolExecutor(4) as pool:
        replies = list(pool.map(lambda data: there.admin("PUT", "blobs", data), [good, bad] * 4))
        assert [one.status for one in replies] == [201, 422] * 4
        assert list(there.hub.home.incoming.iterdir()) == []
