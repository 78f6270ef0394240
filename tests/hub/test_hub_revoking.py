"""Taking a credential back: from that moment the device is heard nowhere, and holds nobody else up."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hub_worlds import CLASS, URL, Device, World, answer, question, sums, teacher_model, world

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import AccessError, NotFoundError
from edgestill.core.wire import Enrol, reports_to_bytes
from edgestill.hub import registry
from edgestill.hub.app import create_app
from edgestill.learn.statistics import Statistics
from edgestill.link.control import ControlClient
from edgestill.link.operator import OperatorClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

R1, R2 = "watch/1.0.0", "watch/1.1.0"
BACKBONE = Digest.of(b"backbone")


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with two releases and a teacher."""
    with world(tmp_path / "hub", teacher=teacher_model()) as made:
        made.give_root()
        made.publish("1.0.0", "1.1.0")
        yield made


def revoke(there: World, name: str) -> Any:
    """The operator takes a credential back."""
    reply = there.admin("POST", f"devices/{name}/revoke")
    assert reply.status == 200, reply
    return reply.json


def shown(there: World, name: str) -> Any:
    """A device as the fleet's list shows it."""
    (found,) = [one for one in there.admin("GET", "fleet").json["devices"] if one["device"] == name]
    return found


def asked(**rest: Any) -> tuple[bytes, dict[str, str]]:
    """A question that the hub may keep."""
    return question(np.ones((1, 4), np.float32), parameters={"retain": True}, **rest)


def exchanges(device: Device) -> list[tuple[str, str, bytes, dict[str, str]]]:
    """Everything a device may ask of its hub."""
    body, headers = asked(id="q")
    statistics = {"x_edgestill_id": "m-late"}
    return [
        ("GET", "/v1/poll", b"", {}),
        ("GET", "/v1/poll?wait=20", b"", {"if_none_match": '"old"'}),
        ("POST", "/v1/reports", reports_to_bytes([device.told(R1, "confirmed")]), {}),
        ("POST", "/v1/evidence/statistics", sums().to_bytes(), statistics),
        ("POST", "/v2/models/teacher/infer", body, headers),
    ]


def test_attack_a_revoked_credential_opens_nothing(there: World) -> None:
    """Poll, reports, statistics and teacher: 401, with what happened and what to do; and nothing is taken in."""
    thief, honest = there.fleet(2)
    for method, path, body, headers in exchanges(thief):
        assert thief.call(method, path, body, **headers).status == 200
    revoke(there, thief.id)
    before = (there.admin("GET", "fleet").json, there.admin("GET", "evidence").json)
    for method, path, body, headers in exchanges(thief):
        reply = thief.call(method, path, body, **headers)
        assert reply.status == 401, path
        assert reply.headers["www-authenticate"] == "Bearer"
        if path.startswith("/v1"):
            assert (reply.json["code"], reply.json["what"]) == (
                "access-denied",
                "the credential was revoked",
            )
            assert reply.json["fix"] == "ask the operator; it may enrol again under another name"
    assert (there.admin("GET", "fleet").json, there.admin("GET", "evidence").json) == before
    for method, path, body, headers in exchanges(honest):
        assert honest.call(method, path, body, **headers).status == 200


def test_revoking_twice_changes_nothing(there: World) -> None:
    """The first time stands, whoever asks again and when."""
    there.fleet(2)
    first = revoke(there, "d0")
    assert first == {"device": "d0", "revoked_at": there.clock.now()}
    there.clock.advance(1000)
    assert revoke(there, "d0") == first
    assert shown(there, "d0")["revoked_at"] == first["revoked_at"]
    assert shown(there, "d1")["revoked_at"] is None


@pytest.mark.parametrize("name", ["nobody", "d1", "D0", "d0%00", "d0%20", "%2e%2e", "x" * 5000])
def test_nobody_else_is_revoked(there: World, name: str) -> None:
    """Who is not in the fleet is told as such, and who is stays."""
    device = there.enrol("d0")
    reply = there.admin("POST", f"devices/{name}/revoke")
    assert (reply.status, reply.json["code"]) == (404, "not-found")
    assert device.poll() is None
    assert shown(there, "d0")["revoked_at"] is None


def test_the_fleet_and_the_page_show_it(there: World) -> None:
    """With the time; and the device stays on the list."""
    there.clock.advance(1)
    there.enrol("d0")
    revoke(there, "d0")
    page = there.call("GET", "/", authorization=f"Bearer {there.operator}").body.decode()
    assert "<th>revoked at</th>" in page
    assert page.count(" UTC</td>") == 1


