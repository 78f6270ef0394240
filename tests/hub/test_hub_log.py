"""What the hub tells its log: what was accepted, what was released, what was refused and why, and no secret."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest
from hub_worlds import CLASS, world

from edgestill.core.digest import Digest
from edgestill.core.jsonio import canonical
from edgestill.hub.problems import MOST_A_MINUTE

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from hub_worlds import World

    from edgestill.core.jsonio import Json, JsonObject

R1 = "watch/1.0.0"


@pytest.fixture
def there(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> Iterator[World]:
    """A hub without root and releases, whose log is kept from INFO on."""
    caplog.set_level(logging.INFO, logger="edgestill.hub")
    with world(tmp_path) as made:
        yield made


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was logged since the last time, with the first letter of its level."""
    told = [f"{one.levelname[0]} {one.getMessage()}" for one in caplog.records]
    caplog.clear()
    return told


def test_a_release_is_told_from_the_root_to_the_last_device(
    there: World, caplog: pytest.LogCaptureFixture
) -> None:
    """Root, archive, list, token, enrolment, rollout, each device's steps, and the end."""
    root = there.give_root()
    there.publish("1.0.0")
    (info,) = there.hub.artefacts.publication.listed.values()
    assert lines(caplog) == [
        f"I root.json {Digest.of(root)} is accepted",
        f"I archive {info.digest} of {info.size} bytes is accepted",
        f"I released watch/1.0.0/{CLASS}.esb",
    ]
    device = there.enrol("d0")
    assert lines(caplog) == [
        "I a join token is made: uses 1, lifetime 3600 s",
        f"I device d0 has enrolled, as {CLASS}",
    ]
    there.roll_out(R1)
    assert lines(caplog) == [
        "I rollout 1 of watch/1.0.0 is started, in stages of 1",
        "I rollout 1: watch/1.0.0 is assigned to d0",
    ]
    device.tells(R1, "downloaded")
    device.audited(R1, 1, 1)
    device.tells(R1, "confirmed")
    assert lines(caplog) == [
        "I device d0: downloaded watch/1.0.0",
        "I device d0: confirmed watch/1.0.0",
        "I rollout 1: is done",
    ]


def test_what_goes_wrong_is_a_warning_with_its_reason(there: World, caplog: pytest.LogCaptureFixture) -> None:
    """A device that falls back, the rollout that is paused for it, the operator's orders, and a revoked device."""
    there.give_root()
    there.publish("1.0.0")
    devices = [there.enrol(f"d{index}") for index in range(7)]
    number = there.roll_out(R1)
    assert lines(caplog)[-1].endswith("is assigned to d0, d1, d2, d3, d4 and 2 more")
    devices[0].tells(R1, "fell-back", reason="too slow: 9 ms")
    told = lines(caplog)
    assert told[0] == "W device d0 fell back from watch/1.0.0: too slow: 9 ms"
    assert told[1].startswith("I rollout 1: is paused: ")
    there.admin("POST", f"rollouts/{number}/rollback")
    there.admin("POST", "devices/d6/revoke")
    told = lines(caplog)
    assert told[0] == "I rollout 1: rollback, by an operator"
    assert "W device d6 is revoked, by an operator" in told


def test_what_is_refused_is_told_with_who_what_and_why(
    there: World, caplog: pytest.LogCaptureFixture
) -> None:
    """A stranger, the operator, a device, and a path that is not there."""
    there.call("GET", "/v1/poll")
    there.admin("POST", "targets", b"{}")
    there.give_root()
    device = there.enrol("d0")
    lines(caplog)
    device.call("POST", "/v1/reports", b"[")
    there.call("GET", "/nowhere")
    assert (
        there.call("GET", "/metadata/2.root.json").status == 404
    )  # as every device asks, and nobody is refused
    told = lines(caplog)
    assert told[0].startswith("W refused POST '/v1/reports' by device d0 at ")
    assert "[message-invalid] not valid JSON; at reports" in told[0]
    assert told[1].startswith("W refused GET '/nowhere' by a stranger at ")
    assert told[1].endswith(": 404 Not Found")
    assert len(told) == 2


def test_no_secret_is_told(there: World, caplog: pytest.LogCaptureFixture) -> None:
    """Neither tokens nor credentials, those that are right or those that are nearly, at any level."""
    caplog.set_level(logging.DEBUG)
    there.give_root()
    token = there.token()
    device = there.enrol("d0")
    there.call("GET", "/v1/poll", authorization=f"Bearer {there.operator}x")
    there.call("GET", "/v1/admin/fleet", authorization=f"Bearer {device.credential}x")
    enrol: JsonObject = {"device": "d1", "hardware_class": CLASS}
    tokens: list[Json] = [token[:-1], token * 9, [token]]
    for wrong in tokens:
        assert there.call("POST", "/v1/enrol", canonical(enrol | {"join_token": wrong})).status in {400, 401}
    assert "join_token" in caplog.text
    for secret in (there.operator, device.credential, token.split(".")[1]):
        assert secret not in caplog.text


def test_attack_asking_in_vain_fills_no_disk(there: World, caplog: pytest.LogCaptureFixture) -> None:
    """So many refusals are told each minute; of the others the log has the number."""
    for _ in range(MOST_A_MINUTE + 40):
        assert there.call("GET", "/v1/poll").status == 401
    assert len(lines(caplog)) == MOST_A_MINUTE
    there.clock.advance(60)
    there.call("GET", "/v1/poll")
    assert lines(caplog)[0] == "W refused 40 more exchanges in the minute of those before"
