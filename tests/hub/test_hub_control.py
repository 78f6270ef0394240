"""Polls that wait, bodies that are bounded, and what a caller is told when something goes wrong."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import re
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pytest
from hub_worlds import CLASS, World, world
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core import errors
from edgestill.core.protocols import Request
from edgestill.core.wire import MAX_MESSAGE_BYTES, Poll
from edgestill.hub import assignments, problems, registry
from edgestill.hub.settings import Settings
from edgestill.link.control import ControlClient
from edgestill.trust.keys import SigningKey

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from hub_worlds import Reply

R1 = "watch/1.0.0"
_KEY = SigningKey.generate()


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a release."""
    with world(tmp_path / "hub", settings=Settings(longest_poll=20)) as made:
        made.give_root()
        made.publish("1.0.0")
        yield made


def test_nothing_assigned_is_an_answer_too(there: World) -> None:
    """With its own tag, so that it can be "not modified"."""
    device = there.enrol("d0")
    reply = device.call("GET", "/v1/poll")
    assert Poll.from_bytes(reply.body) == Poll(assignment=None, interval=30.0, authorities=1)
    again = device.call("GET", "/v1/poll", if_none_match=reply.headers["etag"])
    assert (again.status, again.body, again.headers["etag"]) == (304, b"", reply.headers["etag"])


def test_the_tag_changes_with_the_assignment(there: World) -> None:
    """An old tag gets the new assignment at once."""
    device = there.enrol("d0")
    old = device.call("GET", "/v1/poll").headers["etag"]
    there.roll_out(R1)
    reply = device.call("GET", "/v1/poll?wait=20", if_none_match=old)
    assert reply.status == 200
    assert reply.json["assignment"]["signed"]["target"] == f"{R1}/{CLASS}.esb"


def test_an_assignment_is_renewed_before_it_expires(there: World) -> None:
    """The tag stays for half of the lifetime; then the same counter comes with a later end."""
    device = there.enrol("d0")
    there.roll_out(R1)
    first = device.call("GET", "/v1/poll")
    there.clock.advance(Settings().assignment_lifetime / 2)
    second = device.call("GET", "/v1/poll", if_none_match=first.headers["etag"])
    told = [one.json["assignment"]["signed"] for one in (first, second)]
    assert told[0]["counter"] == told[1]["counter"]
    assert told[1]["expires"] - told[0]["expires"] == Settings().assignment_lifetime / 2


@given(st.floats(0, 4e9), st.floats(60, 1e7))
def test_an_assignment_holds_for_half_of_its_lifetime_at_least(now: float, lifetime: float) -> None:
    """And for no longer than all of it (up to the second it is rounded to)."""
    device = registry.Device(id="d0", counter=1, target=f"{R1}/any.esb", last_seen=None)
    told = assignments.envelope(device, epoch=0, key=_KEY, now=now, lifetime=lifetime)
    assert told is not None
    signed = told["signed"]
    assert isinstance(signed, dict)
    expires = signed["expires"]
    assert isinstance(expires, int)
    assert lifetime / 2 - 1 <= expires - now <= lifetime + 1


def test_a_poll_that_waits_is_woken(there: World) -> None:
    """The answer comes with the assignment, long before the time it would have waited for."""
    device = there.enrol("d0")
    tag = device.call("GET", "/v1/poll").headers["etag"]
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(device.call, "GET", "/v1/poll?wait=20", if_none_match=tag)
        _until(lambda: "d0" in there.hub.bell._waiting)
        there.roll_out(R1)
        assert waiting.result(timeout=10).json["assignment"] is not None
    assert there.hub.bell._waiting == {}


def test_a_poll_waits_no_longer_than_the_hub_allows(tmp_path: Path) -> None:
    """A device that asks for a year gets the operator's bound."""
    with world(tmp_path / "hub", settings=Settings(longest_poll=0.05)) as there:
        there.give_root()
        device = there.enrol("d0")
        tag = device.call("GET", "/v1/poll").headers["etag"]
        assert device.call("GET", "/v1/poll?wait=31536000", if_none_match=tag).status == 304


def test_draining_answers_every_poll_that_waits(there: World) -> None:
    """So that a hub can end without making devices wait for a time-out; it also stops being ready."""
    devices = there.fleet(3)
    tags = [one.call("GET", "/v1/poll").headers["etag"] for one in devices]
    assert there.call("GET", "/health/ready").status == 200
    with ThreadPoolExecutor(3) as pool:
        waiting = [
            pool.submit(one.call, "GET", "/v1/poll?wait=20", if_none_match=tag)
            for one, tag in zip(devices, tags, strict=True)
        ]
        _until(lambda: len(there.hub.bell._waiting) == 3)
        assert there.transport._host is not None
        there.transport._host.loop.call_soon_threadsafe(there.hub.drain)
        assert [one.result(timeout=10).status for one in waiting] == [304, 304, 304]
    assert there.call("GET", "/health/ready").status == 503
    assert devices[0].call("GET", "/v1/poll?wait=20", if_none_match=tags[0]).status == 304


