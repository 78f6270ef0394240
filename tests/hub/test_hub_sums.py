"""Which sums of devices count: of what kind they may be, and what one odd device can do to the others (nothing)."""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import CLASS, Device, Reply, World, esb, sums, world

from edgestill.core.digest import Digest
from edgestill.core.manifest import REFERENCE
from edgestill.hub.database import migrate
from edgestill.hub.settings import Settings
from edgestill.learn.statistics import MAX_BYTES, Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BACKBONE = str(Digest.of(b"backbone"))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root, and nothing published."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        yield made


def send(device: Device, message: Statistics, id_: str) -> Reply:
    """Sends statistics."""
    return device.call("POST", "/v1/evidence/statistics", message.to_bytes("float64"), x_edgestill_id=id_)


def total(there: World, query: str = "") -> Statistics:
    """The hub's sum."""
    reply = there.admin("GET", f"evidence/statistics?backbone={BACKBONE}{query}")
    assert reply.status == 200, reply
    return Statistics.from_bytes(reply.body)


def counted(there: World) -> Any:
    """What the hub says of the backbone."""
    return there.admin("GET", "evidence").json["statistics"].get(BACKBONE)


def test_attack_the_first_to_name_a_backbone_does_not_decide_what_it_is(there: World) -> None:
    """An odd device comes before the fleet: nobody is shut out, and the sum is of what most devices send."""
    odd, *fleet = there.fleet(4)
    assert send(odd, sums(features=7, classes=5), "m1").status == 200
    for number, device in enumerate(fleet):
        assert send(device, sums(seed=number), "m1").json == {"accepted": True}
    assert (total(there).n, total(there).classes, total(there).features) == (24, 2, 3)
    assert counted(there) == {
        "messages": 3,
        "devices": 3,
        "n": 24,
        "classes": 2,
        "features": 3,
        "apart": 1,
    }


def test_attack_a_device_with_many_windows_is_still_one_device(there: World) -> None:
    """It is devices that are counted, not messages: a talkative odd one is outvoted by two."""
    odd, one, other = there.fleet(3)
    for window in range(20):
        send(odd, sums(features=7, window=window), f"m{window}")
    send(one, sums(seed=1), "m1")
    send(other, sums(seed=2), "m1")
    assert (total(there).n, total(there).features) == (16, 3)
    assert counted(there)["apart"] == 20


def test_kinds_are_kept_apart_and_can_be_asked_for(there: World) -> None:
    """Each has its own sum; one that nobody sent is told as such."""
    one, other = there.fleet(2)
    send(one, sums(seed=1), "m1")
    send(other, sums(seed=2, classes=4), "m1")
    assert total(there, "&classes=2&features=3").n == 8
    assert total(there, "&classes=4&features=3").classes == 4
    reply = there.admin("GET", f"evidence/statistics?backbone={BACKBONE}&classes=9&features=3")
    assert (reply.status, reply.json["what"]) == (404, "no statistics of this backbone")


@pytest.mark.parametrize(
    "query", ["&classes=2", "&features=3", "&classes=0&features=3", "&classes=2&features=99999", "&classes=x"]
)
def test_half_a_kind_is_none(there: World, query: str) -> None:
    """Both numbers, in their range, or 400 with what could be asked for."""
    reply = there.admin("GET", f"evidence/statistics?backbone={BACKBONE}{query}")
    assert (reply.status, reply.json["code"]) == (400, "message-invalid")
    assert reply.json["expected"].startswith("a whole number from 1 to ")


def test_of_two_kinds_with_as_many_devices_the_first_is_summed(there: World) -> None:
    """Whichever is asked for again gives the same: the sum does not flicker."""
    one, other = there.fleet(2)
    send(other, sums(classes=4), "m1")
    send(one, sums(), "m1")
    assert [total(there).classes for _ in range(3)] == [4, 4, 4]


def test_a_published_bundle_says_what_its_backbone_is(there: World) -> None:
    """Its own statistics do; of that backbone no other kind is taken, from however many devices."""
    there.publish("1.0.0", reference=sums().to_bytes())
    fleet = there.fleet(3)
    for device in fleet:
        reply = send(device, sums(features=7), "m1")
        assert (reply.status, reply.json["code"]) == (422, "evidence-refused")
        assert reply.json["expected"] == f"2 classes, 3 features (the published bundles' {REFERENCE})"
        assert reply.json["got"] == "2 classes, 7 features"
    assert counted(there) is None
    assert send(fleet[0], sums(), "m2").json == {"accepted": True}
    assert total(there).n == 8


def test_attack_what_was_sent_before_its_bundle_came_does_not_become_the_sum(there: World) -> None:
    """Three odd devices were first; then the release is published, and one honest device is heard."""
    fleet = there.fleet(4)
    for device in fleet[:3]:
        send(device, sums(features=7), "m1")
    there.publish("1.0.0", reference=sums().to_bytes())
    assert counted(there) is None
    reply = there.admin("GET", f"evidence/statistics?backbone={BACKBONE}")
    assert reply.status == 404
    send(fleet[3], sums(), "m1")
    assert (total(there).n, total(there).features) == (8, 3)
    assert (counted(there)["devices"], counted(there)["apart"]) == (1, 3)


def test_two_heads_on_one_backbone_have_a_sum_each(there: World) -> None:
    """Releases with other classes may share the backbone: both kinds are taken, the newest release's is summed."""
    there.publish("1.0.0", reference=sums().to_bytes())
    there.clock.advance(60)
    there.publish("2.0.0", reference=sums(classes=4).to_bytes())
    one, other = there.fleet(2)
    assert send(one, sums(), "m1").status == 200
    assert total(there).classes == 2  # there is none of the newer yet
    assert send(other, sums(classes=4), "m1").status == 200
    assert (total(there).classes, total(there, "&classes=2&features=3").classes) == (4, 2)
    assert send(one, sums(classes=3), "m2").status == 422


