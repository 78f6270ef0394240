"""A delegate's folder: what it signs, and what becomes of kills, forks, stale hubs and keys that were replaced."""

from __future__ import annotations

import stat
from typing import TYPE_CHECKING

import pytest

from edgestill.core.bundle import replace
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ConflictError,
    MessageError,
    NotFoundError,
    PathError,
    SettingError,
    TrustError,
)
from edgestill.testing.clock import FakeClock
from edgestill.trust import delegate as module
from edgestill.trust.delegate import Delegate
from edgestill.trust.keys import PublicKey, SigningKey
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.repository import listed_in, sign_targets
from edgestill.trust.roles import MOST_FIRST, MOST_SAID, Delegation, check_delegated, version_of

if TYPE_CHECKING:
    from pathlib import Path

NOW = FakeClock().now()
DAY = 86_400.0
SECRET = b"battery staple"
CLASS = "x86_64-vnni-onnxruntime"
AUTO = f"auto/{CLASS}"
ONE, TWO, THREE = (f"watch/{number}.0.0/{CLASS}.esb" for number in (1, 2, 3))
PUBLISHER = SigningKey.generate()


def info(data: bytes = b"one") -> TargetInfo:
    """Of an archive."""
    return TargetInfo(len(data), Digest.of(data))


@pytest.fixture
def lab(tmp_path: Path) -> Delegate:
    """One that has signed its first list."""
    made = Delegate.init(tmp_path / "lab", SECRET)
    made.sign(AUTO, served=None, said=0, add={ONE: info()}, now=NOW)
    return made


def own(folder: Delegate, role: str = AUTO) -> bytes:
    """The newest list that was signed there."""
    found = folder.newest(role, None)
    assert found is not None
    return found


def test_a_folder_is_made_for_its_owner_alone(tmp_path: Path) -> None:
    """Its key is locked; the half that the publisher is handed can be read without the passphrase."""
    made = Delegate.init(tmp_path / "lab", SECRET)
    assert sorted(one.name for one in made.folder.iterdir()) == ["delegate-1.pem", "delegate-1.pub.pem"]
    assert stat.S_IMODE(made.folder.stat().st_mode) == 0o700
    private = made.folder / "delegate-1.pem"
    assert stat.S_IMODE(private.stat().st_mode) == 0o600
    assert b"ENCRYPTED" in private.read_bytes()
    public = PublicKey.from_pem((made.folder / "delegate-1.pub.pem").read_bytes())
    assert made.keys() == {"delegate-1.pem": public}
    for wrong in (b"other", None):
        with pytest.raises(TrustError, match=r"a key does not open; at .*delegate-1.pem"):
            Delegate(made.folder, wrong).keys()
    with pytest.raises(ConflictError, match="there is something already"):
        Delegate.init(tmp_path / "lab", SECRET)


@pytest.mark.parametrize("pem", [b"", b"hello", b"x" * 20_000, SigningKey.generate().to_pem(None)])
def test_what_is_no_public_key_is_not_named(pem: bytes) -> None:
    """A private key least of all: it should not have left its owner."""
    with pytest.raises(MessageError, match="not a public key that may be named"):
        PublicKey.from_pem(pem)