def test_a_caller_who_hangs_up_is_not_waited_for(there: World) -> None:
    """A device that lost its network leaves nothing behind in the hub."""
    device = there.enrol("d0")
    tag = device.call("GET", "/v1/poll").headers["etag"]
    headers = {"authorization": f"Bearer {device.credential}", "if-none-match": tag}
    with pytest.raises(errors.DeadlineError):
        there.transport.send(Request("GET", "http://hub.test/v1/poll?wait=20", headers), timeout=0.3)
    _until(lambda: there.hub.bell._waiting == {})


@pytest.mark.parametrize("wait", ["x", "-1", "nan", "inf", "", "1e999"])
def test_a_wait_that_is_no_time_is_refused(there: World, wait: str) -> None:
    """With 400."""
    assert there.enrol("d0").call("GET", f"/v1/poll?wait={wait}").status == 400


@given(st.floats(0, 1, exclude_max=True), st.floats(0.01, 40_000))
def test_the_interval_is_spread_by_a_tenth(chance: float, interval: float) -> None:
    """So that a fleet that started together does not call together for ever."""
    assert 0.9 * interval - 1e-9 <= assignments.spread(interval, chance) <= 1.1 * interval + 1e-9


def test_being_seen_is_recorded(there: World) -> None:
    """The fleet shows when each device called last; not every call is a write."""
    device = there.enrol("d0")
    start = there.clock.now()
    device.poll()
    there.clock.advance(5)
    device.poll()
    assert there.admin("GET", "fleet").json["devices"][0]["last_seen"] == start
    there.clock.advance(5)
    device.poll()
    assert there.admin("GET", "fleet").json["devices"][0]["last_seen"] == start + 10


def test_the_devices_own_client_understands_the_hub(there: World) -> None:
    """`link.ControlClient`: poll, not modified, report twice, statistics, an artefact and one that is not there."""
    device = there.enrol("d0")
    client = ControlClient(there.transport, "http://hub.test", credential=device.credential)
    there.roll_out(R1)
    poll, tag = client.poll(etag=None, wait=0)
    assert poll is not None
    assert poll.assignment is not None
    assert client.poll(etag=tag, wait=0.01) == (None, tag)
    report = device.told(R1, "confirmed")
    client.report([report])
    client.report([report])
    assert there.rollout(1)["state"] == "done"
    assert client.artefact("metadata/1.root.json", 100_000).startswith(b"{")
    with pytest.raises(errors.NotFoundError):
        client.artefact("metadata/9.root.json", 100_000)
    stranger = ControlClient(there.transport, "http://hub.test", credential="nobody")
    with pytest.raises(errors.AccessError):
        stranger.poll(etag=None, wait=0)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{}",
        b"[1]",
        b"[{}]",
        b"\xff",
        b"[" * 100,
        b'[{"id":"a","at":NaN,"bundle":"","release":"","state":"serving"}]',
        json.dumps([{"id": "a"}] * 201).encode(),
    ],
)
def test_reports_that_are_none_are_refused(there: World, body: bytes) -> None:
    """As a whole: 400, and nothing of the batch is kept."""
    reply = there.enrol("d0").call("POST", "/v1/reports", body)
    assert (reply.status, reply.json["code"]) == (400, "message-invalid")


def test_attack_a_body_over_its_bound_is_refused(there: World) -> None:
    """Said in the header it is refused unread; found while reading it is refused then: 413 either way."""
    device = there.enrol("d0")
    long = b"x" * (MAX_MESSAGE_BYTES + 1)
    said = str(len(long))
    assert device.call("POST", "/v1/reports", long).status == 413
    assert device.call("POST", "/v1/reports", long, content_length=said).status == 413
    assert there.call("POST", "/v1/enrol", long).status == 413
    assert there.call("POST", "/v1/enrol", long, content_length=said).status == 413
    assert device.call("POST", "/v1/reports", b"[]", content_length="x").status == 400
    assert there.admin("POST", "root", b"x" * 200_000).status == 413
    assert there.admin("POST", "rollouts", b"x" * 100_000).status == 413


def test_attack_an_upload_over_its_bound_leaves_nothing(tmp_path: Path) -> None:
    """The disk is not filled by an archive without end."""
    with world(tmp_path / "hub", settings=Settings(max_bundle=10_000)) as there:
        assert there.admin("PUT", "blobs", b"x" * 10_001).status == 413
        assert list(there.hub.home.incoming.iterdir()) == []


