"""The order in which the agent writes and tells, and how the installer's steps end."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from device_bundles import HERE, release_name, tiny_bundle
from device_worlds import FaultyDisk, World, archive_of, target

from edgestill.core.digest import Digest
from edgestill.core.errors import (
    AccessError,
    BundleAlteredError,
    BundleError,
    BundleTruncatedError,
    DeadlineError,
    EdgestillError,
    MessageError,
    NotFoundError,
    PathError,
    ProbeError,
    RefusedError,
    SpentError,
    TrustError,
    UnreachableError,
)
from edgestill.core.wire import Health
from edgestill.device.events import (
    Assigned,
    Booted,
    Clear,
    Confirm,
    Download,
    Downloaded,
    EngineDied,
    Failed,
    Hindered,
    Probe,
    Probed,
    Retried,
    Stage,
    Staged,
    Verified,
    Verify,
)
from edgestill.device.installer import Installer, verify
from edgestill.device.slots import Slots
from edgestill.device.state import State, Target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A device that serves version 1."""
    one = World(tmp_path / "home", FaultyDisk())
    one.let(Booted())
    one.let(Assigned(1, target(1)))
    one.watch()
    one.outbox.delivered(report.id for report in one.outbox.waiting())
    yield one
    one.close()


def refusing_disk(world: World, *, lasting: bool = True) -> FaultyDisk:
    """Lets the world's disk refuse from now on."""
    disk = world.slots.disk
    assert isinstance(disk, FaultyDisk)
    disk.at, disk.fault, disk.lasting = len(disk.operations), "ENOSPC", lasting
    return disk


def test_the_state_is_written_before_anything_is_done(world: World) -> None:
    """And a state that has not changed is not written again."""
    disk = world.slots.disk
    assert isinstance(disk, FaultyDisk)
    before = len(disk.operations)
    effects = world.agent.handle(Assigned(2, target(2)))
    assert disk.operations[before:] == ["write state.json"]
    assert effects == (Clear("b"), Download("b", target(2), target(1)))
    assert world.agent.handle(Retried()) == (Download("b", target(2), target(1)),)
    assert len(disk.operations) == before + 1


def test_a_step_forward_that_cannot_be_written_does_not_happen(world: World) -> None:
    """The old state holds, in memory as on disk, and the step may be tried again."""
    disk = refusing_disk(world, lasting=False)
    before = world.agent.state
    assert world.agent.handle(Assigned(2, target(2))) == ()
    assert world.agent.state == before
    disk.at = None
    assert world.agent.handle(Assigned(2, target(2))) != ()


def test_a_switch_that_cannot_be_written_does_not_happen(world: World) -> None:
    """Otherwise a restart would serve something else than the process before it did."""
    world.agent.handle(Assigned(2, target(2)))
    for event in (Downloaded, Verified, Staged):
        world.agent.handle(event(target(2).digest))
    refusing_disk(world)
    assert world.agent.handle(Probed(target(2).digest)) == ()
    assert (world.agent.state.active, world.agent.state.phase) == ("a", "probing")


def test_a_fall_back_happens_whatever_the_disk_says(world: World) -> None:
    """It is written as soon as the disk takes it."""
    world.let(Assigned(2, target(2)))
    assert world.agent.state.phase == "watching"
    disk = refusing_disk(world)
    world.bad.add(target(2).digest)
    world.let(EngineDied("b", "x"))
    assert world.serving == target(1)
    assert Slots.open(world.slots.folder).load().active == "b"
    disk.at = None
    world.agent.flush()
    assert Slots.open(world.slots.folder).load().active == "a"


def test_reports_that_cannot_be_kept_are_kept_later(world: World) -> None:
    """A fall-back is told once the outbox takes it."""
    world.let(Assigned(2, target(2)))
    world.bad.add(target(2).digest)
    world.outbox._connection.execute("PRAGMA query_only = ON")
    world.let(EngineDied("b", "x"))
    assert world.serving == target(1)
    world.agent.flush()
    world.outbox._connection.execute("PRAGMA query_only = OFF")
    assert "watch/1.0.2 fell-back" not in world.told()
    world.agent.flush()
    assert "watch/1.0.2 fell-back" in world.told()


