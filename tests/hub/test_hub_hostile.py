"""What arrives at a hub that faces the world: broken requests, hostile texts, and caches and proxies in between."""

from __future__ import annotations

import gzip
import json
import os
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import Device, World, esb, teacher_model, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import event

from edgestill.core.digest import Digest
from edgestill.core.jsonio import plain
from edgestill.core.wire import MAX_MESSAGE_BYTES, MAX_REPORTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

R1 = "watch/1.0.0"
HOSTILE = "<script>alert(1)</script>\"'&<img src=x onerror=y>"
JSON_IN = {
    "POST /v1/enrol": "nobody",
    "POST /v1/reports": "device",
    "POST /v1/admin/join-tokens": "operator",
    "POST /v1/admin/rollouts": "operator",
    "POST /v1/admin/root": "operator",
    "POST /v1/admin/targets": "operator",
    "POST /v2/models/teacher/infer": "device",
}


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub with one release and a teacher."""
    with world(tmp_path_factory.mktemp("hub") / "hub", teacher=teacher_model()) as made:
        made.give_root()
        made.publish("1.0.0")
        yield made


@pytest.fixture(scope="module")
def device(there: World) -> Device:
    """A device of the fleet."""
    return there.enrol("d0")


def send(there: World, device: Device, exchange: str, body: bytes, **headers: str) -> Any:
    """As whoever may call it."""
    method, _, path = exchange.partition(" ")
    who = {"nobody": {}, "device": device.credential, "operator": there.operator}[JSON_IN[exchange]]
    if who:
        headers["authorization"] = f"Bearer {who}"
    return there.call(method, path, body, **headers)


def report(**changes: Any) -> dict[str, Any]:
    """A report as a device would send it."""
    usual = {"id": "r1", "at": 1.0, "bundle": str(Digest.of(b"x")), "release": R1, "state": "staged"}
    return usual | changes


@pytest.mark.parametrize("exchange", list(JSON_IN))
@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\x00",
        b"null",
        b"[]]",
        b'{"a":1,"a":2}',
        b'{"a":NaN}',
        b"[" * 5_000,
        b'{"a":' * 40 + b"1" + b"}" * 40,
        b'"' + b"\\" * 9_999,
        b'{"uses":' + b"9" * 5_000 + b"}",
        b'{"join_token":"\\ud800"}',
        b"\xff\xfe{\x00}\x00",
        b"{'a': 1}",
        b"\xef\xbb\xbf{}",
    ],
    ids=range(14),
)
def test_attack_a_body_that_is_no_message_is_refused(
    there: World, device: Device, exchange: str, body: bytes
) -> None:
    """With a status of the caller's, a reason in JSON, and nothing of the hub's inside."""
    reply = send(there, device, exchange, body)
    assert 400 <= reply.status < 500, reply
    assert "Traceback" not in reply.body.decode()
    assert str(there.folder) not in reply.body.decode()
    told = reply.json
    assert told.get("code") or told["error"].startswith("[")


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(field=st.sampled_from(["id", "at", "bundle", "release", "state", "reason", "health"]), value=values)
def test_a_report_with_anything_in_a_field_is_taken_or_refused(
    there: World, device: Device, field: str, value: Any
) -> None:
    """Never a failure of the hub, and never half of it."""
    body = json.dumps([report(**{field: value})]).encode("utf-8", "surrogatepass")
    reply = device.call("POST", "/v1/reports", body)
    assert reply.status in {200, 400}
    if reply.status == 200:
        assert reply.json["accepted"] + reply.json["duplicates"] == 1
    assert there.admin("GET", "fleet").status == 200


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    header=st.sampled_from(
        [
            "authorization",
            "range",
            "if-none-match",
            "content-encoding",
            "x-edgestill-id",
            "inference-header-content-length",
        ]
    ),
    text=st.text(st.characters(min_codepoint=33, max_codepoint=255), max_size=60),
    scheme=st.sampled_from(["", "Basic ", "Bearer ", "bytes=", "W/"]),
)
def test_attack_no_header_makes_the_hub_fail(
    there: World, device: Device, header: str, text: str, scheme: str
) -> None:
    """Any bytes a header may hold, on a page, a poll, a download and a question."""
    given_ = {"authorization": f"Bearer {device.credential}", header.replace("-", "_"): scheme + text}
    for method, path in (
        ("GET", "/"),
        ("GET", "/v1/poll"),
        ("GET", "/metadata/1.root.json"),
        ("POST", "/v1/evidence/statistics"),
        ("POST", "/v2/models/teacher/infer"),
    ):
        assert there.call(method, path, b"", **given_).status < 500


def test_attack_a_password_that_is_no_ascii_is_only_wrong(there: World) -> None:
    """The page asks again."""
    for value in ("Basic \xe9\xe9", "Basic !!!!", "Basic " + "A" * 700, "Basic /w==", "Basic"):
        reply = there.call("GET", "/", b"", authorization=value)
        assert reply.status == 401, value
        assert reply.headers["www-authenticate"].startswith("Basic")


def test_a_batch_may_hold_so_many_reports_and_no_more(there: World, device: Device) -> None:
    """The bound is the wire's; above it the whole batch is refused, and none of it kept."""
    batch = [report(id=f"many-{number}") for number in range(MAX_REPORTS + 1)]
    assert device.call("POST", "/v1/reports", json.dumps(batch).encode()).status == 400
    reply = device.call("POST", "/v1/reports", json.dumps(batch[1:]).encode())
    assert reply.json == {"accepted": MAX_REPORTS, "duplicates": 0}


