"""What the courier takes for a turn at voting, and how a ballot reaches the hub: signed, listed by the publisher itself, new, in time, within the budget."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from device_bundles import HERE, MemoryTransport, TinyHub, release_name, tiny_bundle
from device_families import TARGET as FAMILY
from device_families import family
from device_votes import ARCHIVE, TARGET, proxy_set

from edgestill.core.digest import Digest
from edgestill.core.errors import RefusedError, SpentError, TrustError
from edgestill.core.release import MAX_COUNTER, Turn, proxy_name
from edgestill.device.courier import Courier
from edgestill.device.home import Identity
from edgestill.device.jobs import PROXY_SETS, Job, Jobs
from edgestill.device.outbox import Outbox
from edgestill.link.control import ControlClient
from edgestill.link.ledger import Ledger
from edgestill.testing.clock import FakeClock
from edgestill.trust import assignment as assignments
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import SigningKey
from edgestill.trust.roles import Delegation

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

URL = "http://127.0.0.1:1"


class Taken:
    """Remembers what was offered, as `device.voting` does."""

    def __init__(self) -> None:
        self.seen = 0
        self.offered: list[Job | None] = []

    def offer(self, job: Job | None) -> None:
        """The next word."""
        self.offered.append(job)
        self.seen = self.seen if job is None else max(self.seen, job.place)

    def stop(self, _: float) -> None:
        """Nothing runs."""


class Device:
    """A device that polls a hub in memory."""

    def __init__(self, hub: TinyHub, clock: FakeClock, folder: Path, ledger: Ledger | None = None) -> None:
        self.taken, self.timed = Taken(), Taken()
        self.outbox = Outbox.open(folder / "outbox.db")
        transport = MemoryTransport(hub)
        control = ControlClient(transport, URL, credential=hub.secret, timeout=5)
        trusted = TrustedClient(
            KeptMetadata(folder / "tuf"), root=hub.repository.root, fetch=control.artefact, clock=clock
        )
        self.courier = Courier(
            Identity(device="d1", credential=hub.secret, hub=URL, hardware_class=HERE, interval=3.0),
            control=control,
            trusted=trusted,
            transport=transport,
            clock=clock,
            jobs=Jobs(folder / "timing", lambda: self.timed),
            turns=Jobs(folder / "votes", lambda: self.taken, archives=PROXY_SETS),
            ledger=ledger,
        )

    def poll(self, seen: int = 0) -> Any:
        """One poll; what is assigned."""
        return self.courier.poll(seen=seen)[0]

    def deliver(self) -> None:
        """Hands over all that waits."""
        while not self.courier.deliver(self.outbox):
            pass


@pytest.fixture
def clock() -> FakeClock:
    """The time of hub and device."""
    return FakeClock()


@pytest.fixture
def hub(clock: FakeClock) -> TinyHub:
    """A hub that lists a bundle, a family and a proxy set, and assigns the bundle."""
    one = TinyHub(clock=clock, assigned=("1.0.0", 1))
    one.repository.publish({release_name("1.0.0"): tiny_bundle("1.0.0"), FAMILY: family(), TARGET: ARCHIVE})
    return one


@pytest.fixture
def device(hub: TinyHub, clock: FakeClock, tmp_path: Path) -> Iterator[Device]:
    """A device of it."""
    one = Device(hub, clock, tmp_path)
    yield one
    one.outbox.close()


def test_a_turn_comes_beside_the_assignment_and_a_job(hub: TinyHub, device: Device, clock: FakeClock) -> None:
    """With digest and size as the publisher signed them; the same poll names all three."""
    hub.asks_for_votes(TARGET, 3)
    hub.measures(FAMILY, 8)
    assert device.poll().counter == 1
    expires = int(clock.now()) + 3600
    digest = Digest.of(ARCHIVE)
    assert device.taken.offered == [
        Job(place=3, target=TARGET, digest=digest, size=len(ARCHIVE), expires=expires)
    ]
    assert [one and one.place for one in device.timed.offered] == [8]
    assert device.poll(1) is None
    hub.vote = None
    device.poll(1)
    assert device.taken.offered[-1] is None
    assert device.timed.offered[-1] is not None


def test_a_device_without_a_turn_loads_nothing(device: Device, tmp_path: Path) -> None:
    """No folder, no thread; but what an earlier run left is looked at."""
    device.poll()
    assert device.taken.offered == []
    (tmp_path / "votes").mkdir()
    device.courier.forget()
    device.poll()
    assert device.taken.offered == [None]


ATTACKS: dict[str, dict[str, Any]] = {
    "another key": {"key": SigningKey.generate()},
    "another device": {"device": "d2"},
    "a replay": {"counter": 2},
    "past its time": {"expires": 1_700_000_000},
    "another epoch": {"epoch": 4},
    "a set that the publisher does not list": {"target": proxy_name("tiny", "6.6.6")},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_a_turn_that_must_not_be_trusted_is_not_taken_up(
    hub: TinyHub, device: Device, attack: str
) -> None:
    """Attack: whatever is wrong with it, assignment and job beside it hold, and another turn is looked at at the next poll."""
    device.taken.seen = 3
    given: dict[str, Any] = {"target": TARGET, "counter": 4} | ATTACKS[attack]
    hub.asks_for_votes(given.pop("target"), given.pop("counter"), **given)
    hub.measures(FAMILY, 8)
    assert device.poll() is not None
    assert (device.taken.offered, len(device.timed.offered)) == ([], 1)
    hub.asks_for_votes(TARGET, 4)
    device.poll(1)
    assert [job and job.place for job in device.taken.offered] == [4]


def test_attack_a_stolen_hub_hands_out_no_samples_of_its_own(
    hub: TinyHub, device: Device, tmp_path: Path
) -> None:
    """Attack: under a listed name it can serve other bytes, which are refused; under another name nothing counts."""
    hub.asks_for_votes(TARGET, 4)
    device.poll()
    job = device.taken.offered[-1]
    assert job is not None
    (path,) = [one for one in hub.repository.files if one.endswith(".esp")]
    other = proxy_set(labels=("low", "high", "middle"))
    hub.repository.files[path] = other[: len(ARCHIVE)].ljust(len(ARCHIVE), b"\0")
    to = tmp_path / "x.esp"
    with pytest.raises(TrustError):
        device.courier.fetch_archive(job, to=to, goes_on=lambda: True)
    assert not to.exists()
    hub.repository.files[path] = ARCHIVE
    device.courier.fetch_archive(job, to=to, goes_on=lambda: True)
    assert to.read_bytes() == ARCHIVE


def test_attack_a_role_lists_no_proxy_set(hub: TinyHub, device: Device) -> None:
    """Attack: what is voted on is the publisher's own word, whatever a delegate signs."""
    key = SigningKey.generate()
    hub.repository.delegate(Delegation(role=HERE, keys=(key.public,), threshold=1, names=()))
    other = proxy_name("tiny", "2.0.0")
    hub.repository.publish_role(HERE, {other: ARCHIVE}, key)
    hub.asks_for_votes(other, 4)
    device.poll()
    assert device.taken.offered == []