def test_figures_are_kept_with_their_release(world: World) -> None:
    """Or lost where the disk refuses them: they must not pile up in memory."""
    world.agent.tell_health(target(1), Health(answers=3), id_="h1", at=5.0)
    (report,) = world.outbox.waiting()
    assert (report.id, report.release, report.bundle, report.at) == (
        "h1",
        "watch/1.0.1",
        str(target(1).digest),
        5.0,
    )
    world.outbox._connection.execute("PRAGMA query_only = ON")
    world.agent.tell_health(target(1), Health(answers=4), id_="h2", at=6.0)
    world.outbox._connection.execute("PRAGMA query_only = OFF")
    world.agent.flush()
    assert world.outbox.count() == 1


def test_reports_of_different_steps_have_different_ids(world: World) -> None:
    """And the same step always the same."""
    world.let(Assigned(2, target(2)))
    first = [report.id for report in world.outbox.waiting()]
    assert len(set(first)) == len(first) == 4
    assert all(len(one) == 40 for one in first)


def installer(
    slots: Slots, *, fetch: Callable[..., None] | None = None, probe: Callable[..., None] | None = None
) -> Installer:
    """An installer whose network and probe do nothing, unless told."""
    return Installer(
        slots, fetch=fetch or (lambda *_, **__: None), probe=probe or (lambda *_: None), hardware_class=HERE
    )


def raising(error: BaseException) -> Callable[..., None]:
    """Something that fails."""

    def fail(*_: object, **__: object) -> None:
        raise error

    return fail


@pytest.mark.parametrize("kind", [UnreachableError, DeadlineError, RefusedError, SpentError, NotFoundError])
def test_what_may_pass_does_not_count(kind: type[EdgestillError], tmp_path: Path) -> None:
    """The network, a busy hub, a budget that is spent until tomorrow."""
    slots = Slots.open(tmp_path)
    end = installer(slots, fetch=raising(kind("no"))).perform(Download("b", target(2), None))
    assert isinstance(end, Hindered)
    assert not end.counts


@pytest.mark.parametrize(
    "error", [PathError("full"), OSError(28, "full"), TrustError("bytes"), AccessError("who")]
)
def test_what_must_not_go_on_for_ever_counts(error: Exception, tmp_path: Path) -> None:
    """A full disk, bytes that nobody signed."""
    slots = Slots.open(tmp_path)
    end = installer(slots, fetch=raising(error)).perform(Download("b", target(2), None))
    assert isinstance(end, Hindered)
    assert end.counts


