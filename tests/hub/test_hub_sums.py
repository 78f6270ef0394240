"""Which sums of devices count: of what kind they may be, and what one odd device can do to the others (nothing)."""

from __future__ import annotations

import asyncio
import functools
import operator
import sqlite3
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from hub_worlds import CLASS, URL, Device, Reply, World, esb, sums, world
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import insert

from edgestill.core.digest import Digest
from edgestill.core.errors import UnreachableError
from edgestill.core.manifest import REFERENCE
from edgestill.device.outbox import Outbox
from edgestill.hub import sums as intake
from edgestill.hub import tables
from edgestill.hub.database import Database
from edgestill.hub.settings import Settings
from edgestill.learn.statistics import MAX_BYTES, Statistics
from edgestill.link.control import ControlClient

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.protocols import Request, Response

BACKBONE = str(Digest.of(b"backbone"))


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root, and nothing published."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        yield made


def send(device: Device, message: Statistics, id_: str, sequence: object = None) -> Reply:
    """Sends statistics, numbered where a number is given."""
    numbered = {} if sequence is None else {"x_edgestill_sequence": str(sequence)}
    return device.call(
        "POST",
        "/v1/evidence/statistics",
        message.to_bytes("float64"),
        x_edgestill_id=id_,
        **numbered,
    )


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


# In which order


@pytest.mark.parametrize("numbers", [(None, None), (1, 2), (None, 1)])
def test_a_window_begun_anew_replaces_what_was_larger(there: World, numbers: tuple[int | None, ...]) -> None:
    """After a confirmed drift a device sends fewer samples of the same window: those count, and nothing is added."""
    device = there.enrol("d0")
    many, few = sums(samples=400, seed=1), sums(samples=20, seed=2)
    assert send(device, many, "m1", numbers[0]).json == {"accepted": True}
    assert send(device, few, "m2", numbers[1]).json == {"accepted": True}
    assert total(there).n == 20
    assert (total(there).a == few.a).all()
    grown = few + sums(samples=30, seed=3)
    assert send(device, grown, "m3", 9).json == {"accepted": True}
    assert total(there).n == 50


def test_a_late_message_does_not_replace_a_newer_one(there: World) -> None:
    """The device gave up waiting and sent the next; then the network delivers the first, and once more."""
    device = there.enrol("d0")
    old, new = sums(samples=400, seed=1), sums(samples=20, seed=2)
    assert send(device, new, "m2", 2).json == {"accepted": True}
    for _ in range(2):
        assert send(device, old, "m1", 1).json["accepted"] is False
    assert total(there).n == 20
    assert send(device, new, "m2", 2).json["accepted"] is False
    assert send(device, sums(samples=8), "m3", 3).json == {"accepted": True}
    assert total(there).n == 8


def test_the_same_sum_sent_again_later_is_the_newest(there: World) -> None:
    """From a to b and back to a: under an id of its own the second a counts, though its bytes were here before."""
    device = there.enrol("d0")
    one, other = sums(seed=1), sums(seed=2)
    for number, message in enumerate((one, other, one)):
        assert send(device, message, f"m{number}", number).json == {"accepted": True}
    assert (total(there).a == one.a).all()


def test_a_late_message_is_known_as_late_after_its_time_to_be_remembered(tmp_path: Path) -> None:
    """Ids are forgotten after a month, places are not: what counts still says which."""
    with world(tmp_path / "hub", settings=Settings(keep_reports=3600)) as there:
        there.give_root()
        device = there.enrol("d0")
        send(device, sums(samples=400), "m1", 1)
        send(device, sums(samples=20), "m2", 2)
        there.clock.advance(86_400)
        device.poll()
        assert send(device, sums(samples=400), "m1", 1).json["accepted"] is False
        assert total(there).n == 20


