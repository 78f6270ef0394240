"""The client in an honest world: what it fetches, what it keeps, what it knows offline, and what time it thinks it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trust_forging import forge, signed_part
from tuf.ngclient._internal.trusted_metadata_set import TrustedMetadataSet

from edgestill.core.digest import Digest
from edgestill.core.errors import ExpiredError, NotFoundError, PathError, TrustError, UnreachableError
from edgestill.testing.clock import FakeClock
from edgestill.testing.repository import DAY, RepositorySimulator
from edgestill.trust.client import FLOOR_STEP, MAX_NEW_ROOTS, TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.metadata import MAX_BYTES, TargetInfo, target_path

if TYPE_CHECKING:
    from pathlib import Path

ONE = "watch/1.0.0/x86_64-vnni-onnxruntime.esb"
TWO = "watch/2.0.0/x86_64-vnni-onnxruntime.esb"
INFO = TargetInfo(3, Digest.of(b"one"))


@pytest.fixture
def clock() -> FakeClock:
    """What publisher, hub and device go by."""
    return FakeClock()


@pytest.fixture
def repository(clock: FakeClock) -> RepositorySimulator:
    """A repository that lists one bundle."""
    simulator = RepositorySimulator(clock)
    simulator.publish({ONE: b"one"})
    simulator.fetched.clear()
    return simulator


@pytest.fixture
def client(tmp_path: Path, repository: RepositorySimulator, clock: FakeClock) -> TrustedClient:
    """A device that has the first root and nothing else."""
    return _client(tmp_path, repository, clock)


def _client(folder: Path, repository: RepositorySimulator, clock: FakeClock) -> TrustedClient:
    anchor = repository.files["metadata/1.root.json"]
    return TrustedClient(KeptMetadata(folder / "trust"), root=anchor, fetch=repository.fetch, clock=clock)


def _paths(repository: RepositorySimulator) -> list[str]:
    paths = [path.removeprefix("metadata/") for path, _ in repository.fetched]
    repository.fetched.clear()
    return paths


def test_a_refresh_gives_what_the_publisher_lists(
    client: TrustedClient, repository: RepositorySimulator
) -> None:
    """After a refresh a device knows size and digest of what is listed, and so where it lies."""
    client.refresh()
    assert client.target(ONE) == INFO
    assert client.targets() == {ONE: INFO}
    assert repository.fetch(target_path(ONE, INFO.digest), INFO.size) == b"one"


def test_a_new_release_arrives_and_an_old_one_goes(
    client: TrustedClient, repository: RepositorySimulator
) -> None:
    """What is published is listed at the next refresh, and what is retired is refused."""
    client.refresh()
    repository.publish({TWO: b"two"}, retire=[ONE])
    assert client.target(ONE) == INFO, "nothing changes without a refresh"
    client.refresh()
    assert list(client.targets()) == [TWO]
    with pytest.raises(TrustError, match=r"the publisher does not list this target.*watch/1\.0\.0"):
        client.target(ONE)


def test_nothing_is_fetched_twice(
    tmp_path: Path, client: TrustedClient, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """A refresh without news asks for the next root and the timestamp only, after a restart too."""
    client.refresh()
    assert _paths(repository) == ["2.root.json", "timestamp.json", "1.snapshot.json", "1.targets.json"]
    client.refresh()
    assert _paths(repository) == ["2.root.json", "timestamp.json"]
    _client(tmp_path, repository, clock).refresh()
    assert _paths(repository) == ["2.root.json", "timestamp.json"]
    repository.freshen()
    client.refresh()
    assert _paths(repository) == ["2.root.json", "timestamp.json"]
    repository.publish({TWO: b"two"})
    client.refresh()
    assert _paths(repository) == ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"]


def test_every_download_is_bounded(client: TrustedClient, repository: RepositorySimulator) -> None:
    """The longest answer asked for is what metadata pins, or the bound of the role where nothing pins it."""
    client.refresh()
    assert dict(repository.fetched) == {
        "metadata/2.root.json": MAX_BYTES["root"],
        "metadata/timestamp.json": MAX_BYTES["timestamp"],
        "metadata/1.snapshot.json": len(repository.files["metadata/1.snapshot.json"]),
        "metadata/1.targets.json": len(repository.files["metadata/1.targets.json"]),
    }


def test_before_anything_is_published(tmp_path: Path, clock: FakeClock) -> None:
    """A fleet may enrol before the first release: the repository has a root, and no timestamp yet."""
    empty = RepositorySimulator(clock)
    client = _client(tmp_path, empty, clock)
    with pytest.raises(NotFoundError, match=r"timestamp\.json"):
        client.refresh()
    assert client.assignment_keys.keys == (empty.online.public,)


def test_before_the_first_refresh(client: TrustedClient) -> None:
    """Nothing is listed before something was verified."""
    with pytest.raises(TrustError, match=r"nothing is verified yet; .*refresh first"):
        client.target(ONE)
    with pytest.raises(TrustError, match="nothing is verified yet"):
        client.targets()


def test_construction_touches_nothing(
    tmp_path: Path, client: TrustedClient, repository: RepositorySimulator
) -> None:
    """A client that was only made has fetched and written nothing."""
    assert client.now() > 0
    assert repository.fetched == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("root", [b"", b"{}", b"[]", b"\xff"])
def test_a_root_that_is_none_is_refused(tmp_path: Path, clock: FakeClock, root: bytes) -> None:
    """The anchor must be root metadata."""
    with pytest.raises(TrustError, match=r"root\.json"):
        TrustedClient(KeptMetadata(tmp_path), root=root, fetch=lambda _path, _most: b"", clock=clock)


# Offline


def test_restored_without_a_fetch(
    tmp_path: Path, client: TrustedClient, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """After a restart without network a device knows what it knew, until that expires."""
    client.refresh()
    repository.fetched.clear()
    again = _client(tmp_path, repository, clock)
    assert again.restore()
    assert again.targets() == client.targets()
    found = again.find(ONE)
    assert found is not None
    assert (found.role, found.length) == ("targets", again.target(ONE).size)
    assert repository.fetched == []
    clock.advance(DAY)
    assert not _client(tmp_path, repository, clock).restore()
    with pytest.raises(ExpiredError, match=r"timestamp\.json is past its time"):
        again.target(ONE)


def test_nothing_to_restore(client: TrustedClient) -> None:
    """A new device has nothing to restore."""
    assert not client.restore()


@pytest.mark.parametrize("role", ["timestamp", "snapshot", "targets"])
def test_a_damaged_file_is_fetched_again(
    tmp_path: Path, client: TrustedClient, repository: RepositorySimulator, clock: FakeClock, role: str
) -> None:
    """A kept file that was lost or damaged is no reason to trust less or more: it is fetched again."""
    file = tmp_path / "trust" / f"{role}.json"
    for damage in (b"", b"{}", b"\x00" * 100, b"x" * (MAX_BYTES["targets"] + 1), None):
        client.refresh()
        file.unlink() if damage is None else file.write_bytes(damage)
        again = _client(tmp_path, repository, clock)
        assert not again.restore()
        again.refresh()
        assert again.targets() == client.targets()
        assert file.read_bytes().startswith(b'{"signatures"')


def test_a_refresh_that_fails_leaves_what_was_verified(
    client: TrustedClient, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """A hub that cannot be reached takes nothing away before it expires; its error reaches the caller as it is."""
    client.refresh()

    def unreachable(path: str, at_most: int) -> bytes:
        raise UnreachableError("no connection", where=path)

    client._fetch = unreachable
    with pytest.raises(UnreachableError, match="no connection"):
        client.refresh()
    assert client.target(ONE) == INFO
    clock.advance(DAY)
    with pytest.raises(ExpiredError):
        client.target(ONE)


# Roots


def test_roots_are_followed_one_by_one(
    tmp_path: Path, client: TrustedClient, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """A device that slept through changes of every key follows them from the root it was born with, offline too."""
    client.refresh()
    old = client.assignment_keys
    for keys in ({"root": True}, {"online": True}, {"targets": True, "root": True}):
        repository.rotate(**keys)
    repository.freshen()
    client.refresh()
    assert client.target(ONE) == INFO
    assert client.assignment_keys.keys == (repository.online.public,)
    assert client.assignment_keys != old
    assert sorted(path.name for path in (tmp_path / "trust").glob("*.root.json")) == [
        "2.root.json",
        "3.root.json",
        "4.root.json",
    ]
    again = _client(tmp_path, repository, clock)
    repository.fetched.clear()
    assert again.assignment_keys == client.assignment_keys
    assert again.restore()
    assert repository.fetched == []


def test_a_damaged_chain_is_mended(
    tmp_path: Path, client: TrustedClient, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """A kept root that was damaged is fetched again, and those after it too."""
    for _ in range(3):
        repository.rotate(root=True)
    repository.freshen()
    client.refresh()
    (tmp_path / "trust" / "3.root.json").write_bytes(b"{}")
    again = _client(tmp_path, repository, clock)
    repository.fetched.clear()
    again.refresh()
    assert _paths(repository)[:3] == ["3.root.json", "4.root.json", "5.root.json"]
    assert again.target(ONE) == INFO


def test_very_many_roots_take_two_refreshes(client: TrustedClient, repository: RepositorySimulator) -> None:
    """One refresh follows a bounded number of roots; the next one goes on from there."""
    for _ in range(MAX_NEW_ROOTS + 1):
        repository.rotate(online=True)
    repository.freshen()
    with pytest.raises(TrustError, match="timestamp was signed by 0/1 keys"):
        client.refresh()
    client.refresh()
    assert client.target(ONE) == INFO


def test_a_new_root_ends_the_old_trust(client: TrustedClient, repository: RepositorySimulator) -> None:
    """Once a new root is known, nothing verified under the old one counts, until the rest is verified under it."""
    client.refresh()
    revoked = client.assignment_keys
    repository.rotate(online=True)
    with pytest.raises(TrustError, match="timestamp was signed by 0/1 keys"):
        client.refresh()
    with pytest.raises(TrustError, match="nothing is verified yet"):
        client.target(ONE)
    assert client.assignment_keys != revoked
    repository.freshen()
    client.refresh()
    assert client.target(ONE) == INFO


def test_assignment_keys_end_with_their_root(client: TrustedClient, clock: FakeClock) -> None:
    """Nobody assigns under a root that is past its time."""
    assert client.assignment_keys.threshold == 1
    clock.advance(366 * DAY)
    with pytest.raises(ExpiredError, match=r"root\.json is past its time"):
        _ = client.assignment_keys


def test_a_root_that_does_not_say_who_assigns(
    tmp_path: Path, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """An anchor of some other TUF repository lets nobody assign."""
    plain = forge(repository.root, lambda signed: signed.pop("x-edgestill-assignment"), repository.root_keys)
    client = TrustedClient(KeptMetadata(tmp_path), root=plain, fetch=repository.fetch, clock=clock)
    with pytest.raises(TrustError, match="x-edgestill-assignment"):
        _ = client.assignment_keys


# Entries


def test_entries_of_another_kind_are_left_out(client: TrustedClient, repository: RepositorySimulator) -> None:
    """A newer publisher may list what this version does not know; the bundles beside it stay installable."""
    assert repository.targets is not None
    repository.targets = forge(
        repository.targets,
        lambda signed: (
            signed.update(version=2, delegations={"keys": {}, "roles": []}),
            signed["targets"].update({"card.pdf": {"length": 1, "hashes": {"sha512": "00"}}}),
            signed["targets"].update({TWO: {"length": 2**40, "hashes": {"sha256": "00" * 32}}}),
        ),
        [repository.targets_key],
    )
    repository.files["metadata/2.targets.json"] = repository.targets
    repository.freshen()
    client.refresh()
    assert list(client.targets()) == [ONE]
    with pytest.raises(TrustError, match="not a target name"):
        client.target("card.pdf")
    with pytest.raises(TrustError, match="a target's size is out of range"):
        client.target(TWO)


# Time


def test_the_clock_is_the_callers(tmp_path: Path) -> None:
    """Expiry follows the clock that was handed in, whatever this machine's own clock says."""
    for year in (5, 40, 130):
        clock = FakeClock(now=year * 365 * DAY)
        repository = RepositorySimulator(clock)
        repository.publish({ONE: b"one"})
        client = _client(tmp_path / str(year), repository, clock)
        client.refresh()
        assert client.target(ONE) == INFO
        clock.advance(DAY)
        with pytest.raises(ExpiredError):
            client.refresh()