def test_a_batch_with_one_bad_report_is_refused_whole(there: World, device: Device) -> None:
    """So a device that repeats it does not count the good ones twice."""
    batch = [report(id="good"), report(id="bad", state="exploded")]
    assert device.call("POST", "/v1/reports", json.dumps(batch).encode()).status == 400
    assert device.call("POST", "/v1/reports", json.dumps(batch[:1]).encode()).json["accepted"] == 1


def test_a_batch_that_names_an_id_twice_counts_it_once(there: World, device: Device) -> None:
    """The first of them."""
    batch = [report(id="twin"), report(id="twin", state="fell-back", reason="later")]
    reply = device.call("POST", "/v1/reports", json.dumps(batch).encode())
    assert reply.json == {"accepted": 1, "duplicates": 1}


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_attack_reports_that_unpack_to_more_than_the_bound_are_refused(
    there: World, device: Device, encoding: str
) -> None:
    """A kilobyte of zeros that are a megabyte and one byte."""
    import zlib

    pack = gzip.compress if encoding == "gzip" else zlib.compress
    body = pack(b" " * (MAX_MESSAGE_BYTES + 1))
    reply = device.call("POST", "/v1/reports", body, content_encoding=encoding)
    assert reply.status == 413
    exact = pack(b"[]".ljust(MAX_MESSAGE_BYTES))
    assert device.call("POST", "/v1/reports", exact, content_encoding=encoding).status == 200


@pytest.mark.parametrize("exchange", [one for one in JSON_IN if "reports" not in one and "infer" not in one])
def test_compression_is_understood_only_where_it_is_told(there: World, device: Device, exchange: str) -> None:
    """Elsewhere a compressed body is refused, not misread."""
    reply = send(there, device, exchange, gzip.compress(b"{}"), content_encoding="gzip")
    assert reply.status == 400
    assert "content-encoding" in reply.body.decode()


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "+5", "9" * 30, "\xb2", "5, 5"])
def test_attack_a_length_that_is_no_number_is_refused(there: World, device: Device, length: str) -> None:
    """Before anything is read."""
    reply = device.call("POST", "/v1/reports", b"[]", content_length=length)
    assert reply.status in {400, 413}


@pytest.mark.parametrize(
    "ranges",
    [
        "bytes=" + ",".join(f"{at}-{at}" for at in range(0, 4000, 2)),
        "bytes=" + "0-," * 3000 + "0-",
        "bytes=0-" + "9" * 4000,
        "bytes=5-2",
        "bytes=-",
        "bytes=abc",
        "lines=1-2",
        "bytes=99999999-",
    ],
    ids=range(8),
)
def test_attack_ranges_cost_no_more_than_the_file(there: World, ranges: str) -> None:
    """Thousands of ranges, overlapping or nonsense: at most one copy of the file comes back."""
    ((path, info),) = there.hub.artefacts.publication.listed.items()
    folder, _, name = path.rpartition("/")
    reply = there.call("GET", f"/targets/{folder}/{info.digest.hex}.{name}", b"", range=ranges)
    assert reply.status in {200, 206, 400, 416}
    assert len(reply.body) <= info.size