def test_places_are_of_one_device_and_window(there: World) -> None:
    """What is late for one window, or one device, is not late for another."""
    one, other = there.fleet(2)
    send(one, sums(window=1), "m9", 9)
    assert send(one, sums(window=2), "m1", 1).json == {"accepted": True}
    assert send(one, sums(backbone="other"), "m2", 2).json == {"accepted": True}
    assert send(other, sums(window=1), "m1", 1).json == {"accepted": True}
    assert total(there).n == 24


def test_a_device_that_numbers_nothing_is_understood(there: World) -> None:
    """As before there were numbers: the last to arrive counts, also after it was updated, and after it was set back."""
    device = there.enrol("d0")
    for number, sequence in enumerate((None, None, 5, None, 6)):
        message = sums(samples=8 + number, seed=number)
        assert send(device, message, f"m{number}", sequence).json == {"accepted": True}
        assert total(there).n == message.n


@pytest.mark.parametrize("told", ["", "-1", "1.0", "x", "9007199254740992", "1" * 400, "0x10", "1 2"])
def test_a_place_that_is_none_is_refused(there: World, told: str) -> None:
    """With 400 and what it may be; the message is not taken as unnumbered."""
    reply = send(there.enrol("d0"), sums(), "m1", told)
    assert (reply.status, reply.json["where"]) == (400, "x-edgestill-sequence")
    assert reply.json["expected"] == "a whole number from 0 to 9007199254740991"
    assert counted(there) is None


def test_attack_the_largest_place_silences_only_who_claims_it(there: World) -> None:
    """A device that jumps to the end of the numbers hears that later ones are late; others and other windows go on."""
    liar, honest = there.fleet(2)
    send(liar, sums(), "m1", 2**53 - 1)
    assert send(liar, sums(seed=2), "m2", 5).json["accepted"] is False
    assert send(liar, sums(window=2), "m3", 6).json == {"accepted": True}
    assert send(honest, sums(), "m1", 1).json == {"accepted": True}


arrivals = st.lists(
    st.tuples(st.integers(0, 1), st.integers(1, 2), st.integers(0, 6)), max_size=14, unique=True
)


