"""The signing side: what publisher and hub make, and what they refuse to sign or to serve."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trust_forging import forge, signed_part
from tuf.api.exceptions import DownloadHTTPError
from tuf.api.metadata import Metadata, Root, Targets  # type: ignore[attr-defined]  # re-exported there without saying so
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, ExpiredError, NotFoundError, SettingError, TrustError
from edgestill.testing.clock import FakeClock
from edgestill.testing.repository import RepositorySimulator
from edgestill.trust.keys import SigningKey
from edgestill.trust.repository import (
    SNAPSHOT_LIFETIMES,
    Fresh,
    TargetInfo,
    check_root,
    check_targets,
    countersign,
    create_root,
    file_name,
    freshen,
    sign_targets,
    target_path,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

NOW = 1_800_000_000.0
YEAR = 365 * 86_400.0
HOUR = 3600.0
NAME = "watch/1.0.0/x86_64-vnni-onnxruntime.esb"
OTHER_NAME = "watch/1.1.0/x86_64-vnni-onnxruntime.esb"
INFO = TargetInfo(3, Digest.of(b"esb"))
OTHER_INFO = TargetInfo(4, Digest.of(b"esb2"))

ROOTS = [SigningKey.generate() for _ in range(3)]
PUBLISHER, SECOND, ONLINE, STRANGER = (SigningKey.generate() for _ in range(4))


def _root(**changes: Any) -> bytes:
    arguments: dict[str, Any] = {
        "root": ROOTS[:1],
        "targets": [PUBLISHER.public],
        "online": ONLINE.public,
        "expires": NOW + YEAR,
    }
    return create_root(**(arguments | changes))


def _targets(
    previous: bytes | None = None, add: dict[str, TargetInfo] | None = None, **changes: Any
) -> bytes:
    arguments: dict[str, Any] = {"keys": [PUBLISHER], "expires": NOW + YEAR}
    return sign_targets(previous=previous, add={NAME: INFO} if add is None else add, **(arguments | changes))


def _freshen(
    targets: bytes, previous: Fresh | None = None, *, root: bytes | None = None, **changes: Any
) -> Fresh:
    arguments: dict[str, Any] = {"online": ONLINE, "now": NOW, "lifetime": HOUR}
    return freshen(
        root=_root() if root is None else root,
        targets=targets,
        previous_snapshot=None if previous is None else previous.snapshot,
        previous_timestamp=None if previous is None else previous.timestamp,
        **(arguments | changes),
    )


# Root


def test_root_names_four_roles_and_who_assigns() -> None:
    """A root gives each role its keys and threshold, wants consistent snapshots, and names the assignment key."""
    root = Metadata[Root].from_bytes(_root(root=ROOTS, threshold=2)).signed
    assert root.version == 1
    assert root.consistent_snapshot is True
    assert {role: (len(one.keyids), one.threshold) for role, one in root.roles.items()} == {
        "root": (3, 2),
        "targets": (1, 1),
        "snapshot": (1, 1),
        "timestamp": (1, 1),
    }
    assert root.roles["timestamp"].keyids == [ONLINE.public.keyid]
    assert check_root(root=_root(), previous=None, now=NOW).keys == (ONLINE.public,)


def test_metadata_is_deterministic() -> None:
    """The same keys and times give the same bytes: a digest pinned by a join token stays good."""
    assert _root() == _root()
    assert _targets() == _targets()


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"threshold": 0}, "expected 1 to 1"),
        ({"threshold": 2}, "expected 1 to 1"),
        ({"targets_threshold": 2}, "expected 1 to 1"),
        ({"targets": []}, "expected 1 to 0"),
        ({"root": [ROOTS[0], ROOTS[0]]}, "a key is given twice"),
        ({"version": 0}, "a version is out of range"),
        ({"expires": -1.0}, "a time is out of range"),
        ({"expires": 1e12}, "a time is out of range"),
        ({"expires": float("nan")}, "a time is out of range"),
    ],
)
def test_a_root_that_could_not_work_is_not_made(changes: dict[str, Any], complaint: str) -> None:
    """A threshold nobody can meet, a key twice, or a time outside of time is refused before signing."""
    with pytest.raises(SettingError, match=complaint):
        _root(**changes)


def test_the_next_root_needs_its_predecessor() -> None:
    """A root that changes the root keys counts only once the old keys countersigned it."""
    first = _root(root=ROOTS[:2], threshold=2)
    second = _root(root=ROOTS[2:], version=2)
    with pytest.raises(TrustError, match=r"root.json is not signed as it must be.*got 1 and 0.*countersign"):
        check_root(root=second, previous=first, now=NOW)
    with pytest.raises(TrustError, match=r"got 1 and 1"):
        check_root(root=countersign(second, keys=ROOTS[:1]), previous=first, now=NOW)
    both = countersign(second, keys=ROOTS[:2])
    assert check_root(root=both, previous=first, now=NOW).keys == (ONLINE.public,)


@pytest.mark.parametrize("version", [1, 3])
def test_roots_follow_one_by_one(version: int) -> None:
    """Attack: a root that repeats or skips a version is refused, however well it is signed."""
    with pytest.raises(TrustError, match="Expected sequential root versions"):
        check_root(root=_root(version=version), previous=_root(), now=NOW)


def test_attack_forged_extra_root_field() -> None:
    """Attack: the assignment keys are under the root's signatures; naming another key breaks them."""
    forged = forge(
        _root(), lambda signed: signed["x-edgestill-assignment"].update(keyids=[STRANGER.public.keyid])
    )
    with pytest.raises(TrustError, match=r"root.json is not signed as it must be"):
        check_root(root=forged, previous=None, now=NOW)