def test_a_page_is_text_even_where_the_database_was_written_by_somebody_else(
    there: World, device: Device
) -> None:
    """Names pass a pattern on their way in; the page does not rely on it, and escapes them all the same."""
    import sqlite3

    there.enrol("victim")
    connection = sqlite3.connect(there.folder / "hub.db")
    columns = ("id", "hardware_class", "running", "target", "state", "reason", "state_release")
    try:
        with connection:
            for column in columns:
                connection.execute(
                    f"UPDATE devices SET {column} = ? WHERE id IN ('victim', ?)", (HOSTILE, HOSTILE)
                )
    finally:
        connection.close()
    page = there.call("GET", "/", b"", authorization=f"Bearer {there.operator}")
    assert page.status == 200
    seen = Page(page.body.decode())
    assert HOSTILE in seen.texts
    assert not {"script", "img"} & set(seen.tags)
    with sqlite3.connect(there.folder / "hub.db") as connection:
        connection.execute("DELETE FROM devices WHERE id = ?", (HOSTILE,))
    connection.close()


class Page(HTMLParser):
    """What a browser would see."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collects tags; none has a handler."""
        self.tags.append(tag)
        assert not [name for name, _ in attrs if name.startswith("on")]

    def handle_data(self, data: str) -> None:
        """Collects texts."""
        self.texts.append(data)


@pytest.mark.parametrize("text", [HOSTILE, "x" * 500, "日本語", "a\x00b", "\u202egnp.exe", "\n\r\t"])
def test_reasons_come_back_as_they_were_told(there: World, device: Device, text: str) -> None:
    """Whatever letters they hold: in the operator's JSON unchanged but for controls, on the page as text."""
    id_ = Digest.of(text.encode()).hex[:30]
    at = there.clock.now() + len(text) / 1000
    body = json.dumps([report(id=id_, state="fell-back", reason=text, at=at)]).encode()
    assert device.call("POST", "/v1/reports", body).json["accepted"] == 1
    there.clock.advance(1)
    fleet = {one["device"]: one for one in there.admin("GET", "fleet").json["devices"]}
    assert fleet["d0"]["reason"] == plain(text)
    page = there.call("GET", "/", b"", authorization=f"Bearer {there.operator}").body.decode()
    assert "<script>" not in page


def test_a_proxy_that_weakens_the_tag_does_not_make_devices_busy(there: World, device: Device) -> None:
    """One that compresses writes `W/` before it; RFC 9110 compares without, and a list may be given."""
    tag = device.call("GET", "/v1/poll").headers["etag"]
    for said in (tag, f"W/{tag}", f'"other", {tag}', f'W/"other" , W/{tag}'):
        reply = device.call("GET", "/v1/poll", b"", if_none_match=said)
        assert (reply.status, reply.body) == (304, b"")
        assert reply.headers["etag"] == tag
    for said in ("", '"other"', tag.strip('"'), tag[:-2] + '"', "W/"):
        assert device.call("GET", "/v1/poll", b"", if_none_match=said).status == 200


def test_a_tag_belongs_to_one_device(there: World) -> None:
    """Another device's assignment is never "not modified"."""
    one, other = there.enrol("tag-1"), there.enrol("tag-2")
    number = there.roll_out(R1)
    tags = {one.call("GET", "/v1/poll").headers["etag"], other.call("GET", "/v1/poll").headers["etag"]}
    assert len(tags) == 2
    for tag in tags:
        statuses = [each.call("GET", "/v1/poll", b"", if_none_match=tag).status for each in (one, other)]
        assert sorted(statuses) == [200, 304]
    there.admin("POST", f"rollouts/{number}/rollback")