def test_the_library_still_takes_the_time_from_outside() -> None:
    """The one internal attribute we set is still the one by which the library judges (ADR 0004)."""
    source = TrustedMetadataSet.__init__.__code__.co_names
    assert "reference_time" in source
    assert "reference_time" in TrustedMetadataSet.update_timestamp.__code__.co_names
    assert "reference_time" in TrustedMetadataSet._check_final_timestamp.__code__.co_names
    assert "reference_time" in TrustedMetadataSet._check_final_snapshot.__code__.co_names
    assert "reference_time" in TrustedMetadataSet.update_delegated_targets.__code__.co_names


def test_a_flat_battery_does_not_turn_back_time(
    tmp_path: Path, client: TrustedClient, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """Attack: a clock set back, by a flat battery or by hand, does not make expired metadata good again."""
    client.refresh()
    clock.advance(DAY / 2)
    client.refresh()
    at = clock.now()
    clock.jump(-20 * 365 * DAY)
    assert client.now() == at
    again = _client(tmp_path, repository, clock)
    assert again.now() == at
    again.refresh()
    assert again.target(ONE) == INFO


def test_the_floor_is_not_written_at_every_refresh(
    tmp_path: Path, client: TrustedClient, clock: FakeClock
) -> None:
    """Flash wears out: the kept floor lags by an hour at most, the one in memory not at all."""
    floors = set()
    for _ in range(8):
        client.refresh()
        floors.add((tmp_path / "trust" / "clock.json").read_bytes())
        clock.advance(FLOOR_STEP / 4)
    assert len(floors) == 2


def test_a_clock_far_ahead_does_not_lock_a_device_out(client: TrustedClient, clock: FakeClock) -> None:
    """Attack: a forged time far ahead makes refreshes fail, but once the time is right again all is well."""
    client.refresh()
    clock.jump(50 * 365 * DAY)
    with pytest.raises(ExpiredError):
        client.refresh()
    clock.jump(-50 * 365 * DAY)
    client.refresh()
    assert client.target(ONE) == INFO
    assert client.now() == clock.now()


@given(jumps=st.lists(st.floats(-3 * DAY, 3 * DAY), max_size=10))
@settings(max_examples=25)
def test_time_leads_by_a_lifetime_at_most(
    tmp_path_factory: pytest.TempPathFactory, jumps: list[float]
) -> None:
    """However the clock jumps, a device's time never falls, and never leads the truth by more than a lifetime."""
    truth, clock = FakeClock(), FakeClock()
    repository = RepositorySimulator(truth, lifetime=DAY)
    repository.publish({ONE: b"one"})
    folder = tmp_path_factory.mktemp("time")
    client = _client(folder, repository, clock)
    last = 0.0
    for jump in jumps:
        clock.jump(truth.now() + jump - clock.now())
        try:
            client.refresh()
        except ExpiredError:
            continue
        assert client.now() >= last
        assert client.now() - truth.now() < DAY
        last = client.now()


@pytest.mark.parametrize(
    "content", [b"", b"{}", b"[]", b'{"floor": "x"}', b'{"floor": -1}', b'{"floor": 1e12}']
)
def test_a_damaged_floor_is_no_floor(
    tmp_path: Path, client: TrustedClient, clock: FakeClock, content: bytes
) -> None:
    """A floor that cannot be read neither stops the device nor sends it into the far future."""
    (tmp_path / "trust").mkdir()
    (tmp_path / "trust" / "clock.json").write_bytes(content)
    assert client.now() == clock.now()


# The folder


def test_a_folder_that_cannot_be_used(
    tmp_path: Path, repository: RepositorySimulator, clock: FakeClock
) -> None:
    """A file where the folder should be is told with its path."""
    (tmp_path / "trust").write_bytes(b"")
    with pytest.raises(PathError, match=r"cannot keep metadata here; at .*trust"):
        _client(tmp_path, repository, clock).refresh()


def test_a_kept_file_that_cannot_be_read(tmp_path: Path, client: TrustedClient) -> None:
    """A folder where a file should be is told, and not taken for a missing file."""
    (tmp_path / "trust" / "timestamp.json").mkdir(parents=True)
    with pytest.raises(PathError, match=r"cannot keep metadata here; at .*timestamp\.json"):
        client.restore()


def test_what_a_kill_left_is_swept(tmp_path: Path, client: TrustedClient) -> None:
    """Half-written files of a former life do not pile up."""
    folder = tmp_path / "trust"
    folder.mkdir()
    (folder / ".timestamp.json.abc123").write_bytes(b"half")
    client.refresh()
    assert not list(folder.glob(".*"))


def test_metadata_is_kept_as_it_came(
    tmp_path: Path, client: TrustedClient, repository: RepositorySimulator
) -> None:
    """What is on disk is byte for byte what was served, so that its hashes stay true."""
    client.refresh()
    for kept, served in (("timestamp", "timestamp"), ("snapshot", "1.snapshot"), ("targets", "1.targets")):
        assert (tmp_path / "trust" / f"{kept}.json").read_bytes() == repository.files[
            f"metadata/{served}.json"
        ]
    assert signed_part((tmp_path / "trust" / "targets.json").read_bytes())["version"] == 1