def test_a_root_without_assignment_keys_is_refused() -> None:
    """A root of some other TUF repository cannot be served to devices: nobody could assign."""
    plain = forge(_root(), lambda signed: signed.pop("x-edgestill-assignment"), ROOTS[:1])
    with pytest.raises(TrustError, match=r"not a JSON object; at root\.json: x-edgestill-assignment"):
        check_root(root=plain, previous=None, now=NOW)


def test_an_expired_root_is_refused() -> None:
    """A hub does not begin to serve a root that every device would refuse."""
    with pytest.raises(ExpiredError, match=r"root.json is past its time"):
        check_root(root=_root(), previous=None, now=NOW + YEAR)


# Targets


@settings(max_examples=25)
@given(versions=st.lists(st.integers(0, 30), unique=True, max_size=8), data=st.data())
def test_the_list_is_what_was_added_and_not_removed(versions: list[int], data: st.DataObject) -> None:
    """Signed step by step, the list holds exactly what was added and not removed, and its version counts the steps."""
    expected: dict[str, TargetInfo] = {}
    current = _targets(add={})
    for step, version in enumerate(versions):
        name = f"watch/{version}.0.0/any.esb"
        retired = data.draw(st.sets(st.sampled_from(sorted(expected)))) if expected else set()
        current = _targets(current, {name: INFO}, remove=retired)
        expected = {key: value for key, value in expected.items() if key not in retired} | {name: INFO}
        assert signed_part(current)["version"] == step + 2
    assert check_targets(root=_root(), previous=None, targets=current, now=NOW) == expected


def test_attack_stolen_hub_slips_a_target_into_the_list() -> None:
    """Attack: a hub hands the publisher a list with an entry of its own, to have it signed with the next release."""
    slipped = forge(
        _targets(),
        lambda signed: signed["targets"].update({OTHER_NAME: {"length": 1, "hashes": {"sha256": "66" * 32}}}),
    )
    for evil in (slipped, forge(slipped, dict, [ONLINE])):
        with pytest.raises(TrustError, match="the list to continue is not the publisher's"):
            _targets(evil, {})


def test_after_a_change_of_keys_the_old_list_goes_on() -> None:
    """A new targets key continues the list of the old one, once the old one is named as trusted."""
    with pytest.raises(TrustError, match="name the keys of then as `trusted`"):
        _targets(_targets(), {}, keys=[SECOND])
    renewed = _targets(_targets(), {}, keys=[SECOND], trusted=[PUBLISHER.public])
    root = _root(targets=[SECOND.public])
    assert check_targets(root=root, previous=_targets(), targets=renewed, now=NOW) == {NAME: INFO}