def test_attack_neither_kind_of_word_passes_for_another(hub: TinyHub, device: Device) -> None:
    """Attack: a turn cannot have a bundle or a family answered, nor a job a proxy set."""
    for target in (release_name("1.0.0"), FAMILY):
        hub.asks_for_votes(target, 4)
        device.courier.forget()
        device.poll()
    said = Turn(device="d1", counter=4, target=TARGET, expires=2**40, epoch=hub.repository.epoch)
    hub.vote, hub.measure = None, assignments.sign_turn(said, hub.repository.online)
    device.courier.forget()
    device.poll()
    assert (device.taken.offered, device.timed.offered) == ([None], [])


def test_attack_a_stolen_hub_that_counted_to_the_end_is_outlived(hub: TinyHub, device: Device) -> None:
    """Attack: with another key of the hub rounds are counted anew."""
    hub.asks_for_votes(TARGET, MAX_COUNTER)
    device.poll()
    hub.asks_for_votes(TARGET, 1)
    device.poll(1)
    assert len(device.taken.offered) == 1
    hub.repository.rotate(online=True)
    hub.repository.freshen()
    hub.asks_for_votes(TARGET, 1)
    device.poll(1)
    assert device.taken.offered[-1] is not None
    assert device.taken.offered[-1].counter == 1


