"""hawkBit's interface over the real application: what a device sees, what the fleet sees, and what is refused."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import CLASS, Device, Reply, World, esb, world

from edgestill.core import swu
from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

R1, R2 = "watch/1.0.0", "watch/2.0.0"
BASE = "/default/controller/v1"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with two releases, each with its image."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        made.publish("1.0.0", "2.0.0")
        for version in ("1.0.0", "2.0.0"):
            assert made.admin("PUT", "images", image(version)).status == 201
        yield made


def image(version: str, archive: bytes | None = None, **changes: Any) -> bytes:
    """The image of a version, its signature of no matter."""
    data = esb(version) if archive is None else archive
    given: dict[str, Any] = {"name": "watch", "version": version, "hardware": (CLASS,), "inbox": swu.INBOX}
    said = swu.Description(**(given | {"digest": Digest.of(data)} | changes))
    return swu.image_bytes(said, b"a signature", data)


@dataclass
class Controller:
    """A device that speaks hawkBit's interface.

    Attributes:
        device: the same with its credential.
        scheme: of its token.
    """

    device: Device
    scheme: str = "TargetToken"

    @property
    def base(self) -> str:
        """The path of its resource."""
        return f"{BASE}/{self.device.id}"

    def call(self, method: str, path: str = "", body: object = b"", **headers: str) -> Reply:
        """A request; what is no bytes is sent as JSON."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        sent = {"host": "hub.test:81", "authorization": f"{self.scheme} {self.device.credential}"} | headers
        return self.device.world.call(method, self.base + path, data, **sent)

    def links(self) -> dict[str, str]:
        """What there is to do, without the request for attributes: name -> path."""
        reply = self.call("GET")
        assert reply.status == 200, reply
        found = {name: link["href"] for name, link in reply.json["_links"].items() if name != "configData"}
        root = f"http://hub.test:81{self.base}"
        assert all(href.startswith(root) for href in found.values())
        return {name: href.removeprefix(root) for name, href in found.items()}

    def fetch(self) -> Any:
        """The deployment that it is told of."""
        reply = self.call("GET", self.links()["deploymentBase"])
        assert reply.status == 200, reply
        return reply.json

    def says(
        self,
        action: int,
        execution: str = "closed",
        finished: str = "success",
        *,
        of: str = "deploymentBase",
        **rest: Any,
    ) -> Reply:
        """A feedback."""
        result = {"finished": finished} | ({"progress": rest.pop("progress")} if "progress" in rest else {})
        told = {"id": action, "status": {"execution": execution, "result": result} | rest}
        return self.call("POST", f"/{of}/{action}/feedback", told)


def controller(there: World, name: str = "gate", **labels: str) -> Controller:
    """A device of the fleet."""
    return Controller(there.enrol(name, **labels))


def told(there: World) -> str:
    """All that an operator can see, but when who was seen."""
    seen = [there.admin("GET", path).json for path in ("fleet", "rollouts", "releases")]
    for one in seen[0]["devices"]:
        one.pop("last_seen")
    return json.dumps(seen)


def shown(there: World, device: Controller) -> Any:
    """How the fleet shows it."""
    return next(
        one for one in there.admin("GET", "fleet").json["devices"] if one["device"] == device.device.id
    )


def test_a_device_is_told_installs_and_says_so(there: World) -> None:
    """The whole way, as hawkBit's clients walk it; the rollout is done when the device says that it is."""
    one = controller(there)
    assert one.links() == {}
    rollout = there.roll_out(R1)
    deployment = one.fetch()
    (chunk,) = deployment["deployment"]["chunks"]
    assert (chunk["name"], chunk["version"]) == ("watch", "1.0.0")
    assert (deployment["deployment"]["download"], deployment["deployment"]["update"]) == ("forced", "forced")
    (artefact,) = chunk["artifacts"]
    data = image("1.0.0")
    assert artefact["filename"] == f"watch-1.0.0-{CLASS}.swu"
    assert artefact["size"] == len(data)
    assert artefact["hashes"] == {
        name: hashlib.new(name, data, usedforsecurity=False).hexdigest() for name in ("sha1", "md5", "sha256")
    }
    path = artefact["_links"]["download"]["href"].removeprefix(f"http://hub.test:81{one.base}")
    assert one.call("GET", path).body == data
    action = int(deployment["id"])
    assert one.says(action, "proceeding", "none", progress={"cnt": 1, "of": 1}).status == 200
    assert shown(there, one)["state"] == "staged"
    assert there.rollout(rollout)["state"] == "running"
    assert one.says(action).status == 200
    assert (shown(there, one)["state"], shown(there, one)["release"]) == ("confirmed", R1)
    assert there.rollout(rollout)["state"] == "done"
    assert one.links() == {}


