"""Devices, a hub and a voting round, each device and the hub a process: from a set of samples to what the fleet says of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from device_bundles import CLASSES, batches, logits_of, model, policy_of, tiny_bundle
from device_fleet import Fleet, until
from device_votes import ARCHIVE, SAMPLES, TARGET

from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError
from edgestill.core.oip import NUMPY_NAMES
from edgestill.device.client import LocalClient

if TYPE_CHECKING:
    from pathlib import Path

SOON = ("--idle-after", "200ms", "--idle-load", "100%")
SURE = {"threshold": 2.0, "escalation_share": 1.0, "audit_share": 0.5, "alpha": 0.5}


def states(fleet: Fleet, number: str) -> dict[str, str]:
    """Device -> how it stands in a round."""
    devices = cast("dict[str, dict[str, Any]]", fleet.operator.voting(number)["devices"])
    return {name: str(one["state"]) for name, one in devices.items()}


def learned(fleet: Fleet, device: str) -> None:
    """An application tells a device what some inputs are, and what it learned is written down."""
    inputs = batches(40, 5)
    with LocalClient.open(fleet.home(device)) as client:
        client.teach(inputs, logits_of(1, inputs).argmax(axis=1))
    until(lambda: list((fleet.home(device) / "learned").glob("*.stats")), seconds=60)


def wait_until_gone(folder: Path) -> None:
    """Nothing but the record is left of a round."""
    until(lambda: [one.name for one in folder.iterdir()] == ["state.json"])


@pytest.mark.slow
def test_a_round_travels_to_devices_and_comes_back_as_an_outcome(tmp_path: Path) -> None:
    """While a release serves; a kill in between neither loses a vote nor casts it twice, and nothing of the set is left on the disk."""
    with Fleet(tmp_path, model(1)) as fleet:
        for device in ("d1", "d2"):
            fleet.join(device, *SOON)
        fleet.publisher.publish("1.0.0", tiny_bundle("1.0.0", seed=1, policy=policy_of(**SURE)))
        assert fleet.ends(fleet.roll_out("1.0.0"), seconds=60).startswith("done")
        for device in ("d1", "d2"):
            learned(fleet, device)
        fleet.publisher.publish_as(TARGET, ARCHIVE)

        number = str(fleet.operator.start_voting(TARGET, seconds=3600)["id"])
        with pytest.raises(ConflictError, match="another voting round is open"):
            fleet.operator.start_voting(TARGET)
        until(lambda: "voted" in states(fleet, number).values(), seconds=60)
        fleet.kill("d1")
        fleet.start("d1", *SOON)
        until(lambda: set(states(fleet, number).values()) == {"voted"}, seconds=120)
        assert fleet.operator.close_voting(number)["state"] == "closed"

        found = fleet.operator.outcome(number)
        (soft,) = [one for one in found.outputs if one.name == "soft"]
        shares = np.frombuffer(soft.data, NUMPY_NAMES[soft.datatype]).reshape(soft.shape)
        assert shares.shape == (len(SAMPLES), CLASSES)
        assert found.parameters["proxy"] == str(Digest.of(ARCHIVE))
        assert found.parameters["voters"] == 2
        voted = shares.max(axis=1) > 0.99
        assert voted.sum() > len(SAMPLES) / 2
        assert (shares.argmax(axis=1) == logits_of(1, SAMPLES).argmax(axis=1))[voted].all()
        for device in ("d1", "d2"):
            assert fleet.serving(device) == "tiny/1.0.0"
            wait_until_gone(fleet.home(device) / "votes")
