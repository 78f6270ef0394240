"""hawkBit's interface in hard times: devices that never say how it ended, orders that cross, images that are replaced."""

from __future__ import annotations

from typing import TYPE_CHECKING

from test_hub_ddi import R1, controller, shown, there

if TYPE_CHECKING:
    from hub_worlds import World

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
    there.roll_out("watch/2.0.0")
    (chunk,) = one.fetch()["deployment"]["chunks"]
    assert chunk["version"] == "2.0.0"
