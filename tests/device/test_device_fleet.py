"""A hub and five devices, each a process, under an operator who errs and a power supply that fails."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from device_bundles import model, tiny_bundle
from device_fleet import Fleet, until

from edgestill.core.release import Gates

if TYPE_CHECKING:
    from pathlib import Path

DEVICES = tuple(f"d{number}" for number in range(1, 6))
GOOD, BAD = 1, 5
"""Seeds of weights: the teacher's own, and others, which agree with it as often as chance does."""
GATES = Gates(min_agreement=0.8, min_audits=50)
STAGES = (0.2, 1.0)
LONG = 120.0


def bring(fleet: Fleet, version: str) -> None:
    """Rolls a good version out; anew where a device was killed so often within its trial that it fell back."""
    for _ in range(3):
        rollout = fleet.roll_out(version, stages=STAGES, gates=GATES)
        ended = fleet.ends(rollout, seconds=LONG)
        if ended.startswith("done"):
            return
        assert "failed, of" in ended, ended
        fleet.operator.rollback(rollout)
    pytest.fail(f"{version} was not brought to the fleet: {ended}")


def force(fleet: Fleet, version: str) -> int:
    """Rolls a bad version out until its figures stop it, and takes it back; how many devices were given it."""
    for _ in range(3):
        rollout = fleet.roll_out(version, stages=STAGES, gates=GATES)
        ended = fleet.ends(rollout, seconds=LONG)
        given = sum(state != "waiting" for state in fleet.members(rollout).values())
        fleet.operator.rollback(rollout)
        if ended.startswith("paused: agreement with the teacher"):
            return given
        assert "failed, of" in ended, ended
    pytest.fail(f"{version} was not stopped by its figures: {ended}")


@pytest.mark.slow
def test_a_fleet_whose_devices_are_killed_ends_on_the_good_version(tmp_path: Path) -> None:
    """Published, rolled out, killed at random all the while; a bad version is forced on the first device, stopped and taken back."""
    with Fleet(tmp_path, model(GOOD)) as fleet:
        for device in DEVICES:
            fleet.join(device)
        fleet.publisher.publish("1.0.0", tiny_bundle("1.0.0", seed=GOOD))
        fleet.publisher.publish("1.1.0", tiny_bundle("1.1.0", seed=BAD))
        fleet.publisher.publish("1.2.0", tiny_bundle("1.2.0", seed=GOOD))
        with fleet.asked(), fleet.disturbed(seed=1, every=1.5):
            bring(fleet, "1.0.0")
            assert force(fleet, "1.1.0") == 1, "it has gone beyond the first stage"
            until(lambda: all(fleet.serving(one) == "tiny/1.0.0" for one in DEVICES), seconds=LONG)
            bring(fleet, "1.2.0")
        until(lambda: all(fleet.serving(one) == "tiny/1.2.0" for one in DEVICES))
        assert fleet.kills >= 5