def test_a_fleet_of_both_kinds_is_gated_alike(there: World) -> None:
    """A stage waits for the device with SWUpdate as for the one with an agent of ours, and one failure pauses for all."""
    devices = {name: there.enrol(name) for name in ("agent", "other")}
    swupdate = controller(there, "swupdate")
    rollout = there.roll_out(R1, 1)
    for one in devices.values():
        one.tells(R1, "confirmed")
    assert there.rollout(rollout)["state"] == "running"
    swupdate.says(int(swupdate.fetch()["id"]))
    assert there.rollout(rollout)["state"] == "done"
    second = there.roll_out(R2, 1)
    swupdate.says(int(swupdate.fetch()["id"]), "closed", "failure", details=["ERROR : HASH mismatch"])
    status = there.rollout(second)
    assert status["state"] == "paused"
    assert status["reason"].startswith("swupdate failed")
    assert status["devices"]["swupdate"]["reason"] == "ERROR : HASH mismatch"
    assert shown(there, swupdate)["release"] == R1, "it runs what it ran"
    assert swupdate.links() == {}, "it is not told to try the same again"


def test_a_device_that_never_says_how_it_ended_is_silent(there: World) -> None:
    """To have fetched an image is no success: after a while the rollout counts it as failed."""
    one = controller(there)
    rollout = there.roll_out(R1, gates={"silent_after": 600.0})
    action = int(one.fetch()["id"])
    there.clock.advance(500)
    one.says(action, "proceeding", "none")
    there.clock.advance(500)
    one.call("GET")
    assert there.rollout(rollout)["state"] == "running", "it was heard of its work meanwhile"
    there.clock.advance(700)
    one.says(action, "rejected", "none")
    one.call("GET")
    assert there.rollout(rollout)["state"] == "paused"
    assert one.says(action).status == 200
    assert there.rollout(rollout)["devices"]["gate"]["state"] == "confirmed"


def test_a_rollback_calls_off_what_is_under_way_and_brings_back_what_was_there(there: World) -> None:
    """The device is told to stop first; once it has, it gets the release that it had confirmed."""
    one = controller(there)
    there.roll_out(R1)
    one.says(int(one.fetch()["id"]))
    second = there.roll_out(R2)
    action = int(one.fetch()["id"])
    assert there.admin("POST", f"rollouts/{second}/rollback").status == 200
    assert one.links() == {"cancelAction": f"/cancelAction/{action}"}
    reply = one.call("GET", f"/cancelAction/{action}")
    assert reply.json == {"id": str(action), "cancelAction": {"stopId": str(action)}}
    assert one.call("GET", f"/deploymentBase/{action}").status == 410
    assert one.says(action, of="cancelAction").status == 200
    deployment = one.fetch()
    assert deployment["deployment"]["chunks"][0]["version"] == "1.0.0"
    assert one.says(int(deployment["id"])).status == 200
    assert shown(there, one)["release"] == R1


def test_a_device_that_will_not_stop_is_heard_to_the_end(there: World) -> None:
    """What it then says counts for the release that it was told to install; the rest comes after."""
    one = controller(there)
    number = there.roll_out(R1)
    action = int(one.fetch()["id"])
    there.admin("POST", f"rollouts/{number}/rollback")
    assert one.says(action, "rejected", "none", of="cancelAction").status == 200
    assert one.links() == {"deploymentBase": f"/deploymentBase/{action}"}
    assert one.says(action).status == 200
    assert shown(there, one)["release"] == R1
    assert one.links() == {}


