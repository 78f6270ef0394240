"""What the courier takes for a timing job: signed for this device, listed by the publisher itself, new, and in time."""

from __future__ import annotations

import errno
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from device_bundles import HERE, MemoryTransport, TinyHub, release_name, tiny_bundle
from device_families import TARGET, family

from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, PathError, SpentError, TrustError
from edgestill.core.release import MAX_COUNTER, Assignment
from edgestill.core.timing import TimingReport
from edgestill.device.courier import Courier
from edgestill.device.home import Identity
from edgestill.device.jobs import JUDGE_PAUSE, Job, Jobs
from edgestill.link.control import ControlClient
from edgestill.link.download import download
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

    from edgestill.device.events import Assigned

URL = "http://127.0.0.1:1"
ARCHIVE, BUNDLE = family(), tiny_bundle("1.0.0")


class Taken:
    """Remembers what was offered, as `device.measuring` does."""

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
        self.taken = Taken()
        self.jobs = Jobs(folder / "timing", lambda: self.taken)
        transport = MemoryTransport(hub)
        control = ControlClient(transport, URL, credential=hub.secret, timeout=5)
        trusted = TrustedClient(
            KeptMetadata(folder / "tuf"), root=hub.repository.root, fetch=control.artefact, clock=clock
        )
        identity = Identity(device="d1", credential=hub.secret, hub=URL, hardware_class=HERE, interval=3.0)
        self.courier = Courier(
            identity,
            control=control,
            trusted=trusted,
            transport=transport,
            clock=clock,
            jobs=self.jobs,
            ledger=ledger,
        )

    def poll(self, seen: int = 0) -> Assigned | None:
        """One poll; what is assigned."""
        return self.courier.poll(seen=seen)[0]


@pytest.fixture
def clock() -> FakeClock:
    """The time of hub and device."""
    return FakeClock()


@pytest.fixture
def hub(clock: FakeClock) -> TinyHub:
    """A hub that lists a bundle and a family, and assigns the bundle."""
    one = TinyHub(clock=clock, assigned=("1.0.0", 1))
    one.repository.publish({release_name("1.0.0"): BUNDLE, TARGET: ARCHIVE})
    return one


@pytest.fixture
def device(hub: TinyHub, clock: FakeClock, tmp_path: Path) -> Iterator[Device]:
    """A device of it."""
    return Device(hub, clock, tmp_path)  # type: ignore[return-value]  # a fixture may return


def test_a_job_comes_beside_the_assignment(hub: TinyHub, device: Device, clock: FakeClock) -> None:
    """With digest and size as the publisher signed them; the same poll names both."""
    hub.measures(TARGET, 3)
    assigned = device.poll()
    assert assigned is not None
    assert assigned.counter == 1
    assert device.taken.offered == [
        Job(
            place=3,
            target=TARGET,
            digest=Digest.of(ARCHIVE),
            size=len(ARCHIVE),
            expires=int(clock.now()) + 3600,
        )
    ]
    assert device.poll(1) is None
    hub.assigned = None
    device.poll(1)
    assert len(device.taken.offered) == 2


def test_a_device_without_a_job_loads_nothing(hub: TinyHub, device: Device, tmp_path: Path) -> None:
    """No folder, no thread; but what an earlier run left is looked at."""
    device.poll()
    assert device.taken.offered == []
    (tmp_path / "timing").mkdir()
    device.courier.forget()
    device.poll()
    assert device.taken.offered == [None]


def test_a_job_that_is_named_no_more_is_withdrawn(hub: TinyHub, device: Device) -> None:
    """Cancelled, or done."""
    hub.measures(TARGET, 3)
    device.poll()
    hub.measure = None
    device.poll(1)
    assert device.taken.offered[-1] is None


