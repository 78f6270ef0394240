"""The publisher's folder: what it signs, how keys change, and what becomes of kills, forks and stale hubs."""

from __future__ import annotations

import contextlib
import itertools
import stat
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgestill.core.bundle import replace
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ConflictError,
    ExpiredError,
    MessageError,
    NotFoundError,
    PathError,
    SettingError,
    TrustError,
)
from edgestill.testing.clock import FakeClock
from edgestill.trust import publisher as module
from edgestill.trust import repository
from edgestill.trust.keys import PublicKey, SigningKey
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.publisher import Lifetimes, Publisher
from edgestill.trust.repository import check_root, check_targets, listed_in

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = FakeClock().now()
SECRET = b"correct horse"
ONE, TWO = "watch/1.0.0/any.esb", "watch/2.0.0/any.esb"
ONLINE = SigningKey.generate()


def info(data: bytes = b"one") -> TargetInfo:
    """Of an archive."""
    return TargetInfo(len(data), Digest.of(data))


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """One whose root and first list are there."""
    made = Publisher.init(tmp_path / "p", SECRET)
    made.sign_root(ONLINE.public, now=NOW)
    made.sign_targets(served=None, add={ONE: info()}, now=NOW)
    return made


def test_a_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """And its keys are locked; another passphrase does not open them, and none neither."""
    made = Publisher.init(tmp_path / "p", SECRET, root_keys=3)
    files = sorted(one.name for one in made.folder.iterdir())
    assert files == ["root-1.pem", "root-2.pem", "root-3.pem", "targets-1.pem"]
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    for name in files:
        assert stat.S_IMODE((made.folder / name).stat().st_mode) == 0o600
        assert b"ENCRYPTED" in (made.folder / name).read_bytes()
    assert len(set(made.keys().values())) == 4
    for wrong in (b"other", None):
        with pytest.raises(TrustError, match=r"a key does not open; at .*root-1.pem"):
            Publisher(made.folder, wrong).keys()


def test_keys_are_never_replaced_by_accident(tmp_path: Path) -> None:
    """Not even where the folder holds something else."""
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(ConflictError, match=r"there is something already.*notes.txt"):
        Publisher.init(tmp_path, None)
    made = Publisher.init(tmp_path / "p", None)
    before = made.keys()
    with pytest.raises(ConflictError):
        Publisher.init(tmp_path / "p", None)
    assert made.keys() == before


@pytest.mark.parametrize("count", [0, 10, -1])
def test_a_number_of_root_keys_out_of_range_is_refused(tmp_path: Path, count: int) -> None:
    """Nothing is made."""
    with pytest.raises(SettingError, match="so many root keys"):
        Publisher.init(tmp_path / "p", None, root_keys=count)
    assert not (tmp_path / "p").exists()


def test_a_folder_without_keys_or_with_other_things_is_told(tmp_path: Path) -> None:
    """A wrong path is the most likely of mistakes."""
    with pytest.raises(PathError, match="not a publisher's folder"):
        Publisher(tmp_path, None).keys()
    (tmp_path / "root-1.pem").write_bytes(b"hello")
    with pytest.raises(MessageError, match=r"root-1.pem"):
        Publisher(tmp_path, None).keys()


@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_a_hub_takes_root_and_list(tmp_path: Path, count: int) -> None:
    """Most of the root keys are needed for the next one."""
    made = Publisher.init(tmp_path / "p", None, root_keys=count)
    root = made.sign_root(ONLINE.public, now=NOW)
    assert check_root(root=root, previous=None, now=NOW).keys == (ONLINE.public,)
    listed = made.sign_targets(served=None, add={ONE: info()}, now=NOW)
    assert check_targets(root=root, previous=None, targets=listed, now=NOW) == {ONE: info()}
    following = made.sign_root(SigningKey.generate().public, now=NOW)
    check_root(root=following, previous=root, now=NOW)
    assert made.version == 2
    other = Publisher.init(tmp_path / "other", None, root_keys=count)
    other.sign_root(ONLINE.public, now=NOW)
    theirs = other.sign_root(SigningKey.generate().public, now=NOW)
    with pytest.raises(TrustError, match="not signed as it must be"):
        check_root(root=theirs, previous=root, now=NOW)


def test_every_root_is_kept(publisher: Publisher) -> None:
    """Hubs and devices follow them one by one: none may be lost, whatever became of its delivery."""
    for number in (2, 3):
        publisher.sign_root(ONLINE.public, now=NOW)
        assert publisher.version == number
    for number in (2, 3):
        check_root(root=publisher.root_of(number), previous=publisher.root_of(number - 1), now=NOW)
    assert publisher.root == publisher.root_of(3)
    assert publisher.online == ONLINE.public