def test_a_poll_that_waits_ends_with_the_credential(there: World) -> None:
    """It does not learn of the next assignment just because it asked before."""
    device = there.enrol("d0")
    tag = device.call("GET", "/v1/poll").headers["etag"]
    clock = SystemClock()
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(device.call, "GET", "/v1/poll?wait=20", if_none_match=tag)
        until = clock.monotonic() + 10
        while "d0" not in there.hub.bell._waiting:
            assert clock.monotonic() < until
            threading.Event().wait(0.005)
        revoke(there, "d0")
        assert waiting.result(timeout=10).status == 401


@pytest.mark.parametrize("index", [2, 3, 4])
def test_attack_a_call_that_began_before_brings_nothing_in_after(there: World, index: int) -> None:
    """The body drags on until the credential is gone: what it brings is not taken in."""
    device = there.enrol("d0")
    method, path, body, headers = exchanges(device)[index]
    scope = {
        "type": "http",
        "method": method,
        "path": path,
        "query_string": b"",
        "headers": [
            (b"authorization", f"Bearer {device.credential}".encode()),
            *((name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()),
        ],
    }
    sent: list[Any] = []

    async def receive() -> Any:
        async with there.hub.database.write() as connection:
            await registry.revoke(connection, device.id, there.clock.now())
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: Any) -> None:
        sent.append(message)

    assert there.transport._host is not None
    call = create_app(there.hub)(scope, receive, send)
    asyncio.run_coroutine_threadsafe(call, there.transport._host.loop).result(timeout=10)
    assert sent[0]["status"] == 401
    assert shown(there, "d0")["state"] is None
    assert there.admin("GET", "evidence").json == {
        "samples": {"total": 0, "devices": {}},
        "statistics": {},
        "refused": {},
    }
    assert count(there, "reports") + count(there, "statistics") + count(there, "samples") == 0


def count(there: World, table: str) -> int:
    """Rows of a table, past all of our code."""
    connection = sqlite3.connect(there.folder / "hub.db")
    try:
        return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])
    finally:
        connection.close()


@pytest.mark.parametrize("called", [True, False])
@pytest.mark.parametrize("same_token", [True, False])
def test_attack_a_revoked_name_is_not_claimed_again(there: World, called: bool, same_token: bool) -> None:
    """Neither by the same enrolment, as after a lost answer, nor by a new one: the name stays with what it did."""
    token = there.token(uses=5)
    device = there.enrol("d0", token=token)
    if called:
        device.poll()
    revoke(there, "d0")
    message = Enrol(
        join_token=token if same_token else there.token(), device="d0", hardware_class=CLASS, labels={}
    )
    reply = there.call("POST", "/v1/enrol", message.to_bytes())
    assert (reply.status, reply.json["what"]) == (409, "the name is taken")
    assert there.enrol("d0-again", token=token).poll() is None


def test_a_rollout_does_not_wait_for_a_revoked_device(there: World) -> None:
    """It was assigned and cannot confirm any more: the stage is complete without it, and it is shown as what it is."""
    devices = there.fleet(4)
    number = there.roll_out(R1)
    for device in devices[:3]:
        device.poll()
        device.tells(R1, "confirmed")
    assert there.rollout(number)["state"] == "running"
    revoke(there, "d3")
    status = there.rollout(number)
    assert status["state"] == "done"
    assert status["devices"]["d3"] == {"state": "revoked", "reason": "", "release": None}
    assert status["devices"]["d0"]["state"] == "confirmed"
    there.clock.advance(1e6)
    assert there.rollout(number)["state"] == "done"


def test_attack_a_device_cannot_pause_rollouts_once_it_is_revoked(there: World) -> None:
    """It fell back to break the gate: when its credential is gone and the rollout resumed, its failure counts no more."""
    devices = there.fleet(5)
    number = there.roll_out(R1, 0.2, 1)
    (first,) = [one for one in devices if one.poll() is not None]
    first.tells(R1, "fell-back", reason="because I say so")
    assert there.rollout(number)["state"] == "paused"
    revoke(there, first.id)
    assert there.admin("POST", f"rollouts/{number}/resume").status == 200
    there.confirm_all([one for one in devices if one is not first], R1)
    status = there.rollout(number)
    assert status["state"] == "done"
    assert status["devices"][first.id]["state"] == "revoked"


def test_audits_of_a_revoked_device_leave_the_gate(there: World) -> None:
    """What it claimed about agreement goes with it."""
    liar, honest = there.fleet(2)
    number = there.roll_out(R1, 1, gates={"min_agreement": 0.9, "min_audits": 10})
    for device in (liar, honest):
        device.poll()
        device.tells(R1, "confirmed")
    liar.audited(R1, 9, 9)
    revoke(there, liar.id)
    honest.audited(R1, 5, 5)
    assert (there.rollout(number)["state"], there.rollout(number)["audits"]) == ("running", 5)


