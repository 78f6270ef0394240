"""Sums that the hub does not take, and the sum in which no single device decides."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hub_worlds import Device, Reply, World, sums, world

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.hub import refusals
from edgestill.hub import sums as intake
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.privacy import Mechanism
from edgestill.learn.robust import with_prior
from edgestill.learn.statistics import MAX_BYTES, Statistics, solve, usual_ridge
from edgestill.learn.together import head_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.learn.encodings import Dtype

BACKBONE = Digest.of(b"backbone")
D, C = 6, 3


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root, and nothing published."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        yield made


def send(device: Device, body: bytes, id_: str = "m1", sequence: int | None = None) -> Reply:
    """Sends a message."""
    numbered = {} if sequence is None else {"x_edgestill_sequence": str(sequence)}
    return device.call("POST", "/v1/evidence/statistics", body, x_edgestill_id=id_, **numbered)


def learned(seed: int, n: int = 60, *, turned: int = 0, window: int = 1) -> Statistics:
    """A device's sums; every label moved on by `turned`."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, C, n)
    features = 2 * np.random.default_rng(99).normal(size=(C, D))[labels] + rng.normal(size=(n, D))
    empty = Statistics.empty(backbone=BACKBONE, window=window, classes=C, features=D)
    return empty.add(features, np.eye(C)[(labels + turned) % C])


REFERENCE = learned(1_000, 300)


def refused(there: World) -> Any:
    """What the hub says that it did not take: reason -> device -> how often."""
    found = there.admin("GET", "evidence").json["refused"]
    for one in found.values():
        assert one["messages"] == sum(one["most"].values())
        assert one["devices"] == len(one["most"])
    return {reason: one["most"] for reason, one in found.items()}


def agreed(there: World, reference: Statistics = REFERENCE, query: str = "") -> Reply:
    """The hub's weighed sum."""
    return there.admin("POST", f"evidence/statistics/agreed{query}", reference.to_bytes("float64"))


# What is not taken


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "int8"])
def test_messages_of_every_rounding_are_taken_and_summed(there: World, dtype: Dtype) -> None:
    """Devices of one fleet may round differently: their sums add."""
    one, other = there.fleet(2)
    assert send(one, learned(1).to_bytes(dtype)).json == {"accepted": True}
    assert send(other, learned(2).to_bytes("float64")).json == {"accepted": True}
    total = Statistics.from_bytes(there.admin("GET", f"evidence/statistics?backbone={BACKBONE}").body)
    exact = learned(1) + learned(2)
    assert total.n == 120
    assert np.abs(total.a - exact.a).max() < 0.01 * np.abs(exact.a).max()
    assert refused(there) == {}


def test_attack_every_kind_of_bad_message_is_refused_with_its_reason_and_counted(there: World) -> None:
    """Poisoned, not a number, too long, of another kind, sent again, late, or no message at all."""
    there.publish("1.0.0", reference=learned(0).to_bytes())
    honest, liar = there.fleet(2)
    good = learned(1)
    assert send(honest, good.to_bytes(), "m1", 1).status == 200
    nan = bytearray(good.to_bytes("float64"))
    nan[-8:] = np.array([np.nan], "<f8").tobytes()
    odd = Statistics.empty(backbone=BACKBONE, window=1, classes=C, features=D + 1).to_bytes()
    tried = [
        (replace(good, b=good.b * 100).to_bytes(), 422, "no classifier's samples have these sums"),
        (replace(good, a=good.a * 1e-3).to_bytes(), 422, "no classifier's samples have these sums"),
        (good.scaled(1e25).to_bytes("float64"), 422, "sums too large for one device"),
        (bytes(nan), 422, "statistics hold NaN or infinity"),
        (b"\0" * (MAX_BYTES + 1), 413, refusals.TOO_LONG),
        (odd, 422, "statistics of another kind"),
        (b"not a message", 400, "another kind of message"),
        (good.to_bytes()[:-1], 400, "head and arrays disagree"),
    ]
    for number, (body, status, _) in enumerate(tried):
        assert send(liar, body, f"bad{number}", number + 10).status == status
    wanted: dict[str, dict[str, int]] = {}
    for _, _, reason in tried:
        wanted.setdefault(reason, {"d1": 0})["d1"] += 1
    assert refused(there) == wanted
    known = send(honest, good.to_bytes(), "m1", 1)
    assert known.json == {"accepted": False, "reason": refusals.KNOWN}
    send(honest, good.to_bytes(), "m3", 3)
    late = send(honest, good.to_bytes(), "m2", 2)
    assert late.json == {"accepted": False, "reason": refusals.STALE}
    assert refused(there) == wanted | {refusals.KNOWN: {"d0": 1}, refusals.STALE: {"d0": 1}}
    total = Statistics.from_bytes(there.admin("GET", f"evidence/statistics?backbone={BACKBONE}").body)
    assert total.n == good.n, "nothing of the liar counts"