def test_a_new_key_of_the_hub_begins_an_epoch(publisher: Publisher) -> None:
    """Whatever the old one counted to, devices begin anew under the next; a renewed root leaves it as it is."""

    def epoch() -> int:
        return check_root(root=publisher.root or b"", previous=None, now=NOW).epoch

    assert epoch() == 0
    publisher.sign_root(ONLINE.public, now=NOW)
    assert epoch() == 0
    other = SigningKey.generate().public
    for _ in range(2):
        publisher.sign_root(other, now=NOW)
        assert epoch() == 1
    for role in ("root", "targets"):
        publisher.rotate(role, served=None, now=NOW)
        assert epoch() == 1
    publisher.sign_root(SigningKey.generate().public, now=NOW)
    assert epoch() == 2


def test_attack_a_key_that_was_replaced_does_not_come_back(publisher: Publisher) -> None:
    """Attack: a backup of the hub with its stolen key is put in its place; nothing is signed for it."""
    publisher.sign_root(SigningKey.generate().public, now=NOW)
    before = publisher.version
    with pytest.raises(ConflictError, match="this key of the hub was replaced before"):
        publisher.sign_root(ONLINE.public, now=NOW)
    assert publisher.version == before


def test_a_root_of_another_epoch_than_it_must_be_is_refused() -> None:
    """Back, devices would take no assignment any more; too far, no key could ever change; the same, a thief is not outlived."""
    key, targets, other = SigningKey.generate(), SigningKey.generate(), SigningKey.generate().public

    def root(version: int, epoch: int, online: PublicKey = ONLINE.public) -> bytes:
        return repository.create_root(
            root=[key],
            targets=[targets.public],
            online=online,
            expires=NOW + 3600,
            version=version,
            epoch=epoch,
        )

    first = root(1, 3)
    assert check_root(root=root(2, 3), previous=first, now=NOW).epoch == 3
    assert check_root(root=root(2, 4, other), previous=first, now=NOW).epoch == 4
    for wrong, expected in (
        (root(2, 2), 3),
        (root(2, 4), 3),
        (root(2, 3, other), 4),
        (root(2, 8191, other), 4),
    ):
        with pytest.raises(
            TrustError, match=rf"of another epoch than it must be.*expected epoch {expected}:"
        ):
            check_root(root=wrong, previous=first, now=NOW)


def test_a_key_in_a_safe_still_counts(tmp_path: Path) -> None:
    """Two of three sign the next root; it names all three as before. One alone signs none, and nothing is written."""
    made = Publisher.init(tmp_path / "p", SECRET, root_keys=3)
    first = made.sign_root(ONLINE.public, now=NOW)
    safe = tmp_path / "root-3.pem"
    (made.folder / "root-3.pem").rename(safe)
    second = made.sign_root(ONLINE.public, now=NOW)
    check_root(root=second, previous=first, now=NOW)
    safe.rename(made.folder / "root-3.pem")
    assert len(made.counting()["root"]) == 3
    for name in ("root-1.pem", "root-2.pem"):
        (made.folder / name).rename(tmp_path / name)
    with pytest.raises(TrustError, match="not signed as it must be"):
        made.sign_root(ONLINE.public, now=NOW)
    assert made.root == second
    assert made.sign_targets(served=None, add={ONE: info()}, now=NOW), "the list needs no root key"
    (made.folder / "targets-1.pem").rename(tmp_path / "targets-1.pem")
    with pytest.raises(TrustError, match="no key that may sign the list is here"):
        made.sign_targets(served=None, now=NOW)


def test_a_list_goes_on_from_the_hubs(publisher: Publisher) -> None:
    """Bundles are added and retired; a name never gets another content."""
    first = publisher.targets
    second = publisher.sign_targets(served=first, add={TWO: info(b"two")}, now=NOW)
    assert listed_in(second) == {ONE: info(), TWO: info(b"two")}
    third = publisher.sign_targets(served=second, remove=[ONE], now=NOW)
    assert listed_in(third) == {TWO: info(b"two")}
    with pytest.raises(ConflictError, match="another content"):
        publisher.sign_targets(served=third, add={TWO: info(b"other")}, now=NOW)
    with pytest.raises(NotFoundError, match="no such target is listed"):
        publisher.sign_targets(served=third, remove=[ONE], now=NOW)
    assert publisher.targets == third, "what was refused is not written down"


