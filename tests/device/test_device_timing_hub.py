"""Devices, a hub and a timing job, each device and the hub a process: from an archive to a profile that a search reads."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

import pytest
from device_bundles import HERE, batches, model, tiny_bundle
from device_families import TARGET, family
from device_fleet import Fleet, until

from edgestill.device.client import LocalClient
from edgestill.lab.searching.profile import Profile

if TYPE_CHECKING:
    from pathlib import Path

SOON = ("--idle-after", "200ms", "--idle-load", "100%")


def states(fleet: Fleet, job: str) -> dict[str, str]:
    """Device -> how it stands in a timing job."""
    devices = cast("dict[str, dict[str, Any]]", fleet.operator.timing(job)["devices"])
    return {name: str(one["state"]) for name, one in devices.items()}


@pytest.mark.slow
def test_a_job_travels_to_devices_and_comes_back_as_a_profile(tmp_path: Path) -> None:
    """While a release serves; a kill in between costs nothing but time, and nothing of the job is left on the disk."""
    with Fleet(tmp_path, model(1)) as fleet:
        for device in ("d1", "d2"):
            fleet.join(device, *SOON)
        fleet.publisher.publish("1.0.0", tiny_bundle("1.0.0", seed=2))
        assert fleet.ends(fleet.roll_out("1.0.0"), seconds=60).startswith("done")
        fleet.publisher.publish_as(TARGET, family())

        started = fleet.operator.start_timing(TARGET, devices=2)
        job = str(started["id"])
        assert started["devices"] == ["d1", "d2"] or started["devices"] == ["d2", "d1"]
        until(lambda: states(fleet, job)["d1"] != "assigned", seconds=60)
        fleet.kill("d1")
        fleet.start("d1", *SOON)
        with LocalClient.open(fleet.home("d2")) as client:
            assert len(client.predict(batches(1, 1))) == 1
        until(lambda: fleet.operator.timing(job)["state"] == "done", seconds=120)

        assert states(fleet, job) == {"d1": "measured", "d2": "measured"}
        data = fleet.operator.profile(job)
        told = json.loads(data)
        assert told["timing"]["devices"] == ["d1", "d2"]
        assert told["timing"]["apart"]["most"] >= told["timing"]["apart"]["median"] >= 1
        profile = Profile.from_bytes(data)
        assert (profile.hardware_class, profile.threads) == (HERE, 1)
        assert list(profile.tables) == ["floats"]
        assert Profile.from_bytes(fleet.operator.profile(job, device="d1")).tables
        for device in ("d1", "d2"):
            assert fleet.serving(device) == "tiny/1.0.0"
            assert [one.name for one in (fleet.home(device) / "timing").iterdir()] == ["state.json"]