def test_what_was_done_while_the_order_to_stop_was_on_its_way_counts(there: World) -> None:
    """The device closed the action before it heard that it should not."""
    one = controller(there)
    number = there.roll_out(R1)
    action = int(one.fetch()["id"])
    there.admin("POST", f"rollouts/{number}/rollback")
    assert one.says(action).status == 200
    assert shown(there, one)["state"] == "confirmed"
    assert one.call("GET", f"/cancelAction/{action}").status == 410
    assert one.says(action, of="cancelAction").status == 410


def test_words_that_come_twice_count_once(there: World) -> None:
    """An answer was lost, the device says it again: the same afterwards. The opposite is too late."""
    one = controller(there)
    rollout = there.roll_out(R1)
    action = int(one.fetch()["id"])
    for _ in range(3):
        assert one.says(action, "downloaded", "none").status == 200
    assert one.says(action).status == 200
    assert one.says(action, "downloaded", "none").status == 410
    before = told(there)
    assert one.says(action).status == 200
    refused = one.says(action, "closed", "failure")
    assert (refused.status, refused.json["errorCode"]) == (410, "edgestill.error.state-conflict")
    assert told(there) == before
    assert there.rollout(rollout)["state"] == "done"


def test_a_release_without_an_image_waits_and_says_so(there: World) -> None:
    """Nothing is told to the device; the rollout says why. It goes on once the image is there."""
    there.publish("3.0.0")
    one = controller(there)
    rollout = there.roll_out("watch/3.0.0")
    assert one.links() == {} == one.links()
    here = there.rollout(rollout)["devices"]["gate"]
    assert (here["state"], here["reason"]) == ("assigned", "no image was handed over")
    assert one.says(1).status == 404
    assert there.admin("PUT", "images", image("3.0.0")).status == 201
    action = int(one.fetch()["id"])
    assert there.rollout(rollout)["devices"]["gate"]["reason"] == ""
    assert one.says(action).status == 200
    assert there.rollout(rollout)["state"] == "done"


def test_what_is_retired_is_no_longer_handed_out(there: World) -> None:
    """Off the publisher's list, out of reach, also for a device that was told of it."""
    one = controller(there)
    there.roll_out(R1)
    deployment = one.fetch()
    href = deployment["deployment"]["chunks"][0]["artifacts"][0]["_links"]["download"]["href"]
    there.publish(retire=(f"watch/1.0.0/{CLASS}.esb",))
    assert one.links() == {}
    assert one.call("GET", f"/deploymentBase/{deployment['id']}").status == 410
    assert one.call("GET", href.removeprefix(f"http://hub.test:81{one.base}")).status == 404


# Downloads


def test_a_download_goes_on_where_it_was_cut_off(there: World) -> None:
    """Ranges, as RFC 9110 has them; and what lies outside is said to."""
    one = controller(there)
    there.roll_out(R1)
    href = one.fetch()["deployment"]["chunks"][0]["artifacts"][0]["_links"]["download-http"]["href"]
    path, data = href.removeprefix(f"http://hub.test:81{one.base}"), image("1.0.0")
    reply = one.call("GET", path, range="bytes=1000-")
    assert (reply.status, reply.body) == (206, data[1000:])
    assert reply.headers["content-range"] == f"bytes 1000-{len(data) - 1}/{len(data)}"
    assert one.call("GET", path, range="bytes=5-9").body == data[5:10]
    assert one.call("GET", path, range=f"bytes={len(data)}-").status == 416
    assert one.call("GET", path, range="bytes=0-", if_range='"another"').body == data