def test_one_publisher_below_the_threshold_is_not_enough() -> None:
    """Attack: with two publishers needed, one alone releases nothing; the second one's countersignature completes it."""
    root = _root(targets=[PUBLISHER.public, SECOND.public], targets_threshold=2)
    alone = _targets()
    with pytest.raises(TrustError, match="targets was signed by 1/2 keys"):
        check_targets(root=root, previous=None, targets=alone, now=NOW)
    both = countersign(alone, keys=[SECOND])
    assert check_targets(root=root, previous=None, targets=both, now=NOW) == {NAME: INFO}


def test_a_name_keeps_its_content() -> None:
    """A release that changed under its name is refused; the same again is fine; removing first is said aloud."""
    with pytest.raises(ConflictError, match=r"another content under a name.*publish it as a new version"):
        _targets(_targets(), {NAME: OTHER_INFO})
    assert signed_part(_targets(_targets(), {NAME: INFO}))["version"] == 2
    replaced = _targets(_targets(), {NAME: OTHER_INFO}, remove=[NAME])
    assert check_targets(root=_root(), previous=None, targets=replaced, now=NOW) == {NAME: OTHER_INFO}


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "watch/1.0/any.esb", "watch/1.0.0/any.exe", "", NAME + "\n"]
)
def test_only_bundles_are_listed(name: str) -> None:
    """A name that is no bundle's is refused before it is signed."""
    with pytest.raises(SettingError, match="not a target name"):
        _targets(add={name: INFO})


def test_what_is_not_listed_cannot_be_retired() -> None:
    """Retiring a release that is not there is an error, not a success."""
    with pytest.raises(NotFoundError, match="no such target is listed"):
        _targets(remove=[OTHER_NAME])


def test_a_list_nobody_signs_is_not_made() -> None:
    """Without a key there is no list."""
    with pytest.raises(SettingError, match="nobody signs the list"):
        _targets(keys=[])


def test_a_list_too_long_for_devices_is_not_made() -> None:
    """The publisher learns that the list is too long, before every device does."""
    many = {f"watch/{n}.0.0/any.esb": INFO for n in range(40_000)}
    with pytest.raises(SettingError, match=r"the list of targets is too long.*remove old releases"):
        _targets(add=many)


@pytest.mark.parametrize("size", [-1, 2**32 + 1])
def test_a_target_has_a_bounded_size(size: int) -> None:
    """A size below zero or beyond 4 GiB is refused."""
    with pytest.raises(SettingError, match="a target's size is out of range"):
        TargetInfo(size, INFO.digest)


@pytest.mark.parametrize("uploaded", [1, 2])
def test_attack_rollback_by_upload(uploaded: int) -> None:
    """Attack: an old list, or another one of the same version, is not taken in by a hub."""
    first, second = _targets(), _targets(_targets(), {OTHER_NAME: INFO})
    candidate = first if uploaded == 1 else _targets(first, {})
    with pytest.raises(TrustError, match=r"the list does not grow.*expected version 3 or more"):
        check_targets(root=_root(), previous=second, targets=candidate, now=NOW)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda signed: signed["targets"][NAME].update(length=9), "targets was signed by 0/1 keys"),
        (lambda signed: signed.update(version=9), "targets was signed by 0/1 keys"),
        (lambda signed: signed.update(_type="snapshot"), "metadata is refused"),
        (lambda signed: signed.pop("expires"), "metadata is refused.*expires"),
        (lambda signed: signed.update(spec_version="2.0.0"), "Unsupported spec_version"),
    ],
)
def test_attack_tampered_targets_upload(change: Any, complaint: str) -> None:
    """Attack: whatever is changed in a signed list, a hub refuses it."""
    with pytest.raises(TrustError, match=complaint):
        check_targets(root=_root(), previous=None, targets=forge(_targets(), change), now=NOW)


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda signed: signed["targets"].update({"x/y": signed["targets"][NAME]}), "not a target name"),
        (lambda signed: signed["targets"][NAME].update(hashes={"sha512": "00"}), "not a digest"),
        (lambda signed: signed["targets"][NAME].update(hashes={"sha256": "00"}), "not a digest"),
        (lambda signed: signed["targets"][NAME].update(length=2**40), "a target's size is out of range"),
        (
            lambda signed: signed.update(
                delegations={
                    "keys": {},
                    "succinct_roles": {
                        "bit_length": 2,
                        "name_prefix": "bin",
                        "keyids": ["a"],
                        "threshold": 1,
                    },
                }
            ),
            "delegations of another kind",
        ),
    ],
)
def test_a_list_no_device_would_follow_is_refused(change: Any, complaint: str) -> None:
    """Even signed by the publisher, entries that devices leave out are refused at the hub, where a person sees it."""
    signed = forge(_targets(), change, [PUBLISHER])
    with pytest.raises(TrustError, match=complaint):
        check_targets(root=_root(), previous=None, targets=signed, now=NOW)