@settings(max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(sent=arrivals, shuffled=st.randoms(use_true_random=False))
def test_numbered_messages_in_any_order_and_number_make_one_sum(
    tmp_path_factory: pytest.TempPathFactory, sent: list[tuple[int, int, int]], shuffled: Any
) -> None:
    """Each twice, shuffled: of each device and window the largest number counts, however many samples it holds."""
    mixed = [*sent, *sent]
    shuffled.shuffle(mixed)
    sizes = {key: shuffled.randint(1, 60) for key in sent}
    newest: dict[tuple[int, int], int] = {}
    for device, window, place in sent:
        newest[device, window] = max(newest.get((device, window), 0), place)

    async def play() -> Any:
        base = Database.open(tmp_path_factory.mktemp("hub") / "hub.db")
        async with base.write() as connection:
            for number in range(2):
                await connection.execute(insert(tables.devices).values(**a_device(f"d{number}")))
            for key in mixed:
                await intake.keep(connection, message(*key, sizes[key]), now=1e9, settings=Settings())
            found = await intake.counts(connection)
        await base.close()
        return found.get(BACKBONE)

    found = asyncio.run(play())
    if not sent:
        assert found is None
        return
    wanted = sum(sizes[device, window, place] for (device, window), place in newest.items())
    assert (found["messages"], found["n"]) == (len(newest), wanted)


def a_device(name: str) -> dict[str, Any]:
    """A row of the fleet."""
    about = {"hardware_class": CLASS, "labels": {}, "join_token": "t", "enrolled_at": 1.0}
    return {"id": name, "credential": name, **about}


def message(device: int, window: int, place: int, samples: int) -> intake.Message:
    """A numbered message."""
    parsed = sums(window=window, samples=samples)
    return intake.Message(
        device=f"d{device}", id=f"{window}-{place}", sequence=place, parsed=parsed, body=parsed.to_bytes()
    )


turns = st.lists(
    st.sampled_from(["more", "anew", "next window", "send", "send late", "arrive", "restart"]), max_size=25
)


@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(turns=turns, chance=st.randoms(use_true_random=False))
def test_what_a_device_told_last_is_what_the_hub_counts_whatever_the_network_does(
    tmp_path_factory: pytest.TempPathFactory, turns: list[str], chance: Any
) -> None:
    """The real outbox, client and hub: windows grow, shrink and end, calls hang and arrive later in any order, or twice."""
    folder = tmp_path_factory.mktemp("place")
    with world(folder / "hub") as there:
        there.give_root()
        device = there.enrol("d0")
        network = Delaying(there)
        client = ControlClient(network, URL, credential=device.credential)
        box, window = Outbox.open(folder / "outbox.db"), 1
        told: dict[int, Statistics] = {}
        for turn in [*turns, "more"]:
            match turn:
                case "more" | "anew":
                    before = told.get(window) if turn == "more" else None
                    some = sums(window=window, samples=chance.randint(1, 40), seed=chance.randint(0, 99))
                    told[window] = some if before is None else before + some
                    box.put_statistics(f"w{window}", told[window].to_bytes("float64"), at=there.clock.now())
                case "next window":
                    window += 1
                case "send" | "send late":
                    network.hangs = turn == "send late"
                    deliver(client, box)
                case "arrive":
                    network.arrive(chance)
                case "restart":
                    box.close()
                    box = Outbox.open(folder / "outbox.db")
        network.hangs = False
        while box.statistics() is not None:
            deliver(client, box)
        network.arrive(chance)
        box.close()
        whole = functools.reduce(operator.add, told.values())
        found = total(there)
        assert found.n == whole.n
        assert np.allclose(found.a, whole.a)


def deliver(client: ControlClient, box: Outbox) -> None:
    """As the courier does with one message that waits."""
    first = box.statistics()
    if first is not None:
        with suppress(UnreachableError):
            client.statistics(first.id, first.body, sequence=first.sequence)
            box.statistics_delivered(first.id)


class Delaying:
    """A way to the hub that may hang: the caller hears nothing, and the call arrives at some later time."""

    def __init__(self, there: World) -> None:
        self.hangs = False
        self._there = there
        self._late: list[Request] = []

    def send(self, request: Request, *, timeout: float) -> Response:
        """Carries a request, now or later; now means that it may arrive a second time, too."""
        self._late.append(request)
        if self.hangs:
            raise UnreachableError("nothing was heard", where=request.url)
        return self._there.transport.send(request, timeout=timeout)

    def arrive(self, chance: Any) -> None:
        """All that is under way arrives, in some order."""
        chance.shuffle(self._late)
        while self._late:
            self._there.transport.send(self._late.pop(), timeout=60).close()


def back_to_the_first_schema(path: Path) -> None:
    """Undoes the later revisions, as a database that an older hub wrote would be."""
    connection = sqlite3.connect(path)
    connection.execute("DROP INDEX ix_targets_backbone")
    connection.execute("DROP INDEX ix_devices_join_token")
    for column in ("backbone", "classes", "features"):
        connection.execute(f"ALTER TABLE targets DROP COLUMN {column}")
    connection.execute("ALTER TABLE statistics DROP COLUMN sequence")
    for column in ("revoked_at", "key", "certified_until", "believes", "issuer"):
        connection.execute(f"ALTER TABLE devices DROP COLUMN {column}")
    for column in ("answers_before", "escalated_before", "errors_before"):
        connection.execute(f"ALTER TABLE members DROP COLUMN {column}")
    connection.execute("ALTER TABLE rollouts DROP COLUMN accepted")
    for table in (
        "operators",
        "audit_log",
        "images",
        "controllers",
        "refusals",
        "ballots",
        "votings",
        "timed",
        "timings",
        "measuring",
    ):  # its triggers go with it
        connection.execute(f"DROP TABLE {table}")
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