def test_a_revoked_device_is_not_chosen(there: World) -> None:
    """Nor counted: half of the four that are left are two."""
    there.fleet(6)
    revoke(there, "d0")
    revoke(there, "d1")
    number = there.roll_out(R1, 0.5, 1)
    states = {name: one["state"] for name, one in there.rollout(number)["devices"].items()}
    assert set(states) == {"d2", "d3", "d4", "d5"}
    assert sorted(states.values()) == ["assigned", "assigned", "waiting", "waiting"]


def test_rolling_back_goes_past_a_revoked_device(there: World) -> None:
    """The others are sent back; there is nothing left to do for this one, now or at any later step."""
    devices = there.fleet(2)
    there.roll_out(R1)
    there.confirm_all(devices, R1)
    number = there.roll_out(R2)
    there.confirm_all(devices, R2)
    revoke(there, "d0")
    assert there.admin("POST", f"rollouts/{number}/rollback").json["state"] == "rolled-back"
    assert devices[1].poll()["target"].startswith(R1)
    assert there.roll_out(R2) > number


def test_what_a_revoked_device_had_sent_no_longer_counts(there: World) -> None:
    """Its sums leave the total and its samples the pages: who is not trusted now is not learned from."""
    thief, honest = there.fleet(2)
    for number, device in enumerate((thief, honest)):
        body, headers = asked(id="q")
        assert device.call("POST", "/v2/models/teacher/infer", body, **headers).status == 200
        message = sums(seed=number).to_bytes("float64")
        device.call("POST", "/v1/evidence/statistics", message, x_edgestill_id="m1")
    revoke(there, thief.id)
    reply = there.admin("GET", f"evidence/statistics?backbone={BACKBONE}")
    assert (Statistics.from_bytes(reply.body).a == sums(seed=1).a).all()
    page = answer(there.admin("GET", "evidence/samples"))
    assert (page.parameters["devices"], page.outputs[0].shape[0]) == ([honest.id], 1)
    told = there.admin("GET", "evidence").json
    assert told["samples"] == {"total": 1, "devices": {honest.id: {"escalation": 1}}}
    assert told["statistics"][str(BACKBONE)]["devices"] == 1
    revoke(there, honest.id)
    assert there.admin("GET", f"evidence/statistics?backbone={BACKBONE}").status == 404
    assert there.admin("GET", "evidence").json["statistics"] == {}


def test_it_outlives_a_restart(tmp_path: Path) -> None:
    """What was answered is in the database."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        device = there.enrol("d0")
        when = revoke(there, "d0")
    with world(tmp_path / "hub") as again:
        reply = Device(again, "d0", device.credential).call("GET", "/v1/poll")
        assert (reply.status, reply.json["what"]) == (401, "the credential was revoked")
        assert revoke(again, "d0") == when


def test_calls_at_once_end_in_one_state(there: World) -> None:
    """Eight operators revoke while the device reports as fast as it can: one time of it, and nothing counts after."""
    device = there.enrol("d0")

    def talk() -> int:
        heard = 0
        while True:
            report = reports_to_bytes([device.figures(R1, 1, 1)])
            reply = device.call("POST", "/v1/reports", report)
            if reply.status == 401:
                return heard
            assert reply.status == 200
            heard += 1

    with ThreadPoolExecutor(9) as pool:
        talking = pool.submit(talk)
        times = {one["revoked_at"] for one in pool.map(lambda _: revoke(there, "d0"), range(8))}
        heard = talking.result(timeout=30)
    assert len(times) == 1
    assert (shown(there, "d0")["health"] or {"audits": 0})["audits"] == heard


def test_the_clients_speak_of_it(there: World) -> None:
    """The operator's verb, and what the device's own client makes of the answer."""
    device = there.enrol("d0")
    operator = OperatorClient(there.transport, URL, token=there.operator)
    assert operator.revoke("d0") == {"device": "d0", "revoked_at": there.clock.now()}
    with pytest.raises(NotFoundError, match="no such device"):
        operator.revoke("d1")
    client = ControlClient(there.transport, URL, credential=device.credential)
    with pytest.raises(AccessError, match="the credential was revoked"):
        client.poll(etag=None, wait=0)
    with pytest.raises(AccessError, match=r"the credential was revoked.*ask the operator"):
        client.report([device.told(R1, "confirmed")])
    with pytest.raises(AccessError):
        client.statistics("m1", sums().to_bytes(), sequence=1)