ATTACKS: dict[str, dict[str, Any]] = {
    "another key": {"key": SigningKey.generate()},
    "another device": {"device": "d2"},
    "a replay": {"counter": 2},
    "past its time": {"expires": 1_700_000_000},
    "another epoch": {"epoch": 4},
    "not listed": {"target": f"timing/tiny/6.6.6/{HERE}.est"},
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_attack_a_job_that_must_not_be_trusted_is_not_taken_up(
    hub: TinyHub, device: Device, attack: str
) -> None:
    """Whatever is wrong with it, the assignment beside it holds, and another one is looked at at the next poll."""
    device.taken.seen = 3
    given: dict[str, Any] = {"target": TARGET, "counter": 4} | ATTACKS[attack]
    hub.measures(given.pop("target"), given.pop("counter"), **given)
    assert device.poll() is not None
    assert device.taken.offered == []
    hub.measures(TARGET, 4)
    device.poll(1)
    assert [job and job.place for job in device.taken.offered] == [4]


def test_attack_a_job_that_is_refused_makes_no_poll_busy(
    hub: TinyHub, device: Device, clock: FakeClock
) -> None:
    """The next polls have nothing new and fetch no list; after a pause it is judged again, and taken where it can be trusted now."""
    other = f"timing/tiny/6.6.6/{HERE}.est"
    hub.measures(other, 4, expires=int(clock.now()) + 40_000)
    assert device.poll() is not None
    hub.served.clear()
    for _ in range(5):
        assert device.poll(1) is None
        clock.advance(JUDGE_PAUSE / 6)
    assert hub.served
    assert {one.partition("?")[0] for one in hub.served} == {"/v1/poll"}
    assert device.courier._etag is not None
    hub.repository.publish({other: ARCHIVE})
    assert device.poll(1) is None
    assert device.taken.offered == []
    clock.advance(JUDGE_PAUSE / 6)
    assert device.poll(1) is None
    assert [job and job.target for job in device.taken.offered] == [other]
    hub.served.clear()
    clock.advance(JUDGE_PAUSE)
    assert device.poll(1) is None
    assert len(device.taken.offered) == len(hub.served) == 1


def test_attack_an_assignment_that_is_refused_hides_no_end_of_a_job(
    hub: TinyHub, device: Device, clock: FakeClock
) -> None:
    """Nor a next job: what cannot be trusted of one word says nothing about the other."""
    hub.measures(TARGET, 3)
    device.poll()
    hub.assigned, hub.measure = ("6.6.6", 2), None
    with pytest.raises(TrustError):
        device.poll(1)
    assert device.taken.offered[-1] is None
    hub.measures(TARGET, 4)
    with pytest.raises(TrustError):
        device.poll(1)
    assert [job and job.place for job in device.taken.offered] == [3, None, 4]
    clock.advance(400 * 86_400)  # no list holds that long
    hub.measure = None
    with pytest.raises(EdgestillError):
        device.poll(2)
    assert device.taken.offered[-1] is None


def test_attack_a_bundle_cannot_be_timed_nor_a_family_run(hub: TinyHub, device: Device) -> None:
    """Each is listed, but under a name that the other kind of word cannot say; nor does a signature for one pass for the other."""
    hub.measures(release_name("1.0.0"), 4)
    device.poll()
    assert device.taken.offered == []
    as_run = Assignment(device="d1", counter=4, target=TARGET, expires=2**40)
    hub.measure = assignments.sign(as_run, hub.repository.online)
    device.courier.forget()
    device.poll()
    assert device.taken.offered == []


def test_attack_a_role_lists_no_family(hub: TinyHub, device: Device) -> None:
    """What is timed is the publisher's own word: a delegate's list of bundles says nothing about it, whatever it signs."""
    key = SigningKey.generate()
    hub.repository.delegate(Delegation(role=HERE, keys=(key.public,), threshold=1, names=()))
    other = f"timing/tiny/2.0.0/{HERE}.est"
    hub.repository.publish_role(HERE, {other: ARCHIVE}, key)
    hub.measures(other, 4)
    device.poll()
    assert device.taken.offered == []


def test_attack_a_stolen_hub_that_counted_to_the_end_is_outlived(hub: TinyHub, device: Device) -> None:
    """With another key of the hub jobs are counted anew, as assignments are; and the two counters are not one."""
    hub.measures(TARGET, MAX_COUNTER)
    assert device.poll() is not None
    hub.measures(TARGET, 1)
    device.poll(1)
    assert len(device.taken.offered) == 1
    hub.repository.rotate(online=True)
    hub.repository.freshen()
    hub.measures(TARGET, 1)
    device.poll(1)
    assert device.taken.offered[-1] is not None
    assert device.taken.offered[-1].counter == 1


def test_a_family_that_is_retired_is_not_taken_up(hub: TinyHub, device: Device) -> None:
    """The list of now decides."""
    hub.repository.publish({}, retire=[TARGET])
    hub.measures(TARGET, 4)
    device.poll()
    assert device.taken.offered == []


def job_of(device: Device) -> Job:
    """The job that it was offered."""
    job = device.taken.offered[-1]
    assert job is not None
    return job


def yes() -> bool:
    """Go on."""
    return True


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
def test_what_is_to_be_timed_gives_way_to_a_release_that_finds_no_room(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """It is removed, whole or in part, and the release is tried once more; a disk that is broken otherwise gets no second try."""
    assigned = device.poll()
    assert assigned is not None
    folder = tmp_path / "timing"
    folder.mkdir()
    for name in ("state.json", "a.est", "b.est.part"):
        (folder / name).write_bytes(b"x")
    tries = 0

    def cramped(*args: Any, **given: Any) -> bool:
        nonlocal tries
        tries += 1
        if (folder / "a.est").exists():
            raise PathError("cannot write", where="x", expected="room", got="none") from OSError(number, "")
        return download(*args, **given)

    monkeypatch.setattr("edgestill.device.courier.download", cramped)
    to = tmp_path / "x.esb"
    if number == errno.EIO:
        with pytest.raises(PathError):
            device.courier.fetch(assigned.target, to=to, base=None)
        assert (tries, (folder / "a.est").exists()) == (1, True)
        return
    device.courier.fetch(assigned.target, to=to, base=None)
    assert to.read_bytes() == BUNDLE
    assert [one.name for one in folder.iterdir()] == ["state.json"]
    assert tries == 2


def test_a_full_disk_with_nothing_to_give_way_is_told_at_once(
    device: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is no second try."""
    assigned, tries = device.poll(), 0
    assert assigned is not None

    def full(*_: Any, **__: Any) -> bool:
        nonlocal tries
        tries += 1
        raise PathError("cannot write", where="x", expected="room", got="none") from OSError(errno.ENOSPC, "")

    monkeypatch.setattr("edgestill.device.courier.download", full)
    with pytest.raises(PathError):
        device.courier.fetch(assigned.target, to=tmp_path / "x.esb", base=None)
    assert tries == 1


def test_the_archive_is_fetched_whole(hub: TinyHub, device: Device, tmp_path: Path) -> None:
    """By the name that the list gives it; other bytes are refused, and no part of them stays."""
    hub.measures(TARGET, 4)
    device.poll()
    to = tmp_path / "x.est"
    device.courier.fetch_archive(job_of(device), to=to, goes_on=yes)
    assert to.read_bytes() == ARCHIVE
    assert hub.served[-1].startswith("/targets/timing/tiny/1.0.0/")
    to.unlink()
    (path,) = [one for one in hub.repository.files if one.endswith(".est")]
    hub.repository.files[path] = ARCHIVE[:-1] + b"x"
    with pytest.raises(TrustError):
        device.courier.fetch_archive(job_of(device), to=to, goes_on=yes)
    assert not to.exists()


def test_what_is_timed_counts_towards_the_data_budget(hub: TinyHub, clock: FakeClock, tmp_path: Path) -> None:
    """It waits for a day that has room for all of it, and puts no release off."""
    ledger = Ledger(
        tmp_path / "budget.json", bytes_per_day=len(ARCHIVE) + 50_000, clock=clock, keeps_time=True
    )
    device = Device(hub, clock, tmp_path, ledger)
    hub.measures(TARGET, 4)
    device.poll()
    ledger.charge(60_000)
    for _ in range(2):
        with pytest.raises(SpentError):
            device.courier.fetch_archive(job_of(device), to=tmp_path / "x.est", goes_on=yes)
    assert not ledger.account().waiting
    clock.advance(86_400)
    hub.repository.freshen()
    device.courier.fetch_archive(job_of(device), to=tmp_path / "x.est", goes_on=yes)
    assert ledger.account().allowance.spent >= len(ARCHIVE)


def test_what_came_of_it_is_told(hub: TinyHub, device: Device) -> None:
    """Twice is once."""
    report = TimingReport(counter=4, archive=Digest.of(ARCHIVE), state="refused", reason="why not")
    device.courier.tell_timing(report)
    device.courier.tell_timing(replace(report, reason="why"))
    assert list(hub.timings.values()) == [report]