# Ballots


def test_a_ballot_is_handed_over_once(hub: TinyHub, device: Device) -> None:
    """Under the round's number, with an id and a place; a newer one of the round takes the place of one that waits."""
    device.outbox.put_ballot(3, b"first", at=1.0)
    device.outbox.put_ballot(3, b"second", at=1.0)
    device.outbox.put_ballot(4, b"third", at=1.0)
    device.deliver()
    device.deliver()
    assert [(number, body) for number, _, _, body in hub.ballots] == [("3", b"second"), ("4", b"third")]
    assert hub.ballots[0][2] < hub.ballots[1][2]
    assert hub.ballots[0][1] != hub.ballots[1][1]
    assert device.outbox.ballot() is None


def test_a_ballot_and_sums_are_numbered_in_one_row(device: Device) -> None:
    """So that whatever is newer has the larger number, over restarts too."""
    sums = device.outbox.put_statistics("key", b"sums", at=1.0)
    device.outbox.put_ballot(3, b"ballot", at=1.0)
    waiting = device.outbox.ballot()
    assert waiting is not None
    assert waiting.sequence > sums.sequence
    device.outbox.ballot_delivered(waiting.id)
    device.outbox.put_ballot(3, b"ballot", at=1.0)
    again = device.outbox.ballot()
    assert again is not None
    assert again.sequence > waiting.sequence
    assert again.id != waiting.id


@pytest.mark.parametrize("status", [400, 404, 413, 422])
def test_a_ballot_that_no_hub_will_ever_take_is_dropped(hub: TinyHub, device: Device, status: int) -> None:
    """The round is over, the hub is one of old, or it finds fault with it: nothing else must wait for that."""
    hub.refuse = {"/v1/evidence/votes": status}
    device.outbox.put_ballot(3, b"ballot", at=1.0)
    device.deliver()
    assert (hub.ballots, device.outbox.ballot()) == ([], None)


def test_a_ballot_waits_for_a_hub_that_is_busy(hub: TinyHub, device: Device) -> None:
    """Nothing is lost."""
    hub.refuse = {"/v1/evidence/votes": 503}
    device.outbox.put_ballot(3, b"ballot", at=1.0)
    with pytest.raises(RefusedError):
        device.deliver()
    hub.refuse = {}
    device.deliver()
    assert [body for _, _, _, body in hub.ballots] == [b"ballot"]


def test_a_ballot_counts_towards_the_data_budget(hub: TinyHub, clock: FakeClock, tmp_path: Path) -> None:
    """It waits for a day with room, and what fits into no day is dropped."""
    ledger = Ledger(tmp_path / "budget.json", bytes_per_day=1000, clock=clock, keeps_time=True)
    device = Device(hub, clock, tmp_path, ledger)
    ledger.charge(990)
    device.outbox.put_ballot(3, bytes(100), at=1.0)
    with pytest.raises(SpentError):
        device.deliver()
    clock.advance(86_400)
    device.deliver()
    assert len(hub.ballots) == 1
    device.outbox.put_ballot(4, bytes(1001), at=1.0)
    device.deliver()
    assert (len(hub.ballots), device.outbox.ballot()) == (1, None)
    device.outbox.close()