def test_an_expired_list_is_refused() -> None:
    """A list past its time is not taken in."""
    with pytest.raises(ExpiredError, match=r"targets.json is past its time"):
        check_targets(root=_root(), previous=None, targets=_targets(expires=NOW), now=NOW)


def test_attack_self_made_root() -> None:
    """Attack: a root that is not signed by itself gives nobody any rights."""
    evil = forge(_root(), lambda signed: signed.update(version=7))
    with pytest.raises(TrustError, match="root was signed by 0/1 keys"):
        check_targets(root=evil, previous=None, targets=_targets(), now=NOW)


# Snapshot and timestamp


def test_snapshot_and_timestamp_pin_length_and_hash() -> None:
    """The timestamp pins the snapshot's bytes, and the snapshot those of targets.json."""
    targets = _targets()
    fresh = _freshen(targets)
    assert signed_part(fresh.snapshot)["meta"]["targets.json"] == {
        "version": 1,
        "length": len(targets),
        "hashes": {"sha256": Digest.of(targets).hex},
    }
    assert signed_part(fresh.timestamp)["meta"]["snapshot.json"] == {
        "version": 1,
        "length": len(fresh.snapshot),
        "hashes": {"sha256": Digest.of(fresh.snapshot).hex},
    }


def test_a_snapshot_stays_while_it_is_good() -> None:
    """Freshening again makes a new timestamp, but keeps the snapshot byte for byte until it would run out."""
    targets = _targets()
    fresh = _freshen(targets)
    for hours in range(1, SNAPSHOT_LIFETIMES - 1):
        again = _freshen(targets, fresh, now=NOW + hours * HOUR)
        assert again.snapshot == fresh.snapshot
        assert signed_part(again.timestamp)["version"] == signed_part(fresh.timestamp)["version"] + 1
        fresh = again
    late = _freshen(targets, fresh, now=NOW + (SNAPSHOT_LIFETIMES - 1) * HOUR)
    assert signed_part(late.snapshot)["version"] == 2


@given(steps=st.lists(st.tuples(st.booleans(), st.floats(0, 10_000)), max_size=8))
@settings(max_examples=30)
def test_what_is_fresh_holds_for_its_lifetime(steps: list[tuple[bool, float]]) -> None:
    """Whenever it is called, both files hold for the lifetime asked for, and versions never fall."""
    now, targets, fresh = NOW, _targets(add={}), None
    seen = (0, 0)
    for publish, pause in steps:
        now += pause
        targets = _targets(targets, {}) if publish else targets
        fresh = _freshen(targets, fresh, now=now)
        versions = (signed_part(fresh.snapshot)["version"], signed_part(fresh.timestamp)["version"])
        assert versions[0] in {seen[0], seen[0] + 1}
        assert versions[1] == seen[1] + 1
        seen = versions
        for metadata in (fresh.snapshot, fresh.timestamp):
            expires = Metadata[Targets].from_bytes(metadata).signed.expires.timestamp()
            assert expires >= int(now + HOUR)


def test_a_changed_list_gets_a_new_snapshot() -> None:
    """Publishing changes what the snapshot names."""
    first = _targets()
    fresh = _freshen(first)
    again = _freshen(_targets(first, {OTHER_NAME: INFO}), fresh)
    assert signed_part(again.snapshot)["version"] == 2
    assert signed_part(again.snapshot)["meta"]["targets.json"]["version"] == 2


def test_a_changed_online_key_signs_anew() -> None:
    """After a rotation nothing signed by the old key is served on."""
    fresh = _freshen(_targets())
    root = _root(online=SECOND.public)
    again = _freshen(_targets(), fresh, root=root, online=SECOND)
    assert again.snapshot != fresh.snapshot
    assert signed_part(again.snapshot)["version"] == 2