def test_a_retired_release_is_still_known(there: World) -> None:
    """Devices may run it yet: their sums count, and others' of another kind do not."""
    there.publish("1.0.0", reference=sums().to_bytes())
    there.publish("2.0.0", retire=(f"watch/1.0.0/{CLASS}.esb",))
    device = there.enrol("d0")
    assert send(device, sums(), "m1").status == 200
    assert send(device, sums(features=7), "m2").status == 422


@pytest.mark.parametrize("blob", [b"", b"garbage" * 100, b"ESTSTAT1" + bytes(40), bytes(MAX_BYTES + 1)])
def test_statistics_of_a_bundle_that_cannot_be_read_decide_nothing(there: World, blob: bytes) -> None:
    """The release is published all the same: whether it serves is for its probe to say."""
    there.publish("1.0.0", reference=blob)
    assert send(there.enrol("d0"), sums(features=7), "m1").status == 200
    assert total(there).features == 7


def test_a_backbone_no_longer_says_what_a_replaced_bundle_said(there: World) -> None:
    """A name that was retired may come back with another content, which is then what is known."""
    there.publish("1.0.0", reference=sums(features=7).to_bytes())
    there.publish("2.0.0", retire=(f"watch/1.0.0/{CLASS}.esb",))
    there.publish("1.0.0", reference=sums().to_bytes())
    device = there.enrol("d0")
    assert send(device, sums(), "m1").status == 200
    assert send(device, sums(features=7), "m2").status == 422


def test_a_window_counts_once_whatever_its_kind(there: World) -> None:
    """A device that changes its mind about a window replaces what it said, instead of counting twice."""
    device = there.enrol("d0")
    send(device, sums(features=7), "m1")
    send(device, sums(), "m2")
    assert counted(there) == {
        "messages": 1,
        "devices": 1,
        "n": 8,
        "classes": 2,
        "features": 3,
        "apart": 0,
    }


def test_kinds_are_bounded_like_everything_a_device_makes_up(tmp_path: Path) -> None:
    """A new kind in every window takes the room of a window, and no more."""
    with world(tmp_path / "hub", settings=Settings(max_windows=4)) as there:
        there.give_root()
        device = there.enrol("d0")
        for number in range(1, 12):
            send(device, sums(window=number, features=number), f"m{number}")
        told = counted(there)
        assert told["messages"] + told["apart"] == 4


def test_bundles_published_before_the_hub_looked_are_looked_at_when_it_starts(tmp_path: Path) -> None:
    """The first schema did not know kinds: after an update the archives on disk say what they are, retired ones too."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        there.publish("1.0.0", reference=sums().to_bytes())
        there.publish("2.0.0", retire=(f"watch/1.0.0/{CLASS}.esb",))
        device = there.enrol("d0")
    back_to_the_first_schema(tmp_path / "hub" / "hub.db")
    with world(tmp_path / "hub") as again:
        again.admin("GET", "fleet")
        device = Device(again, device.id, device.credential)
        assert send(device, sums(features=7), "m1").status == 422
        assert send(device, sums(), "m2").status == 200
    connection = sqlite3.connect(tmp_path / "hub" / "hub.db")
    looked = connection.execute(
        "SELECT path, backbone, classes, features FROM targets ORDER BY path"
    ).fetchall()
    connection.close()
    assert looked == [
        (f"watch/1.0.0/{CLASS}.esb", BACKBONE, 2, 3),
        (f"watch/2.0.0/{CLASS}.esb", "", 0, 0),
    ]


def back_to_the_first_schema(path: Path) -> None:
    """Undoes the later revisions, as a database that an older hub wrote would be."""
    connection = sqlite3.connect(path)
    connection.execute("DROP INDEX ix_targets_backbone")
    for column in ("backbone", "classes", "features"):
        connection.execute(f"ALTER TABLE targets DROP COLUMN {column}")
    connection.execute("UPDATE alembic_version SET version_num = '0001'")
    connection.commit()
    connection.close()


def test_an_archive_that_is_gone_keeps_no_hub_from_starting(tmp_path: Path) -> None:
    """A retired release whose file somebody removed is known by name, and says nothing of its backbone."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        there.publish("1.0.0", reference=sums().to_bytes())
        digest = Digest.of(esb("1.0.0", reference=sums().to_bytes()))
        path = there.hub.artefacts._blobs.path(digest)
        there.publish("2.0.0", retire=(f"watch/1.0.0/{CLASS}.esb",))
        device = there.enrol("d0")
    path.unlink()
    back_to_the_first_schema(tmp_path / "hub" / "hub.db")
    with world(tmp_path / "hub") as again:
        assert send(Device(again, device.id, device.credential), sums(features=7), "m1").status == 200


def test_migrating_a_first_database_keeps_what_is_in_it(tmp_path: Path) -> None:
    """Rows of every table that changes are there afterwards, with nothing known of what is new."""
    path = tmp_path / "hub.db"
    migrate(path)
    back_to_the_first_schema(path)
    connection = sqlite3.connect(path)
    connection.execute(
        "INSERT INTO targets (path, release, hardware_class, digest, size, listed, published_at)"
        " VALUES ('watch/1.0.0/any.esb', 'watch/1.0.0', 'any', ?, 3, 1, 1.5)",
        ("0" * 64,),
    )
    connection.commit()
    connection.close()
    migrate(path)
    connection = sqlite3.connect(path)
    (row,) = connection.execute("SELECT * FROM targets").fetchall()
    connection.close()
    assert row == ("watch/1.0.0/any.esb", "watch/1.0.0", "any", "0" * 64, 3, 1, 1.5, None, None, None)