def test_attack_an_image_that_is_not_for_this_device(there: World) -> None:
    """Another release's, another device's, a made-up name, and any before there is something to install."""
    one, other = controller(there, "one", row="1"), controller(there, "other", row="2")
    there.roll_out(R1, labels={"row": "1"})
    artefact = one.fetch()["deployment"]["chunks"][0]["artifacts"][0]
    path = artefact["_links"]["download"]["href"].removeprefix(f"http://hub.test:81{one.base}")
    assert one.call("GET", path).status == 200
    assert other.call("GET", path).status == 404
    for wrong in (
        path.replace("watch-1", "watch-2"),
        path.replace(artefact["hashes"]["sha256"], Digest.of(image("2.0.0")).hex),
        path.replace(artefact["hashes"]["sha256"], Digest.of(esb("1.0.0")).hex),
        path.replace(artefact["hashes"]["sha256"], "..%2F..%2Fonline.pem"),
    ):
        assert one.call("GET", wrong).status == 404


# Who may


@pytest.mark.parametrize("scheme", ["TargetToken", "targettoken", "GatewayToken", "Bearer"])
def test_a_device_shows_its_credential_in_any_of_the_ways(there: World, scheme: str) -> None:
    """It is its own in each: a gateway's token speaks for no other device."""
    one, other = Controller(there.enrol("one"), scheme), controller(there, "other")
    assert one.call("GET").status == 200
    as_other = Controller(Device(there, "other", one.device.credential), scheme)
    assert as_other.call("GET").status == 401
    assert other.call("GET").status == 200


@pytest.mark.parametrize(
    "sent", ["", "TargetToken", "TargetToken ", "Basic x", "TargetToken nobody's", f"TargetToken {'x' * 400}"]
)
def test_attack_tokens_that_are_none(there: World, sent: str) -> None:
    """The same answer for all, in hawkBit's form, and nothing of what exists."""
    controller(there)
    replies = [
        there.call(method, f"{BASE}/{name}{path}", b"{", host="hub.test", authorization=sent)
        for name in ("gate", "nobody")
        for method, path in (("GET", ""), ("PUT", "/configData"), ("POST", "/deploymentBase/1/feedback"))
    ]
    assert {one.status for one in replies} == {401}
    assert len({one.body for one in replies}) == 1
    assert set(replies[0].json) == {"errorCode", "message"}


def test_attack_a_revoked_device_is_refused_everywhere(there: World) -> None:
    """Also in the middle of an update; and what it says then does not count."""
    one = controller(there)
    rollout = there.roll_out(R1)
    action = int(one.fetch()["id"])
    there.admin("POST", "devices/gate/revoke")
    before = told(there)
    assert one.call("GET").status == 401
    assert one.says(action).status == 401
    assert one.call("PUT", "/configData", {"data": {"a": "b"}}).status == 401
    assert told(there) == before
    assert there.rollout(rollout)["state"] == "running"


def test_another_tenant_is_none(there: World) -> None:
    """There is one, in any case of letters."""
    one = controller(there)
    assert (
        there.call(
            "GET",
            f"/DEFAULT/controller/v1/{one.device.id}",
            host="h",
            authorization=f"TargetToken {one.device.credential}",
        ).status
        == 200
    )
    assert (
        there.call(
            "GET",
            f"/other/controller/v1/{one.device.id}",
            host="h",
            authorization=f"TargetToken {one.device.credential}",
        ).status
        == 404
    )