def test_an_upload_that_failed_is_not_lost(publisher: Publisher) -> None:
    """The hub still has the older list, or none: the next goes on from what was signed here."""
    old = publisher.targets
    lost = publisher.sign_targets(served=old, add={TWO: info(b"two")}, now=NOW)
    for served in (old, None):
        again = publisher.sign_targets(served=served, now=NOW)
        assert set(listed_in(again)) == {ONE, TWO}
    root = publisher.root
    assert root is not None
    check_targets(root=root, previous=lost, targets=again, now=NOW)


def test_another_machine_with_the_same_keys_goes_on(publisher: Publisher, tmp_path: Path) -> None:
    """A copy of the folder that is behind learns of the newer list from the hub."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for one in publisher.folder.iterdir():
        (copy / one.name).write_bytes(one.read_bytes())
    newer = publisher.sign_targets(served=publisher.targets, add={TWO: info(b"two")}, now=NOW)
    after = Publisher(copy, SECRET).sign_targets(served=newer, remove=[ONE], now=NOW)
    assert set(listed_in(after)) == {TWO}


def test_attack_a_hub_that_hands_out_a_list_of_its_own(publisher: Publisher) -> None:
    """It would be signed on by the publisher: refused, whatever its version."""
    forged = repository.sign_targets(
        previous=None, add={TWO: info(b"evil")}, keys=[SigningKey.generate()], expires=NOW + 86_400
    )
    with pytest.raises(TrustError, match="a list of somebody else"):
        publisher.sign_targets(served=forged, now=NOW)


def test_attack_a_hub_that_borrows_a_signature(publisher: Publisher) -> None:
    """The key's name is there, and the signature is of other bytes."""
    assert publisher.targets is not None
    forged = publisher.targets.replace(b'"version":1', b'"version":7').replace(
        b'"version": 1', b'"version": 7'
    )
    assert forged != publisher.targets
    with pytest.raises(TrustError, match="not the publisher's"):
        publisher.sign_targets(served=forged, now=NOW)


def test_two_lists_of_one_version_are_told(publisher: Publisher, tmp_path: Path) -> None:
    """Two people who signed at once: going on from either would take the other's back."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for one in publisher.folder.iterdir():
        (copy / one.name).write_bytes(one.read_bytes())
    publisher.sign_targets(served=None, add={TWO: info(b"two")}, now=NOW)
    theirs = Publisher(copy, SECRET).sign_targets(served=None, add={TWO: info(b"2")}, now=NOW)
    with pytest.raises(TrustError, match=r"another list of the same version; at targets.json, version 2"):
        publisher.sign_targets(served=theirs, now=NOW)


@pytest.mark.parametrize("behind", [False, True])
@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("role", ["root", "targets"])
def test_keys_change_hands(tmp_path: Path, role: str, count: int, *, behind: bool) -> None:
    """A hub takes the list, signed by old and new, under its old root, then the root, under which the list still says what it says.

    Also where it has not got the newest list yet; the old keys stay as files and count no more.
    """
    made = Publisher.init(tmp_path / "p", SECRET, root_keys=count)
    before = made.sign_root(ONLINE.public, now=NOW)
    served = listed = made.sign_targets(served=None, add={ONE: info()}, now=NOW)
    if behind:
        listed = made.sign_targets(served=served, add={TWO: info(b"two")}, now=NOW)
    old = made.counting()
    made.rotate(role, served=served, now=NOW)
    after, both = made.root, made.targets
    assert after is not None
    assert both is not None
    check_root(root=after, previous=before, now=NOW)
    if role == "targets":
        assert check_targets(root=before, previous=listed, targets=both, now=NOW) == listed_in(listed)
    assert check_targets(root=after, previous=None, targets=both, now=NOW) == listed_in(listed)
    again = made.sign_targets(served=served, now=NOW)
    assert check_targets(root=after, previous=both, targets=again, now=NOW) == listed_in(listed)
    counting = made.counting()
    other = "targets" if role == "root" else "root"
    assert counting[other] == old[other]
    assert not set(counting[role]) & set(old[role])
    assert set(made.keys()) == {*old["root"], *old["targets"], *counting[role]}
    made.rotate(role, served=again, now=NOW)
    check_root(root=made.root_of(3), previous=after, now=NOW)


def test_attack_a_retired_targets_key_signs_nothing(publisher: Publisher) -> None:
    """Whoever stole it before it was replaced."""
    stolen = SigningKey.from_pem((publisher.folder / "targets-1.pem").read_bytes(), SECRET)
    publisher.rotate("targets", served=None, now=NOW)
    root = publisher.root
    assert root is not None
    forged = repository.sign_targets(
        previous=publisher.targets, add={TWO: info(b"evil")}, keys=[stolen], expires=NOW + 86_400
    )
    with pytest.raises(TrustError):
        check_targets(root=root, previous=None, targets=forged, now=NOW)


def test_attack_a_list_signed_by_a_retired_key_is_not_gone_on_from(publisher: Publisher) -> None:
    """The publisher itself signs what is served next: a thief's additions would become its own."""
    stolen = SigningKey.from_pem((publisher.folder / "targets-1.pem").read_bytes(), SECRET)
    publisher.rotate("targets", served=None, now=NOW)
    publisher.sign_targets(served=publisher.targets, now=NOW)
    forged = repository.sign_targets(
        previous=None, add={TWO: info(b"evil")}, keys=[stolen], expires=NOW + 86_400
    )
    for _ in range(5):  # of a higher version than ours
        forged = repository.sign_targets(previous=forged, add={}, keys=[stolen], expires=NOW + 86_400)
    with pytest.raises(TrustError, match="retired"):
        publisher.sign_targets(served=forged, now=NOW)