def test_a_problem_tells_what_where_and_what_to_do(there: World) -> None:
    """RFC 9457 members beside our own."""
    reply = there.admin("POST", "rollouts", {"release": "watch/9.9.9"})
    assert reply.headers["content-type"] == "application/problem+json"
    assert reply.json == {
        "type": "urn:edgestill:error:not-found",
        "title": "no such release is listed",
        "status": 404,
        "code": "not-found",
        "what": "no such release is listed",
        "where": "releases",
        "expected": "a release in targets.json",
        "got": "watch/9.9.9",
        "fix": "publish it first",
    }


def test_no_such_path_or_method_is_a_problem_too(there: World) -> None:
    """404 and 405 in the same form."""
    assert there.call("GET", "/nowhere").json["code"] == "not-found"
    reply = there.call("DELETE", "/v1/poll")
    assert (reply.status, reply.json["title"]) == (405, "Method Not Allowed")


def test_a_bug_of_ours_shows_nothing_of_the_inside(
    there: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """500 with one sentence; the trace is in the log, and the hub lives on."""

    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(registry, "fleet", broken)
    reply = there.admin("GET", "fleet")
    assert reply.json == {
        "type": "urn:edgestill:error:internal",
        "title": "the hub failed",
        "status": 500,
        "code": "internal",
        "what": "the hub failed",
    }
    assert "secret detail" in caplog.text
    monkeypatch.undo()
    assert there.admin("GET", "fleet").status == 200


@pytest.mark.parametrize("kind", list(errors.codes().values()), ids=lambda kind: kind.code)
def test_every_error_has_a_status(kind: type[errors.EdgestillError]) -> None:
    """400 and more; what is our own fault keeps its inside to itself."""
    reply = problems.problem(kind("it failed", where="/inside", got="value"), "/v1/poll")
    told = json.loads(bytes(reply.body))
    assert 400 <= reply.status_code < 600
    assert told["code"] == kind.code
    assert ("where" in told) == (reply.status_code != 500)


def page(there: World, *, authorization: str = "") -> Reply:
    """The status page."""
    return there.call("GET", "/", authorization=authorization)


def test_the_page_is_for_the_operator(there: World) -> None:
    """A browser is asked for the token as a password; nobody else sees the fleet."""
    reply = page(there)
    assert reply.status == 401
    assert reply.headers["www-authenticate"].startswith("Basic")
    assert page(there, authorization="Basic !!!").status == 401
    assert page(there, authorization="Bearer nobody").status == 401
    basic = base64.b64encode(f"anybody:{there.operator}".encode()).decode()
    assert page(there, authorization=f"Basic {basic}").status == 200
    assert page(there, authorization=f"Bearer {there.operator}").status == 200


def test_the_page_shows_fleet_and_rollouts(there: World) -> None:
    """Names, states and figures."""
    device = there.enrol("camera-7")
    there.roll_out(R1)
    device.tells(R1, "serving")
    device.audited(R1, 41, 40)
    text = page(there, authorization=f"Bearer {there.operator}").body.decode()
    for word in ("camera-7", R1, "serving", "running", "41"):
        assert f"<td>{word}</td>" in text, word


def test_attack_what_devices_say_is_text_and_never_markup(there: World) -> None:
    """A reason with a script in it is shown as it was written, and the policy would not let it run."""
    evil = "<script>alert(1)</script>\" onload='x"
    device = there.enrol("d0")
    device.tells(R1, "fell-back", reason=evil)
    reply = page(there, authorization=f"Bearer {there.operator}")
    text = reply.body.decode()
    assert evil not in text
    assert html.escape(evil) in text
    policy = reply.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "unsafe" not in policy


def test_the_policy_allows_exactly_the_pages_own_style(there: World) -> None:
    """The digest in the policy is that of the style in the page."""
    reply = page(there, authorization=f"Bearer {there.operator}")
    style = re.search(r"<style>(.*?)</style>", reply.body.decode(), re.DOTALL)
    assert style is not None
    digest = base64.b64encode(hashlib.sha256(style[1].encode()).digest()).decode()
    assert f"'sha256-{digest}'" in reply.headers["content-security-policy"]


def test_health_is_for_anybody(there: World) -> None:
    """A balancer has no token."""
    assert there.call("GET", "/health/live").body == b"live\n"
    assert there.call("GET", "/health/ready").body == b"ready\n"


def test_many_devices_at_once(there: World) -> None:
    """Twenty devices report from eight threads: every report counts, and the rollout comes to its end."""
    devices = there.fleet(20)
    number = there.roll_out(R1)
    with ThreadPoolExecutor(8) as pool:
        told = list(pool.map(lambda one: one.tells(R1, "confirmed"), devices))
    assert told == [{"accepted": 1, "duplicates": 0}] * 20
    assert there.rollout(number)["state"] == "done"


def _until(is_true: Callable[[], bool]) -> None:
    """Waits for something that another thread is about to do."""
    tick = threading.Event()
    for _ in range(2000):
        if is_true():
            return
        tick.wait(0.005)
    pytest.fail("it never happened")
