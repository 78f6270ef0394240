"""hawkBit's interface in hard times: devices that never say how it ended, orders that cross, images that are replaced."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from hub_worlds import CLASS
from test_hub_ddi import R1, R2, controller, image, shown, there

if TYPE_CHECKING:
    from hub_worlds import World
    from test_hub_ddi import Controller

__all__ = ["there"]


def test_a_device_that_goes_on_reporting_but_never_confirms_is_silent(there: World) -> None:
    """It says at every poll that the image is written: after a while the rollout counts it as failed; confirming late still counts."""
    one = controller(there)
    rollout = there.roll_out(R1, gates={"silent_after": 600.0})
    action = int(one.fetch()["id"])
    for _ in range(4):
        there.clock.advance(200)
        one.fetch()
        for word in ("download", "proceeding", "downloaded", "scheduled", "resumed"):
            assert one.says(action, word, "none").status == 200
        assert one.says(action, "proceeding", "none", progress={"cnt": 1, "of": 1}).status == 200
        assert shown(there, one)["state"] == "staged"
    there.clock.advance(200)
    one.call("GET")
    assert there.rollout(rollout)["state"] == "paused"
    assert one.says(action).status == 200
    assert there.rollout(rollout)["devices"]["gate"]["state"] == "confirmed"


def test_what_is_staged_is_not_installed_again(there: World) -> None:
    """The device is told the action's number, by which it closes it, and nothing to fetch; the next release is whole again."""
    one = controller(there)
    there.roll_out(R1)
    action = int(one.fetch()["id"])
    one.says(action, "proceeding", "none", progress={"cnt": 0, "of": 1})
    assert len(one.fetch()["deployment"]["chunks"]) == 1, "it is not written yet"
    one.says(action, "proceeding", "none", progress={"cnt": 1, "of": 1})
    for _ in range(3):
        again = one.fetch()
        assert (again["id"], again["deployment"]["chunks"]) == (str(action), [])
        one.says(action, "proceeding", "none", progress={"cnt": 0, "of": 0})
    assert one.says(action).status == 200
    there.roll_out(R2)
    (chunk,) = one.fetch()["deployment"]["chunks"]
    assert chunk["version"] == "2.0.0"


def test_a_device_that_would_not_stop_goes_on_after_its_release_was_retired(there: World) -> None:
    """Nothing could close the action any more, so the hub does, and the device gets what is assigned to it since."""
    one = controller(there)
    number = there.roll_out(R1)
    action = int(one.fetch()["id"])
    there.admin("POST", f"rollouts/{number}/rollback")
    assert one.says(action, "rejected", "none", of="cancelAction").status == 200
    there.publish(retire=(f"watch/1.0.0/{CLASS}.esb",))
    assert one.links() == {}, "nothing else is assigned yet"
    assert one.says(action).status == 410
    there.roll_out(R2)
    deployment = one.fetch()
    assert deployment["deployment"]["chunks"][0]["version"] == "2.0.0"
    assert one.says(int(deployment["id"])).status == 200
    assert shown(there, one)["release"] == R2


def test_a_device_that_would_not_stop_is_given_the_next_at_once_when_its_release_is_retired(
    there: World,
) -> None:
    """The next was assigned before; one poll is enough. A release without an image waits there as anywhere."""
    one = controller(there)
    number = there.roll_out(R1)
    action = int(one.fetch()["id"])
    there.admin("POST", f"rollouts/{number}/rollback")
    one.says(action, "rejected", "none", of="cancelAction")
    there.publish("3.0.0")
    rollout = there.roll_out("watch/3.0.0")
    assert one.links() == {"deploymentBase": f"/deploymentBase/{action}"}, "it goes on"
    there.publish(retire=(f"watch/1.0.0/{CLASS}.esb",))
    assert one.links() == {}
    assert there.rollout(rollout)["devices"]["gate"]["reason"] == "no image was handed over"
    there.admin("PUT", "images", image("3.0.0"))
    assert one.fetch()["deployment"]["chunks"][0]["version"] == "3.0.0"


def path_of(one: Controller, deployment: Any) -> str:
    """Where the image of a deployment is, below the device's resource."""
    (artefact,) = deployment["deployment"]["chunks"][0]["artifacts"]
    return str(artefact["_links"]["download"]["href"].removeprefix(f"http://hub.test:81{one.base}"))


def test_an_image_that_is_handed_over_again_breaks_no_download(there: World) -> None:
    """The rest of the earlier one is served to whoever has begun with it; who asks anew is told the newest, whichever that is."""
    one, other = controller(there), controller(there, "other")
    there.roll_out(R1)
    path, first = path_of(one, one.fetch()), image("1.0.0")
    newer = [image("1.0.0", inbox=f"/data/{number}") for number in range(2)]
    for anew in newer:
        assert there.admin("PUT", "images", anew).status == 201
        reply = one.call("GET", path, range="bytes=1000-")
        assert (reply.status, reply.body) == (206, first[1000:])
        assert other.call("GET", path_of(other, other.fetch())).body == anew
    assert there.admin("PUT", "images", first).status == 201
    assert path_of(other, other.fetch()) == path
    there.publish(retire=(f"watch/1.0.0/{CLASS}.esb",))
    assert one.call("GET", path).status == 404, "what is retired is out of reach in every form"


def test_an_image_that_is_handed_over_often_is_known_once(there: World) -> None:
    """The same bytes are one image, however often they come."""
    for _ in range(3):
        assert there.admin("PUT", "images", image("1.0.0")).status == 201
    connection = sqlite3.connect(there.folder / "hub.db")
    (count,) = connection.execute("SELECT count(*) FROM images").fetchone()
    connection.close()
    assert count == 2, "one of each release"