def test_without_a_root_no_key_changes(tmp_path: Path) -> None:
    """There is nothing that could say so."""
    with pytest.raises(NotFoundError, match="there is no root yet"):
        Publisher.init(tmp_path / "p", None).rotate("root", served=None, now=NOW)


def test_other_roles_have_no_keys_here(publisher: Publisher) -> None:
    """Snapshot and timestamp are the hub's."""
    with pytest.raises(SettingError, match="no such role"):
        publisher.rotate("timestamp", served=None, now=NOW)
    assert len(publisher.keys()) == 2


def test_lifetimes_are_the_publishers(tmp_path: Path) -> None:
    """A list that ends tomorrow is refused after tomorrow."""
    made = Publisher.init(tmp_path / "p", None, lifetimes=Lifetimes(root=10 * 86_400, targets=86_400))
    root = made.sign_root(ONLINE.public, now=NOW)
    listed = made.sign_targets(served=None, now=NOW)
    check_targets(root=root, previous=None, targets=listed, now=NOW + 86_000)
    with pytest.raises(ExpiredError):
        check_targets(root=root, previous=None, targets=listed, now=NOW + 87_000)


class Killed(BaseException):
    """The process ends here."""


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 6), st.sampled_from(["root", "targets"]))
def test_a_kill_at_any_write_of_a_change_of_keys_loses_nothing(
    tmp_path_factory: pytest.TempPathFactory, at: int, role: str
) -> None:
    """Begun again, it ends with a root that follows the hub's; what was half done is an unused key file at most."""
    made = Publisher.init(tmp_path_factory.mktemp("p") / "p", None, root_keys=2)
    before = made.sign_root(ONLINE.public, now=NOW)
    listed = made.sign_targets(served=None, add={ONE: info()}, now=NOW)
    left = [at]

    def write(path: Path, data: bytes, **rest: int) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        replace(path, data, **rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "write_whole", write)
        with contextlib.suppress(Killed):
            made.rotate(role, served=listed, now=NOW)
    made.rotate(role, served=listed, now=NOW)
    roots = [made.root_of(number) for number in range(1, made.version + 1)]
    assert roots[0] == before
    for earlier, later in itertools.pairwise(roots):
        check_root(root=later, previous=earlier, now=NOW)
    following = made.sign_targets(served=listed, now=NOW)
    assert check_targets(root=roots[-1], previous=listed, targets=following, now=NOW) == {ONE: info()}


@pytest.mark.parametrize("at", range(4))
def test_a_kill_while_a_folder_is_made_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Begun again, it is made."""
    left = [at]

    def write(path: Path, data: bytes, **rest: int) -> None:
        if not left[0]:
            raise Killed
        left[0] -= 1
        replace(path, data, **rest)

    with monkeypatch.context() as patch:
        patch.setattr(module, "write_whole", write)
        with pytest.raises(Killed):
            Publisher.init(tmp_path / "p", SECRET, root_keys=3)
    assert not (tmp_path / "p").exists()
    assert len(Publisher.init(tmp_path / "p", SECRET, root_keys=3).keys()) == 4
    assert [one.name for one in tmp_path.iterdir()] == ["p"]


@pytest.mark.parametrize("harm", [lambda data: data[:-10], lambda _: b"", lambda _: b"[]"])
def test_a_damaged_root_or_list_is_told(publisher: Publisher, harm: Callable[[bytes], bytes]) -> None:
    """Disks rot: what was signed is asked back from the hub or a copy, not guessed."""
    for name in ("1.root.json", "targets.json"):
        path = publisher.folder / name
        whole = path.read_bytes()
        path.write_bytes(harm(whole))
        with pytest.raises(TrustError):
            publisher.sign_targets(served=None, now=NOW)
        path.write_bytes(whole)