def test_nothing_of_a_device_is_kept_by_caches(there: World, device: Device) -> None:
    """Polls, answers and refusals are for one caller at one time."""
    for reply in (
        device.call("GET", "/v1/poll"),
        device.call("POST", "/v1/reports", b"[]"),
        device.call("POST", "/v1/reports", b"{"),
        there.call("GET", "/v1/poll"),
        there.admin("GET", "fleet"),
        there.admin("GET", "evidence/samples"),
        there.admin("GET", "metadata/targets"),
    ):
        assert reply.headers["cache-control"] == "no-store"


def test_a_full_disk_costs_the_upload_and_leaves_nothing(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills while an archive comes in: it is refused, its part is gone, and the next one is taken."""

    def full(_handle: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    reply = there.admin("PUT", "blobs", esb("3.0.0"))
    assert (reply.status, reply.json["what"]) == (500, "cannot keep a blob")
    assert str(there.folder) not in reply.body.decode()
    assert list(there.hub.home.incoming.iterdir()) == []
    monkeypatch.undo()
    assert there.admin("PUT", "blobs", esb("3.0.0")).status == 201


def test_a_full_database_acknowledges_nothing_it_did_not_keep(tmp_path: Path) -> None:
    """SQLite itself says that it is full: the batch is refused whole, nothing is lost, and later it counts once."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        there.publish("1.0.0")
        device = there.enrol("d0")
        limit = {"pages": 1}

        def fill(connection: Any) -> None:
            connection.exec_driver_sql(f"PRAGMA max_page_count = {limit['pages']}")

        engine = there.hub.database._engine.sync_engine
        event.listen(engine, "begin", fill)
        batch = json.dumps(
            [report(id=f"r{number}", reason="x" * 500, state="fell-back") for number in range(100)]
        ).encode()
        assert device.call("POST", "/v1/reports", batch).status == 500
        assert device.poll() is None
        limit["pages"] = 1_000_000
        assert device.call("POST", "/v1/reports", batch).json == {"accepted": 100, "duplicates": 0}
        assert device.call("POST", "/v1/reports", batch).json == {"accepted": 0, "duplicates": 100}


def test_enrolling_again_is_the_same_enrolment_or_none(there: World) -> None:
    """Under another class or other labels it would leave the device with what was chosen for the first."""
    token = there.token()
    first = there.enrol("again", token=token, site="north")
    usual = {"join_token": token, "device": "again", "hardware_class": "x86_64-vnni-onnxruntime"}
    north, south = {"site": "north"}, {"site": "south"}
    for message in (
        usual | {"labels": north, "hardware_class": "aarch64-neon-onnxruntime"},
        usual | {"labels": south},
        usual,
    ):
        reply = there.call("POST", "/v1/enrol", json.dumps(message).encode())
        assert (reply.status, reply.json["what"]) == (409, "the name is taken")
    second = there.enrol("again", token=token, site="north")
    assert second.credential != first.credential
    assert second.call("GET", "/v1/poll").status == 200
    assert first.call("GET", "/v1/poll").status == 401


def test_many_devices_race_for_the_last_use_of_a_token(there: World) -> None:
    """Eight at the same time with a token for three: exactly three come in."""
    token = there.token(uses=3)

    def enrol(number: int) -> int:
        message = {
            "join_token": token,
            "device": f"race-{number}",
            "hardware_class": "x86_64-vnni-onnxruntime",
        }
        return there.call("POST", "/v1/enrol", json.dumps(message).encode()).status

    with ThreadPoolExecutor(8) as pool:
        assert sorted(pool.map(enrol, range(8))) == [201] * 3 + [401] * 5


def test_many_claims_of_one_name_at_once_make_one_device(there: World) -> None:
    """Eight at the same time under one name, each with a token of its own: one wins, the others' tokens are not spent."""
    tokens = [there.token() for _ in range(8)]

    def enrol(token: str, name: str = "contested") -> int:
        message = {"join_token": token, "device": name, "hardware_class": "x86_64-vnni-onnxruntime"}
        return there.call("POST", "/v1/enrol", json.dumps(message).encode()).status

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(enrol, tokens))
    assert sorted(statuses) == [201] + [409] * 7
    losers = [token for token, status in zip(tokens, statuses, strict=True) if status == 409]
    assert [enrol(token, f"loser-{number}") for number, token in enumerate(losers)] == [201] * 7