def test_a_folder_without_keys_is_told(tmp_path: Path) -> None:
    """A wrong path is the most likely of mistakes."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(PathError, match=r"not a delegate's folder.*release keys new"):
            Delegate(folder, None).keys()


def test_a_list_goes_on_and_a_hub_takes_it(lab: Delegate) -> None:
    """Bundles are added and retired; a name never gets another content, and what was refused is not written down."""
    first = own(lab)
    second = lab.sign(AUTO, served=first, said=1, add={TWO: info(b"two")}, now=NOW)
    assert listed_in(second) == {ONE: info(), TWO: info(b"two")}
    third = lab.sign(AUTO, served=second, said=2, remove=[ONE], now=NOW)
    with pytest.raises(ConflictError, match="another content"):
        lab.sign(AUTO, served=third, said=3, add={TWO: info(b"other")}, now=NOW)
    with pytest.raises(NotFoundError, match="no such target is listed"):
        lab.sign(AUTO, served=third, said=3, remove=[ONE], now=NOW)
    assert own(lab) == third
    (key,) = lab.keys().values()
    role = Delegation(role=AUTO, keys=(key,), names=("watch",))
    targets = sign_targets(previous=None, add={}, keys=[PUBLISHER], expires=NOW + DAY, delegate=[role])
    for last, data in enumerate((first, second, third)):
        check_delegated(targets=targets, role=AUTO, data=data, last=last, now=NOW, others={})


def test_each_role_has_a_list_of_its_own(lab: Delegate) -> None:
    """One machine may build for several classes."""
    lab.sign(CLASS, served=None, said=0, add={TWO: info(b"two")}, now=NOW)
    assert listed_in(own(lab)) == {ONE: info()}
    assert listed_in(own(lab, CLASS)) == {TWO: info(b"two")}
    assert lab.newest("auto/other", None) is None


def test_an_upload_that_failed_is_not_lost(lab: Delegate) -> None:
    """The hub still has the older list, or none: the next goes on from what was signed here, with a version above where it says something else."""
    old = own(lab)
    failed = lab.sign(AUTO, served=old, said=1, add={TWO: info(b"two")}, now=NOW)
    for served in (old, None):
        assert lab.sign(AUTO, served=served, said=1, now=NOW) == failed
    other = lab.sign(AUTO, served=old, said=1, add={THREE: info(b"three")}, now=NOW)
    assert (version_of(other), set(listed_in(other))) == (3, {ONE, TWO, THREE})


def test_trying_again_uses_up_no_number(lab: Delegate) -> None:
    """A hub that is away for long takes the list in the end: what it does not have yet is delivered again, be it an addition or a removal."""
    old = own(lab)
    (key,) = lab.keys().values()
    role = Delegation(role=AUTO, keys=(key,), names=("watch",))
    targets = sign_targets(previous=None, add={}, keys=[PUBLISHER], expires=NOW + DAY, delegate=[role])
    for _ in range(20):
        new = lab.sign(AUTO, served=old, said=1, add={TWO: info(b"two")}, now=NOW)
    assert version_of(new) == 2
    check_delegated(targets=targets, role=AUTO, data=new, last=1, now=NOW, others={})
    for _ in range(20):
        gone = lab.sign(AUTO, served=new, said=2, remove=[ONE], now=NOW)
    assert (version_of(gone), listed_in(gone)) == (3, {TWO: info(b"two")})
    with pytest.raises(NotFoundError):
        lab.sign(AUTO, served=new, said=2, remove=["watch/9.0.0/none.esb"], now=NOW)
    late = lab.sign(AUTO, served=new, said=2, now=NOW + 16 * DAY)
    assert version_of(late) == 4  # half of its time was over
    assert version_of(lab.sign(AUTO, served=late, said=4, now=NOW + 16 * DAY)) == 5  # it was delivered
    assert (
        version_of(lab.sign(AUTO, served=None, said=7, now=NOW + 16 * DAY)) == 8
    )  # another key has gone further


def test_a_new_hub_takes_a_list_that_has_come_far(lab: Delegate) -> None:
    """It has named no version yet; and the next one, too, is signed and taken in after the largest that it takes first."""
    (key,) = lab.keys().values()
    role = Delegation(role=AUTO, keys=(key,), names=("watch",))
    targets = sign_targets(previous=None, add={}, keys=[PUBLISHER], expires=NOW + DAY, delegate=[role])
    far = lab.sign(AUTO, served=None, said=MOST_FIRST - 1, now=NOW)
    assert lab.sign(AUTO, served=None, said=0, add={ONE: info()}, now=NOW) == far
    check_delegated(targets=targets, role=AUTO, data=far, last=0, now=NOW, others={})
    after = lab.sign(AUTO, served=far, said=MOST_FIRST, now=NOW)
    check_delegated(targets=targets, role=AUTO, data=after, last=MOST_FIRST, now=NOW, others={})
    with pytest.raises(TrustError, match=r"grows too far at once.*move the role's list out"):
        check_delegated(targets=targets, role=AUTO, data=far, last=5, now=NOW, others={})
    (lab.folder / "auto%2Fx86_64-vnni-onnxruntime.json").unlink()
    assert version_of(lab.sign(AUTO, served=None, said=5, now=NOW)) == 6


def test_another_machine_with_the_same_key_goes_on(lab: Delegate, tmp_path: Path) -> None:
    """From the hub's list, where it is newer; two that signed at once are told."""
    copy = tmp_path / "copy"
    copy.mkdir()
    for one in lab.folder.iterdir():
        (copy / one.name).write_bytes(one.read_bytes())
    other = Delegate(copy, SECRET)
    newer = lab.sign(AUTO, served=None, said=1, add={TWO: info(b"two")}, now=NOW)
    other.sign(AUTO, served=None, said=1, add={TWO: info(b"2")}, now=NOW)
    with pytest.raises(TrustError, match="another list of the same version"):
        other.sign(AUTO, served=newer, said=2, now=NOW)
    (copy / "auto%2Fx86_64-vnni-onnxruntime.json").unlink()
    assert set(listed_in(other.sign(AUTO, served=newer, said=2, now=NOW))) == {ONE, TWO}