def test_counts_of_refusals_outlive_the_hub(tmp_path: Path) -> None:
    """They are in the database, and go on after a restart."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        device = there.enrol("d0")
        send(device, b"nothing")
    with world(tmp_path / "hub") as again:
        send(Device(again, device.id, device.credential), b"nothing", "m2")
        assert refused(again) == {"another kind of message": {"d0": 2}}


def test_attack_a_stranger_is_not_counted(there: World) -> None:
    """Who is no device is refused as ever, and takes no row."""
    reply = there.call(
        "POST", "/v1/evidence/statistics", b"x", authorization="Bearer nobody", x_edgestill_id="m"
    )
    assert reply.status == 401
    assert refused(there) == {}


def test_reasons_of_a_device_are_bounded(there: World) -> None:
    """Whatever reasons later versions have: a device takes so many rows, the rest is counted together."""
    there.enrol("d0")

    async def many() -> None:
        async with there.hub.database.write() as connection:
            for number in range(100):
                await refusals.count(connection, "d0", f"reason {number}", 1.0)
                await refusals.count(connection, "d0", "reason 0", 1.0)

    asyncio.run(many())
    found = refused(there)
    assert len(found) == refusals.MOST_REASONS
    assert found["reason 0"] == {"d0": 101}
    assert found["others"] == {"d0": 100 - (refusals.MOST_REASONS - 1)}


# The sum in which no single device decides


def test_attack_one_of_ten_devices_does_not_decide(there: World) -> None:
    """A million times the weight under wrong labels: the head stays right, and the hub says who was weighed down."""
    fleet = there.fleet(10)
    for place, device in enumerate(fleet[:-1]):
        assert send(device, learned(place).to_bytes()).status == 200
    liar = learned(9, turned=1).scaled(1e6)
    assert send(fleet[-1], liar.to_bytes("float64")).status == 200
    said = agreed(there).json
    assert (said["devices"], said["settled"]) == (10, True)
    assert min(said["weights"], key=said["weights"].__getitem__) == "d9"
    assert said["weights"]["d9"] < 1e-5
    total = Statistics.from_bytes(base64.b64decode(said["statistics"]), backbone=BACKBONE)
    both = with_prior(total, REFERENCE)
    head = solve(both, ridge=usual_ridge(both))
    features, labels = _unseen()
    assert ((features @ head.weight + head.bias).argmax(axis=1) == labels).mean() > 0.95
    plain = Statistics.from_bytes(there.admin("GET", f"evidence/statistics?backbone={BACKBONE}").body)
    lost = solve(plain, ridge=usual_ridge(plain))
    assert ((features @ lost.weight + lost.bias).argmax(axis=1) == labels).mean() < 0.1


@pytest.mark.parametrize("noise", [1e-3, 1e4, 1e10, 1e24, 9.9e299])
def test_attack_one_device_that_claims_noise_does_not_spoil_the_plain_sum(there: World, noise: float) -> None:
    """With sums as large as its noise, or without: refused or left out, and the head is the honest devices'."""
    fleet = there.fleet(10)
    for place, device in enumerate(fleet[:-1]):
        assert send(device, learned(place).to_bytes()).status == 200
    for number, factor in enumerate((1.0, max(1.0, noise / 1e3))):
        liar = replace(learned(9, window=number).scaled(factor), noise=(noise, noise))
        send(fleet[-1], liar.to_bytes("float64"), f"m{number}")
    plain = Statistics.from_bytes(there.admin("GET", f"evidence/statistics?backbone={BACKBONE}").body)
    assert (plain.n, plain.noise) == (9 * 60, (0.0, 0.0))
    head = head_of(plain)
    features, labels = _unseen()
    assert ((features @ head.weight + head.bias).argmax(axis=1) == labels).mean() > 0.95