def test_key_not_in_root_freshens_nothing() -> None:
    """A hub with another key than root names learns it at once, and not from its devices."""
    with pytest.raises(
        TrustError, match=r"root.json does not let this key sign snapshot.json.*in a new root"
    ):
        _freshen(_targets(), online=STRANGER)


def test_a_hub_does_not_roll_back_by_mistake() -> None:
    """An older list than the one already served is refused before it is signed over."""
    first = _targets()
    fresh = _freshen(_targets(first, {OTHER_NAME: INFO}))
    with pytest.raises(
        TrustError, match=r"older than the one already served.*expected version 2 or more; got 1"
    ):
        _freshen(first, fresh)


def test_a_hub_vouches_for_no_list_but_the_publishers() -> None:
    """A list signed by somebody else is not pinned."""
    with pytest.raises(TrustError, match="targets was signed by 0/1 keys"):
        _freshen(_targets(keys=[STRANGER]))


@pytest.mark.parametrize("role", ["root", "targets"])
def test_nothing_is_freshened_on_expired_ground(role: str) -> None:
    """When root or list is past its time, the hub says which, instead of serving what devices refuse."""
    root = _root(expires=NOW + 1) if role == "root" else _root()
    targets = _targets(expires=NOW + 1) if role == "targets" else _targets()
    with pytest.raises(ExpiredError, match=f"{role}.json is past its time"):
        _freshen(targets, root=root, now=NOW + 1)


def test_a_lifetime_is_at_least_a_second() -> None:
    """TUF counts whole seconds; a shorter life would be none."""
    with pytest.raises(SettingError, match="a lifetime is too short"):
        _freshen(_targets(), lifetime=0.5)


# Names


def test_files_have_the_names_that_tuf_gives_them() -> None:
    """All but the timestamp carry their version in front."""
    fresh = _freshen(_targets())
    assert file_name(_root()) == "1.root.json"
    assert file_name(_targets(_targets(), {})) == "2.targets.json"
    assert file_name(fresh.snapshot) == "1.snapshot.json"
    assert file_name(fresh.timestamp) == "timestamp.json"


@pytest.mark.parametrize(
    "data", [b"", b"[]", b"{}", b'{"signed": {"_type": "../x", "version": 1}}', b"\xff", b"[" * 100]
)
def test_no_metadata_has_no_name(data: bytes) -> None:
    """Bytes that are no top-level metadata get no file name to be written under."""
    with pytest.raises(TrustError):
        file_name(data)


def test_targets_lie_under_their_digest() -> None:
    """A target's file name begins with its SHA-256, in the folder of its release."""
    assert (
        target_path(NAME, INFO.digest) == f"targets/watch/1.0.0/{INFO.digest.hex}.x86_64-vnni-onnxruntime.esb"
    )


def test_only_root_and_targets_are_countersigned() -> None:
    """What the hub signs by itself is not countersigned by people."""
    with pytest.raises(TrustError):
        countersign(_freshen(_targets()).timestamp, keys=[PUBLISHER])


# Another reader


class _Fetcher(FetcherInterface):
    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix("https://artefacts.example/")
        if path not in self.files:
            raise DownloadHTTPError("no such file", 404)
        return iter([self.files[path]])


def test_another_tuf_client_reads_the_repository(tmp_path: Path) -> None:
    """The reference client of TUF, which knows nothing of us, follows roots, finds a bundle and downloads it."""
    simulator = RepositorySimulator(FakeClock(now=time.time()))  # it reads this machine's clock
    anchor = simulator.root
    simulator.publish({NAME: b"esb"})
    simulator.rotate(root=True, targets=True, online=True)
    simulator.publish({OTHER_NAME: b"esb2"})
    (tmp_path / "metadata").mkdir()
    updater = Updater(
        str(tmp_path / "metadata"),
        "https://artefacts.example/metadata/",
        str(tmp_path),
        "https://artefacts.example/targets/",
        _Fetcher(simulator.files),
        bootstrap=anchor,
    )
    for name, content in ((NAME, b"esb"), (OTHER_NAME, b"esb2")):
        found = updater.get_targetinfo(name)
        assert found is not None
        assert Path(updater.download_target(found)).read_bytes() == content