# What is refused changes nothing


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        (
            "POST",
            "/deploymentBase/2/feedback",
            {"status": {"execution": "closed", "result": {"finished": "success"}}},
            404,
        ),
        (
            "POST",
            "/deploymentBase/0/feedback",
            {"status": {"execution": "closed", "result": {"finished": "success"}}},
            404,
        ),
        (
            "POST",
            "/deploymentBase/-1/feedback",
            {"status": {"execution": "closed", "result": {"finished": "success"}}},
            404,
        ),
        ("POST", f"/deploymentBase/{'9' * 5000}/feedback", {"status": {}}, 404),
        ("POST", "/deploymentBase/%D9%A1/feedback", {"status": {}}, 404),
        ("POST", "/deploymentBase/1/feedback", b"", 400),
        ("POST", "/deploymentBase/1/feedback", b"\xff\xfe", 400),
        ("POST", "/deploymentBase/1/feedback", b'{"status":' * 1000, 400),
        ("POST", "/deploymentBase/1/feedback", b" " * 300_000, 413),
        (
            "POST",
            "/deploymentBase/1/feedback",
            {"id": 2, "status": {"execution": "closed", "result": {"finished": "success"}}},
            400,
        ),
        (
            "POST",
            "/deploymentBase/1/feedback",
            {"status": {"execution": "closed", "result": {"finished": "none"}}},
            400,
        ),
        (
            "POST",
            "/cancelAction/1/feedback",
            {"status": {"execution": "closed", "result": {"finished": "success"}}},
            410,
        ),
        ("GET", "/cancelAction/1", b"", 410),
        ("GET", "/cancelAction/9", b"", 404),
        ("GET", "/deploymentBase/9", b"", 404),
        ("GET", "/deploymentBase/one", b"", 404),
        ("GET", "/installedBase/1", b"", 404),
        ("POST", "/deploymentBase/1", b"", 405),
        ("DELETE", "", b"", 405),
        ("PUT", "/configData", {"data": {"a": 1}}, 400),
        ("PUT", "/configData", b"[]", 400),
        ("PUT", "/configData", {"data": {str(number): "x" for number in range(200)}}, 400),
    ],
)
def test_attack_what_is_refused_changes_nothing(
    there: World, method: str, path: str, body: object, status: int
) -> None:
    """The right status, hawkBit's form, no trace of the inside, and the fleet as it was."""
    one = controller(there)
    there.roll_out(R1)
    assert int(one.fetch()["id"]) == 1
    before = told(there)
    reply = one.call(method, path, body)
    assert reply.status == status, reply
    assert set(reply.json) == {"errorCode", "message"}
    assert reply.json["errorCode"].startswith("edgestill.error.")
    assert "Traceback" not in reply.json["message"]
    assert told(there) == before
    assert one.links() == {"deploymentBase": "/deploymentBase/1"}


def test_a_stale_word_about_an_earlier_action_is_gone(there: World) -> None:
    """It ended long ago; the one that is under way is not touched."""
    one = controller(there)
    there.roll_out(R1)
    first = int(one.fetch()["id"])
    one.says(first)
    there.roll_out(R2)
    second = int(one.fetch()["id"])
    assert one.says(first, "closed", "failure").status == 410
    assert shown(there, one)["state"] == "confirmed"
    assert one.links() == {"deploymentBase": f"/deploymentBase/{second}"}


@pytest.mark.parametrize("host", ["", "evil/..", "a b", 'x"><script>', "h:99999999", "user@h", "[::1"])
def test_attack_a_host_that_no_link_can_hold(there: World, host: str) -> None:
    """Links are made of what the request names; what is no host is refused."""
    one = controller(there)
    assert one.call("GET", host=host).status == 400


@pytest.mark.parametrize("host", ["hub.example", "127.0.0.1:8080", "[::1]:8080"])
def test_links_lead_where_the_device_came(there: World, host: str) -> None:
    """By name, by address, by port."""
    one = controller(there)
    assert (
        one.call("GET", host=host).json["_links"]["configData"]["href"]
        == f"http://{host}{one.base}/configData"
    )


# What it says of itself


def test_attributes_are_asked_for_once_and_shown(there: World) -> None:
    """The link goes when they have come; a later message changes them."""
    one = controller(there)
    assert "configData" in one.call("GET").json["_links"]
    assert (
        one.call(
            "PUT", "/configData", {"id": "", "time": "x", "data": {"board": "b1", "os": "12"}, "status": {}}
        ).status
        == 200
    )
    assert "configData" not in one.call("GET").json["_links"]
    assert one.call("PUT", "/configData", {"mode": "merge", "data": {"os": "13"}}).status == 200
    assert shown(there, one)["attributes"] == {"board": "b1", "os": "13"}
    there.roll_out(R1)
    one.says(int(one.fetch()["id"]))
    assert shown(there, one)["attributes"] == {"board": "b1", "os": "13"}


# Images