def test_a_bug_in_a_step_does_not_end_the_installer(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """It is logged, and counted, so that it cannot go on for ever."""
    slots = Slots.open(tmp_path)
    end = installer(slots, fetch=raising(ZeroDivisionError("x"))).perform(Download("b", target(2), None))
    assert end == Hindered(target(2).digest, "a bug: ZeroDivisionError('x')", counts=True)
    assert "ZeroDivisionError" in caplog.text


def test_a_probe_that_fails_ends_the_installation(tmp_path: Path) -> None:
    """No repetition makes wrong answers right."""
    slots = Slots.open(tmp_path)
    end = installer(slots, probe=raising(ProbeError("wrong"))).perform(Probe("b", target(2)))
    assert end == Failed(target(2).digest, f"[probe-failed] wrong; {ProbeError.remedy}")
    assert installer(slots).perform(Probe("b", target(2))) == Probed(target(2).digest)


def test_an_archive_that_is_there_is_not_fetched_again(tmp_path: Path) -> None:
    """After a kill between the download and its report, for example."""
    slots = Slots.open(tmp_path)
    slots.archive("b", target(2)).write_bytes(archive_of(2))
    end = installer(slots, fetch=raising(AssertionError())).perform(Download("b", target(2), None))
    assert end == Downloaded(target(2).digest)


@pytest.mark.parametrize(("slot", "other"), [("a", "b"), ("b", "a")])
def test_a_patch_starts_from_the_other_slot(slot: str, other: str, tmp_path: Path) -> None:
    """The base is what serves there."""
    slots = Slots.open(tmp_path)
    asked: list[object] = []
    one = installer(slots, fetch=lambda wanted, **how: asked.append((wanted, how["to"], how["base"])))
    one.perform(Download("a" if slot == "a" else "b", target(2), target(1)))
    base = slots.folder / other / f"{target(1).digest.hex}.esb"
    assert asked == [(target(2), slots.folder / slot / f"{target(2).digest.hex}.esb", (target(1), base))]


def test_staging_writes_the_record(tmp_path: Path) -> None:
    """And a disk that refuses hinders it."""
    slots = Slots.open(tmp_path)
    slots.archive("b", target(2)).write_bytes(archive_of(2))
    assert installer(slots).perform(Stage("b", target(2), 7)) == Staged(target(2).digest)
    record = slots.record("b")
    assert record is not None
    assert (record.counter, record.confirmed) == (7, False)
    full = Slots.open(tmp_path, disk=FaultyDisk(0, "ENOSPC"))
    end = installer(full).perform(Stage("b", target(2), 8))
    assert isinstance(end, Hindered)
    assert end.counts


def test_chores_that_fail_are_only_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The next installation clears up."""
    slots = Slots.open(tmp_path)
    slots.archive("b", target(2)).write_bytes(archive_of(2))
    slots.stage("b", target(2), 1)
    full = installer(Slots.open(tmp_path, disk=FaultyDisk(0, "ENOSPC", lasting=True)))
    assert full.perform(Clear("b")) is None
    assert full.perform(Confirm("b")) is None
    assert caplog.text.count("No space left on device") == 2
    assert installer(slots).perform(Confirm("b")) is None
    record = slots.record("b")
    assert record is not None
    assert record.confirmed


def written(path: Path, archive: bytes, *, name: str = release_name("1.0.0")) -> tuple[Path, Target]:
    """An archive on disk, and the target that lists it."""
    path.write_bytes(archive)
    return path, Target(name=name, digest=Digest.of(archive), size=len(archive))


def test_a_whole_bundle_for_this_device_is_verified(tmp_path: Path) -> None:
    """Of its own hardware class, or of any."""
    archive, wanted = written(tmp_path / "x.esb", tiny_bundle())
    verify(archive, wanted, hardware_class=HERE)
    archive, wanted = written(
        tmp_path / "y.esb", tiny_bundle(hardware_class="any"), name="tiny/1.0.0/any.esb"
    )
    verify(archive, wanted, hardware_class=HERE)


def test_verification_is_a_step_of_the_installation(tmp_path: Path) -> None:
    """A good one goes on, a bad one ends it."""
    slots = Slots.open(tmp_path)
    data = tiny_bundle()
    wanted = Target(name=release_name("1.0.0"), digest=Digest.of(data), size=len(data))
    end = installer(slots).perform(Verify("b", wanted))
    assert isinstance(end, Failed)
    assert "the archive is not the target" in end.reason
    slots.archive("b", wanted).write_bytes(data)
    assert installer(slots).perform(Verify("b", wanted)) == Verified(wanted.digest)


CASES: list[tuple[bytes, type[EdgestillError], str]] = [
    (tiny_bundle(hardware_class="sparc-base-abacus"), BundleError, "for another hardware class"),
    (tiny_bundle()[:-4096], BundleTruncatedError, "ends too early"),
    (b"no archive" * 200, BundleError, "not a bundle"),
    (tiny_bundle(blobs={"policy.json": b"[]"}), MessageError, "not a JSON object"),
    (tiny_bundle("1.0.1"), BundleError, "a bundle under another name"),
]


@pytest.mark.parametrize(("data", "kind", "reason"), CASES)
def test_attack_what_the_publisher_signed_by_mistake_is_refused(
    data: bytes, kind: type[EdgestillError], reason: str, tmp_path: Path
) -> None:
    """A good signature does not make a bundle of it."""
    name = "tiny/1.0.0/sparc-base-abacus.esb" if b"sparc" in data else release_name("1.0.0")
    archive, wanted = written(tmp_path / "x.esb", data, name=name)
    with pytest.raises(kind, match=reason):
        verify(archive, wanted, hardware_class=HERE)


def test_attack_a_blob_that_does_not_match_its_digest_is_refused(tmp_path: Path) -> None:
    """The archive's digest is as listed, the blob's is not as its manifest says."""
    data = tiny_bundle()
    altered = data.replace(b"# tiny\n", b"# evil\n")
    assert altered != data
    archive, wanted = written(tmp_path / "x.esb", altered)
    with pytest.raises(BundleAlteredError, match=r"card\.md was altered"):
        verify(archive, wanted, hardware_class=HERE)


def test_a_new_device_waits(tmp_path: Path) -> None:
    """Nothing serves, nothing is done, nothing is told."""
    world = World(tmp_path / "home")
    assert world.agent.handle(Booted()) == ()
    assert world.agent.state == State()
    assert world.told() == []
    world.close()
