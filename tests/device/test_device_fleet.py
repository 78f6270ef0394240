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
            first = fleet.roll_out("1.0.0", stages=STAGES, gates=GATES)
            until(lambda: fleet.state(first) == "done", seconds=LONG)
            bad = fleet.roll_out("1.1.0", stages=STAGES, gates=GATES)
            until(lambda: fleet.state(bad) == "paused", seconds=LONG)
            reason = str(fleet.operator.rollout(bad)["reason"])
            assert "agree" in reason, reason
            touched = [one for one, state in fleet.members(bad).items() if state != "waiting"]
            assert len(touched) == 1, "a bad version leaves the first stage"
            fleet.operator.rollback(bad)
            until(lambda: all(fleet.serving(one) == "tiny/1.0.0" for one in DEVICES), seconds=LONG)
            last = fleet.roll_out("1.2.0", stages=STAGES, gates=GATES)
            until(lambda: fleet.state(last) == "done", seconds=LONG)
        until(lambda: all(fleet.serving(one) == "tiny/1.2.0" for one in DEVICES))
        assert fleet.kills >= 5