@pytest.mark.parametrize(
    ("made", "status", "code"),
    [
        (b"", 400, "message-invalid"),
        (b"x" * 1000, 400, "message-invalid"),
        (image("1.0.0")[:-600], 400, "message-invalid"),
        (image("1.0.0") + b"x", 400, "message-invalid"),
        (image("9.0.0"), 404, "not-found"),
        (image("2.0.0", esb("1.0.0")), 409, "state-conflict"),
        (image("1.0.0", name="other"), 409, "state-conflict"),
    ],
)
def test_attack_images_that_are_refused(there: World, made: bytes, status: int, code: str) -> None:
    """Not whole, not ours, of an archive that is not here, or called otherwise than the bundle in it."""
    reply = there.admin("PUT", "images", made)
    assert (reply.status, reply.json["code"]) == (status, code)
    one = controller(there)
    there.roll_out(R1)
    assert (
        one.fetch()["deployment"]["chunks"][0]["artifacts"][0]["hashes"]["sha256"]
        == Digest.of(image("1.0.0")).hex
    )


def test_an_image_is_too_long_where_its_bundle_would_be(there: World) -> None:
    """It may be longer than a bundle by what an image has more."""
    reply = there.admin("PUT", "images", b"x" * 10)
    assert reply.status == 400
    reply = there.call(
        "PUT", "/v1/admin/images", b"x", authorization=f"Bearer {there.operator}", content_length=str(2**30)
    )
    assert reply.status == 413


def test_an_image_that_is_made_anew_takes_the_place_of_the_first(there: World) -> None:
    """As when its certificate has ended."""
    data = esb("1.0.0")
    said = swu.Description.of(_manifest(there), Digest.of(data), inbox="/data/models")
    anew = swu.image_bytes(said, b"another signature", data)
    assert there.admin("PUT", "images", anew).status == 201
    one = controller(there)
    there.roll_out(R1)
    artefact = one.fetch()["deployment"]["chunks"][0]["artifacts"][0]
    assert artefact["hashes"]["sha256"] == Digest.of(anew).hex


def _manifest(there: World) -> Any:
    path = there.folder / "made.esb"
    path.write_bytes(esb("1.0.0"))
    return Bundle.open(path).manifest


def test_what_was_told_is_known_after_a_restart(tmp_path: Path) -> None:
    """The action that is under way goes on; the one that is closed stays so."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        there.publish("1.0.0")
        there.admin("PUT", "images", image("1.0.0"))
        one = controller(there)
        there.roll_out(R1)
        action = int(one.fetch()["id"])
        targets = there.targets
    with world(tmp_path / "hub") as again:
        again.targets = targets
        one = Controller(Device(again, "gate", one.device.credential))
        assert one.says(action).status == 200
        assert one.links() == {}
    with world(tmp_path / "hub") as third:
        one = Controller(Device(third, "gate", one.device.credential))
        assert one.links() == {}
        assert one.says(action, "closed", "failure").status == 410
    connection = sqlite3.connect(tmp_path / "hub" / "hub.db")
    rows = connection.execute("SELECT device_id, action, outcome FROM controllers").fetchall()
    connection.close()
    assert rows == [("gate", action, "success")]


def test_the_log_tells_steps_as_of_any_device(there: World, caplog: pytest.LogCaptureFixture) -> None:
    """Confirmed, fallen back, called off, and an image that is missing; no token among them."""
    caplog.set_level("INFO", logger="edgestill.hub")
    one = controller(there)
    number = there.roll_out(R1)
    one.says(int(one.fetch()["id"]), "closed", "failure", details=["no room"])
    there.admin("POST", f"rollouts/{number}/rollback")
    number = there.roll_out(R2)
    action = int(one.fetch()["id"])
    there.admin("POST", f"rollouts/{number}/rollback")
    one.says(action, of="cancelAction")
    there.publish("3.0.0")
    there.roll_out("watch/3.0.0")
    one.links()
    one.links()
    lines = [record.getMessage() for record in caplog.records]
    assert f"device gate fell back from {R1}: no room" in lines
    assert f"device gate: action {action} is called off" in lines
    assert lines.count(f"device gate takes images, and there is none of watch/3.0.0/{CLASS}.esb") == 1
    assert one.device.credential not in "\n".join(lines)