def test_a_fleet_that_adds_noise_is_summed(there: World) -> None:
    """All claim what their policy says."""
    mechanism = Mechanism(unit="sample", norm=6.0, multiplier=0.5)
    for place, device in enumerate(there.fleet(4)):
        noisy = mechanism.noisy(learned(place), np.random.default_rng(place))
        assert send(device, noisy.to_bytes()).status == 200
    plain = Statistics.from_bytes(there.admin("GET", f"evidence/statistics?backbone={BACKBONE}").body)
    deviation = np.sqrt(2) * 0.5 * mechanism.sensitivity[0]
    assert plain.noise[0] == pytest.approx(2 * deviation)


def _unseen() -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(77)
    labels = rng.integers(0, C, 500)
    return 2 * np.random.default_rng(99).normal(size=(C, D))[labels] + rng.normal(size=(500, D)), labels


def test_all_windows_of_a_device_are_one_device(there: World) -> None:
    """Spreading a lie over many windows buys no weight."""
    fleet = there.fleet(5)
    for place, device in enumerate(fleet[:-1]):
        send(device, learned(place).to_bytes())
    for window in range(20):
        send(fleet[-1], learned(9, turned=1, window=window).to_bytes(), f"m{window}")
    said = agreed(there).json
    assert said["devices"] == 5
    assert said["weights"]["d4"] < 3 / 20 + 1e-6


def test_sums_in_coordinates_are_weighed_by_the_reference_in_coordinates(there: World) -> None:
    """The hub needs to know nothing of coordinates: the operator's reference says which sums are meant."""
    coordinates = Coordinates.of(REFERENCE, D)
    for place, device in enumerate(there.fleet(4)):
        send(device, coordinates.project(learned(place, 200)).to_bytes("int8"))
    said = agreed(there, coordinates.project(REFERENCE)).json
    total = coordinates.lift(Statistics.from_bytes(base64.b64decode(said["statistics"])))
    exact = learned(0, 200) + learned(1, 200) + learned(2, 200) + learned(3, 200)
    assert said["weights"] == {}
    assert np.abs(total.a - exact.a).max() < 0.01 * np.abs(exact.a).max()
    assert agreed(there).status == 404, "of the features themselves nobody has sent any"


def test_a_revoked_device_has_no_part(there: World) -> None:
    """As in the plain sum."""
    fleet = there.fleet(3)
    for place, device in enumerate(fleet):
        send(device, learned(place).to_bytes())
    there.admin("POST", "devices/d2/revoke")
    assert agreed(there).json["devices"] == 2


@pytest.mark.parametrize("query", ["?size=0", "?influence=nan", "?prior=x", "?ridge=-1", "?size=1e999"])
def test_a_rule_that_is_none_is_refused(there: World, query: str) -> None:
    """Before anything is summed."""
    send(there.enrol("d0"), learned(0).to_bytes())
    assert agreed(there, query=query).status in {400, 422}


def test_attack_a_reference_that_is_no_message(there: World) -> None:
    """Refused as a device's would be."""
    assert there.admin("POST", "evidence/statistics/agreed", b"nothing").status == 400


def test_what_an_older_hub_took_and_this_one_would_not_has_no_part() -> None:
    """A message that was kept before there were screens is left out of the weighed sum."""
    good = learned(1)
    bad = replace(good, b=good.b * 100)
    totals: dict[str, Statistics] = {}
    intake.add_by_device(
        totals, [intake.Sent("d0", good.to_bytes("float64")), intake.Sent("d1", bad.to_bytes("float64"))]
    )
    assert set(totals) == {"d0"}


def test_too_many_messages_for_the_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do instead."""
    monkeypatch.setattr(intake, "MOST_ELEMENTS", 100)
    some = [intake.Sent(f"d{place}", learned(place).to_bytes()) for place in range(3)]
    with pytest.raises(EvidenceError, match=r"too many messages for a robust sum.*fewer coordinates"):
        intake.add_by_device({}, some)


def test_sums_of_features_are_of_a_classifier(there: World) -> None:
    """The usual message of these tests passes the screens, too."""
    assert send(there.enrol("d0"), sums().to_bytes()).status == 200
