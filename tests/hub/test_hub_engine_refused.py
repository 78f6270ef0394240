"""A rollout of unattended updates among devices of which some take none."""

from __future__ import annotations

from dataclasses import replace

from test_hub_engine import NOW, fleet, member, report, settle, view

from edgestill.hub.engine import Advance, Assign, Finish, Pause, decide, explain

REFUSED = "[unattended-refused] this unattended update is not for this device"


def test_devices_that_take_no_unattended_updates_do_not_pause_a_rollout() -> None:
    """Others are taken in their place until the stage has its share of confirmed ones; a device that fell back for another reason still pauses it."""
    no = member("fell-back", reason=REFUSED, heard_at=NOW)
    first, second, *rest = fleet(4)
    before = view([replace(first, member=no), replace(second, member=no), *rest], 0.5, 1.0)
    after, done = settle(before)
    assert [type(one) for one in done] == [Assign, Assign]
    members = [one for one in after.devices if one.member is not None]
    assert len(members) == 4
    for device in members[2:]:
        after = report(after, device.id, "confirmed")
    after, done = settle(after)
    assert done == [Advance(1), Finish()]
    failed = replace(first, member=member("fell-back", reason="rotten " + REFUSED, heard_at=NOW))
    assert [type(one) for one in decide(view([failed, *rest], 0.5, 1.0), NOW)] == [Pause]


def test_attack_who_says_that_an_update_was_refused_does_not_count_as_served() -> None:
    """A stage in which all say so neither completes nor goes on, and says for whom it waits."""
    no = member("fell-back", reason=REFUSED, heard_at=NOW)
    before = view([replace(one, member=no) for one in fleet(3)], 0.3, 1.0)
    assert decide(before, NOW) == []
    assert explain(before, NOW) == (
        "waiting for a device that can be assigned; d0, d1, d2 took no unattended update"
    )