def test_attack_a_hub_that_hands_out_a_list_of_its_own(lab: Delegate) -> None:
    """It would be signed on by the lab: refused, by whomever it is signed, and with a borrowed signature too."""
    forged = sign_targets(
        previous=None, add={TWO: info(b"evil")}, keys=[SigningKey.generate()], expires=NOW + DAY, least=9
    )
    with pytest.raises(TrustError, match="a list of somebody else"):
        lab.sign(AUTO, served=forged, said=9, now=NOW)
    borrowed = own(lab).replace(b'"version":1', b'"version":7').replace(b'"version": 1', b'"version": 7')
    assert borrowed != own(lab)
    with pytest.raises(TrustError, match="not the publisher's"):
        lab.sign(AUTO, served=borrowed, said=7, now=NOW)


def test_attack_a_hub_that_names_a_version_out_of_reach(lab: Delegate) -> None:
    """A stolen hub must not make the lab itself use up the numbers."""
    with pytest.raises(TrustError, match="a version that is out of reach"):
        lab.sign(AUTO, served=None, said=MOST_SAID + 1, now=NOW)
    assert version_of(own(lab)) == 1


def test_a_new_folder_begins_above_what_a_stolen_key_has_signed(lab: Delegate, tmp_path: Path) -> None:
    """The hub serves the old key's list no more, and tells its version: nothing of it is taken over."""
    old = lab.sign(AUTO, served=None, said=1, add={TWO: info(b"evil")}, now=NOW)
    fresh = Delegate.init(tmp_path / "fresh", None)
    begun = fresh.sign(AUTO, served=None, said=version_of(old), add={ONE: info()}, now=NOW)
    assert (version_of(begun), listed_in(begun)) == (3, {ONE: info()})
    with pytest.raises(TrustError, match="a list of somebody else"):
        Delegate.init(tmp_path / "third", None).sign(AUTO, served=old, said=2, now=NOW)


def test_a_list_that_a_hub_would_not_take_is_not_signed(lab: Delegate) -> None:
    """A megabyte is the bound of a role's list."""
    many = {f"watch/1.0.{number}/{CLASS}.esb": info() for number in range(10_000)}
    with pytest.raises(SettingError, match="the list of targets is too long"):
        lab.sign(AUTO, served=None, said=1, add=many, now=NOW)
    assert version_of(own(lab)) == 1


def test_a_kill_at_the_write_costs_a_delivery_and_no_version(
    lab: Delegate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the write nothing was signed, after it the list is there for the next try."""

    class Killed(BaseException):
        """The process ends here."""

    for after in (False, True):

        def write(path: Path, data: bytes, *, mode: int, after: bool = after) -> None:
            if after:
                replace(path, data, mode=mode)
            raise Killed

        before = own(lab)
        with monkeypatch.context() as patch:
            patch.setattr(module, "write_whole", write)
            with pytest.raises(Killed):
                lab.sign(AUTO, served=before, said=1, add={TWO: info(b"two")}, now=NOW)
        assert (TWO in listed_in(own(lab))) == after
        assert version_of(own(lab)) == 1 + after
    assert set(listed_in(lab.sign(AUTO, served=before, said=1, now=NOW))) == {ONE, TWO}
