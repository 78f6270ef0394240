"""Attacks on a device by whoever stands between it and the publisher, or holds some of the keys.

Each attacker serves what they like; the device must refuse, keep what it had, and be well again when the attack ends.
"""

from __future__ import annotations

import contextlib
import json
from hashlib import sha256
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trust_forging import forge, signature

from edgestill.core.errors import EdgestillError, ExpiredError, NotFoundError, TrustError
from edgestill.core.release import Assignment
from edgestill.testing.clock import FakeClock
from edgestill.testing.repository import DAY, RepositorySimulator
from edgestill.trust import assignment
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import MAX_BYTES
from edgestill.trust.repository import countersign, create_root

if TYPE_CHECKING:
    from pathlib import Path

ONE = "watch/1.0.0/x86_64-vnni-onnxruntime.esb"
TWO = "watch/2.0.0/x86_64-vnni-onnxruntime.esb"
EVIL = {"length": 4, "hashes": {"sha256": "66" * 32}}
TIMESTAMP = "metadata/timestamp.json"


def forget(device: TrustedClient, folder: Path) -> None:
    """Lets a device keep nothing that it remembers, and begin in this folder without any metadata."""
    device._kept = KeptMetadata(folder)
    for kept in folder.glob("*.json"):
        kept.unlink()


class World:
    """A repository, a device that has refreshed once, and an attacker between them."""

    def __init__(self, folder: Path, **options: Any) -> None:
        self.clock = FakeClock()
        self.repository = RepositorySimulator(self.clock, **options)
        self.repository.publish({ONE: b"one"})
        self.folder = folder / "trust"
        self.anchor = self.repository.root
        self.client = self.device()
        self.client.refresh()

    def device(self) -> TrustedClient:
        """The device, restarted."""
        return TrustedClient(
            KeptMetadata(self.folder), root=self.anchor, fetch=self.repository.fetch, clock=self.clock
        )

    @property
    def files(self) -> dict[str, bytes]:
        """What is served."""
        return self.repository.files

    def served(self) -> dict[str, bytes]:
        """A copy of what is served now, to replay later."""
        return dict(self.files)

    def refuses(self, complaint: str, error: type[EdgestillError] = TrustError) -> None:
        """The device refuses, running or restarted, and still lists what it listed before, and nothing evil."""
        before = self.client.targets()
        kept = self.folder / "targets.json"
        listed = kept.read_bytes()
        for device in (self.client, self.device()):
            with pytest.raises(error, match=complaint):
                device.refresh()
        assert self.client.targets() == before
        assert kept.read_bytes() == listed

    def recovers(self) -> None:
        """When the honest files are back, the next refresh is fine."""
        self.repository.publish({"watch/9.0.0/any.esb": b"nine"})
        self.client.refresh()
        assert "watch/9.0.0/any.esb" in self.client.targets()


@pytest.fixture
def world(tmp_path: Path) -> World:
    """One of each."""
    return World(tmp_path)


# Old files


def test_attack_rollback_of_the_timestamp(world: World) -> None:
    """Rollback: all files of an earlier day, each with good signatures, are refused."""
    old = world.served()
    world.repository.publish({TWO: b"two"})
    world.client.refresh()
    honest = world.served()
    world.files.update(old)
    world.refuses("New timestamp version 1 must be >= 2")
    world.files.update(honest)
    world.recovers()


def test_attack_rollback_of_the_snapshot_by_a_stolen_hub(world: World) -> None:
    """Rollback: a stolen online key signs a newer timestamp that names an older snapshot."""
    old = world.repository.fresh
    assert old is not None
    world.repository.publish({TWO: b"two"})
    world.client.refresh()
    assert world.repository.fresh is not None
    named = json.loads(old.timestamp)["signed"]["meta"]
    world.files[TIMESTAMP] = forge(
        world.repository.fresh.timestamp,
        lambda signed: signed.update(version=9, meta=named),
        [world.repository.online],
    )
    world.refuses("New snapshot version must be >= 2, got version 1")


def test_attack_rollback_of_the_list_by_a_stolen_hub(world: World) -> None:
    """Rollback: a stolen online key signs a newer snapshot that names an older list, to bring a retired release back."""
    old = world.repository.targets
    assert old is not None
    world.repository.publish({TWO: b"two"}, retire=[ONE])
    world.client.refresh()
    _serve_as_hub(world, old)
    world.refuses("Expected targets.json version")


def test_attack_freeze(world: World) -> None:
    """Freeze: files that stay the same for ever are refused as soon as the timestamp expires."""
    world.clock.advance(DAY - 1)
    world.client.refresh()
    world.clock.advance(1)
    for device in (world.client, world.device()):
        with pytest.raises(ExpiredError, match=r"timestamp\.json is past its time.*set the clock"):
            device.refresh()
        with pytest.raises((ExpiredError, TrustError)):
            device.target(ONE)
    world.recovers()


@pytest.mark.parametrize(("role", "days"), [("targets", 91), ("root", 366)])
def test_attack_freeze_by_a_stolen_hub(tmp_path: Path, role: str, days: int) -> None:
    """Freeze: a stolen online key can sign timestamps for ever, but the publisher's own files still end."""
    world = World(tmp_path, lifetime=1000 * DAY)
    world.clock.advance(days * DAY)
    for device in (world.client, world.device()):
        with pytest.raises(ExpiredError, match=rf"{role}(\.json)? is (past its time|expired)"):
            device.refresh()
        with pytest.raises((ExpiredError, TrustError)):
            device.target(ONE)


def test_attack_withheld_root(world: World) -> None:
    """Freeze: whoever hides the new root of a rotation hides the new timestamps too, and the old one ends."""
    world.repository.rotate(online=True)
    old_timestamp = world.files[TIMESTAMP]
    world.repository.freshen()
    del world.files["metadata/2.root.json"]
    world.refuses("timestamp was signed by 0/1 keys")
    world.files[TIMESTAMP] = old_timestamp
    world.clock.advance(DAY)
    with pytest.raises(ExpiredError):
        world.client.refresh()


# Files that do not belong together, or were changed


def test_attack_mix_and_match(world: World) -> None:
    """Mix and match: a list of one moment is refused under a snapshot of another, though both are well signed."""
    old = world.files["metadata/1.targets.json"]
    world.repository.publish({TWO: b"two"})
    new = world.files["metadata/2.targets.json"]
    world.files["metadata/2.targets.json"] = old
    world.refuses("Observed length")
    world.files["metadata/2.targets.json"] = new
    world.client.refresh()
    assert TWO in world.client.targets()


def test_attack_mix_of_two_snapshots_of_one_version(world: World) -> None:
    """Mix and match: two snapshots with the same version are told apart by the hash in the timestamp."""
    world.repository.publish({TWO: b"two"})
    honest = world.files["metadata/2.snapshot.json"]
    world.files["metadata/2.snapshot.json"] = forge(
        honest, lambda signed: signed.update(expires="2099-01-01T00:00:00Z"), [world.repository.online]
    )
    world.refuses("Observed hash")


@pytest.mark.parametrize("file", ["2.root.json", "timestamp.json", "2.snapshot.json", "2.targets.json"])
@pytest.mark.parametrize("change", ["version", "expires", "extra"])
def test_attack_tampered_metadata(world: World, file: str, change: str) -> None:
    """Tampering: whatever is changed in whichever file, signature, hash or length gives it away."""
    changes: dict[str, Any] = {
        "version": {"version": 7},
        "expires": {"expires": "2099-01-01T00:00:00Z"},
        "extra": {"x": 1},
    }
    world.repository.rotate(root=True)
    world.repository.publish({TWO: b"two"})
    path = f"metadata/{file}"
    honest = world.files[path]
    world.files[path] = forge(honest, lambda signed: signed.update(changes[change]))
    with pytest.raises(TrustError):
        world.client.refresh()
    with pytest.raises(TrustError):
        world.device().refresh()
    world.files[path] = honest
    world.recovers()


@pytest.mark.parametrize("same_length", [True, False])
def test_attack_tampered_targets(world: World, same_length: bool) -> None:
    """Tampering: another digest in the list, in a file of the same or another length, is refused."""
    world.repository.publish({TWO: b"two"})
    path = "metadata/2.targets.json"
    listed = json.loads(world.files[path])["signed"]["targets"][TWO]["hashes"]["sha256"]
    evil = world.files[path].replace(listed.encode(), b"66" * 32)
    world.files[path] = evil if same_length else evil + b" "
    world.refuses("Observed hash" if same_length else "metadata is too long")


def test_attack_swapped_roles(world: World) -> None:
    """Tampering: a well-signed file of one role does not pass for another."""
    world.files[TIMESTAMP] = world.files["metadata/1.snapshot.json"]
    world.refuses("Expected 'timestamp', got 'snapshot'")


@pytest.mark.parametrize("data", [b"", b"null", b"[]", b"\xff\xfe", b"{", b"<html>Sign in to Wi-Fi</html>"])
@pytest.mark.parametrize("file", ["2.root.json", "timestamp.json"])
def test_attack_captive_portal(world: World, file: str, data: bytes) -> None:
    """Not metadata at all, as a hotel's network gives it: refused, and gone with the next honest answer."""
    world.files[f"metadata/{file}"], honest = data, world.files.get(f"metadata/{file}")
    world.refuses("JSON")
    if honest is None:
        del world.files[f"metadata/{file}"]
    world.recovers()


# Keys


def test_attack_key_not_in_root(world: World) -> None:
    """A stranger signs a timestamp, under their own key's id and under the right one."""
    stranger = SigningKey.generate()
    honest = world.files[TIMESTAMP]
    world.files[TIMESTAMP] = forge(honest, lambda signed: signed.update(version=9), [stranger])
    world.refuses("timestamp was signed by 0/1 keys")
    value = json.loads(world.files[TIMESTAMP])
    value["signatures"] = [signature(value["signed"], stranger, world.repository.online.public.keyid)]
    world.files[TIMESTAMP] = json.dumps(value).encode()
    world.refuses("timestamp was signed by 0/1 keys")


def test_attack_stolen_hub_lists_its_own_bundle(world: World) -> None:
    """A stolen online key cannot add to the list: that is signed by the publisher, whose key is not on the hub."""
    assert world.repository.targets is not None
    evil = forge(
        world.repository.targets,
        lambda signed: (signed.update(version=2), signed["targets"].update({TWO: EVIL})),
        [world.repository.online],
    )
    _serve_as_hub(world, evil)
    world.refuses("targets was signed by 0/1 keys")


def test_attack_key_compromise_below_threshold(tmp_path: Path) -> None:
    """With two root keys needed of three, one stolen key makes no root, however often it signs."""
    world = World(tmp_path, root_keys=3, threshold=2)
    thief = world.repository.root_keys[0]
    mine = SigningKey.generate()
    evil = create_root(
        root=[thief], targets=[mine.public], online=mine.public, expires=world.clock.now() + DAY, version=2
    )
    world.files["metadata/2.root.json"] = evil
    world.refuses("root was signed by 1/2 keys")
    world.files["metadata/2.root.json"] = countersign(evil, keys=[thief, mine])
    world.refuses("root was signed by 1/2 keys")


def test_attack_repeated_signature(tmp_path: Path) -> None:
    """One stolen key that signs twice under its one id does not reach a threshold of two."""
    world = World(tmp_path, root_keys=2, threshold=2)
    thief = world.repository.root_keys[0]
    value = json.loads(forge(world.anchor, lambda signed: signed.update(version=2), [thief]))
    value["signatures"] *= 2
    world.files["metadata/2.root.json"] = json.dumps(value).encode()
    world.refuses("Multiple signatures found")


def test_attack_forged_extra_root_field(world: World) -> None:
    """The right to assign is under the root's signatures: a forged field is refused with the whole root."""
    mine = SigningKey.generate()
    world.files["metadata/2.root.json"] = forge(
        world.anchor,
        lambda signed: signed.update(
            {"version": 2, "x-edgestill-assignment": assignment.AssignmentKeys((mine.public,)).as_json()}
        ),
    )
    before = world.client.assignment_keys
    world.refuses("root was signed by 0/1 keys")
    assert world.client.assignment_keys == before
    assert world.device().assignment_keys == before


def test_attack_root_signed_by_nobody_before(world: World) -> None:
    """A root that is signed by its own new keys only is refused: its predecessor must have signed it."""
    mine = SigningKey.generate()
    world.files["metadata/2.root.json"] = create_root(
        root=[mine], targets=[mine.public], online=mine.public, expires=world.clock.now() + DAY, version=2
    )
    world.refuses("root was signed by 0/1 keys")


@pytest.mark.parametrize("version", [1, 3])
def test_attack_root_out_of_turn(world: World, version: int) -> None:
    """Rollback: a well-signed root under another version's name is refused."""
    world.files["metadata/2.root.json"] = forge(
        world.anchor, lambda signed: signed.update(version=version), world.repository.root_keys
    )
    world.refuses("Expected root version 2")


def test_attack_revoked_online_key(world: World) -> None:
    """After a rotation neither the metadata nor the assignments of the stolen online key count any more."""
    stolen = world.repository.online
    order = _order(world, TWO)
    assert (
        assignment.verify(
            assignment.sign(order, stolen),
            keys=world.client.assignment_keys,
            device="d",
            seen=0,
            now=world.client.now(),
        )
        == order
    )
    world.repository.rotate(online=True)
    world.repository.freshen()
    world.client.refresh()
    world.files[TIMESTAMP] = forge(world.files[TIMESTAMP], lambda signed: signed.update(version=99), [stolen])
    world.refuses("timestamp was signed by 0/1 keys")
    with pytest.raises(TrustError, match=r"keys that root\.json names"):
        assignment.verify(
            assignment.sign(order, stolen),
            keys=world.client.assignment_keys,
            device="d",
            seen=0,
            now=world.client.now(),
        )


def test_recovery_from_a_fast_forward(world: World) -> None:
    """A stolen key that set versions to the sky is outlived: after a rotation small versions count again."""
    world.files[TIMESTAMP] = forge(
        world.files[TIMESTAMP], lambda signed: signed.update(version=2**53), [world.repository.online]
    )
    world.client.refresh()
    world.repository.rotate(online=True)
    world.repository.fresh = None
    world.repository.freshen()
    world.client.refresh()
    assert list(world.client.targets()) == [ONE]


def test_attack_assigned_but_not_listed(world: World) -> None:
    """A stolen hub may assign what it likes; what the publisher does not list, or retired, is not installed."""
    order = assignment.verify(
        assignment.sign(_order(world, TWO), world.repository.online),
        keys=world.client.assignment_keys,
        device="d",
        seen=0,
        now=world.client.now(),
    )
    with pytest.raises(TrustError, match="the publisher does not list this target"):
        world.client.target(order.target)


# Too much


def test_attack_endless_timestamp(world: World) -> None:
    """Endless data: whatever a fetcher lets through, a file over the bound is refused unparsed."""
    world.files[TIMESTAMP] += b" " * MAX_BYTES["timestamp"]
    world.refuses(r"metadata is too long; at timestamp\.json; expected 16000 bytes")


def test_attack_oversize_metadata_promised_by_a_stolen_hub(world: World) -> None:
    """Oversize: a stolen online key may promise a snapshot of terabytes; no more than the bound is asked for."""
    world.files[TIMESTAMP] = forge(
        world.files[TIMESTAMP],
        lambda signed: signed.update(
            version=9, meta={"snapshot.json": {"version": 2, "length": 10**13, "hashes": {"sha256": "00"}}}
        ),
        [world.repository.online],
    )
    world.repository.fetched.clear()
    world.refuses("no such file", NotFoundError)
    asked = dict(world.repository.fetched)
    assert asked["metadata/2.snapshot.json"] == MAX_BYTES["snapshot"]


def test_attack_deeply_nested_metadata(world: World) -> None:
    """A small file nested a thousand deep does not exhaust the stack."""
    world.files[TIMESTAMP] = b'{"signed":' + b"[" * 1000 + b"]" * 1000 + b"}"
    world.refuses("JSON is nested too deeply")


def test_attack_repeated_name(world: World) -> None:
    """A file that says two things under one name, so that two readers see two files, is refused."""
    world.files[TIMESTAMP] = world.files[TIMESTAMP].replace(b'{"signatures"', b'{"signed":{},"signatures"', 1)
    world.refuses("a repeated key")


# Anything


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A world with news that the device has not fetched yet."""
    world = World(tmp_path_factory.mktemp("fuzz"))
    world.repository.rotate(root=True)
    world.repository.publish({TWO: b"two"})
    return world


@given(data=st.data())
@settings(max_examples=80)
def test_any_damage_is_refused_or_harmless(fuzzed: World, data: st.DataObject) -> None:
    """However one file is cut, spliced or flipped, the device ends with one of our errors or the honest list."""
    path = data.draw(
        st.sampled_from(sorted(p for p in fuzzed.files if p.startswith("metadata/2") or p == TIMESTAMP))
    )
    honest = fuzzed.files[path]
    start = data.draw(st.integers(0, len(honest)))
    end = data.draw(st.integers(start, min(len(honest), start + 40)))
    splice = data.draw(
        st.binary(max_size=20) | st.sampled_from([b"-1", b"1e9", b"null", b'"\\ud800"', b"[]", b"true"])
    )
    fuzzed.files[path] = honest[:start] + splice + honest[end:]
    device = fuzzed.device()
    forget(device, fuzzed.folder.parent / "none")  # a device without a memory reads every file
    try:
        device.refresh()
    except EdgestillError:
        return
    finally:
        fuzzed.files[path] = honest
    assert sorted(device.targets()) == [ONE, TWO]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 2**60) | st.floats() | st.text(max_size=5) | st.just("00"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=5), inner, max_size=2),
    max_leaves=6,
)


@given(data=st.data())
@settings(max_examples=120)
def test_any_value_in_any_field_gives_a_coded_error(fuzzed: World, data: st.DataObject) -> None:
    """A thief of every key may put any JSON into any field: the device never crashes."""
    file, keys = data.draw(
        st.sampled_from(
            [
                ("2.root.json", fuzzed.repository.root_keys),
                ("timestamp.json", [fuzzed.repository.online]),
                ("2.snapshot.json", [fuzzed.repository.online]),
            ]
        )
    )
    path = f"metadata/{file}"
    honest = fuzzed.files[path]
    value = json.loads(honest)
    _replace_somewhere(value, data)
    fuzzed.files[path] = json.dumps(value).encode()
    with contextlib.suppress(Exception):  # what cannot be signed is served as it is
        fuzzed.files[path] = forge(fuzzed.files[path], dict, keys)
    device = fuzzed.device()
    forget(device, fuzzed.folder.parent / "none")
    with contextlib.suppress(EdgestillError):
        device.refresh()
    fuzzed.files[path] = honest


def _replace_somewhere(value: Any, data: st.DataObject) -> None:
    """Replaces one entry, at any depth."""
    while True:
        places = sorted(value) if isinstance(value, dict) else list(range(len(value)))
        place = data.draw(st.sampled_from(places))
        inner = value[place]
        if not isinstance(inner, dict | list) or not inner or data.draw(st.booleans()):
            value[place] = data.draw(JSON)
            return
        value = inner


def _order(world: World, target: str) -> Assignment:
    return Assignment(device="d", counter=1, target=target, expires=int(world.clock.now()) + 3600)


def _serve_as_hub(world: World, targets: bytes) -> None:
    """Pins any list at all with the online key, as a thief of that key can."""
    online = [world.repository.online]
    assert world.repository.fresh is not None
    version = json.loads(targets)["signed"]["version"]
    pinned = {
        "version": version,
        "length": len(targets),
        "hashes": {"sha256": sha256(targets).hexdigest()},
    }
    snapshot = forge(
        world.repository.fresh.snapshot,
        lambda signed: signed.update(version=50, meta={"targets.json": pinned}),
        online,
    )
    named = {
        "version": 50,
        "length": len(snapshot),
        "hashes": {"sha256": sha256(snapshot).hexdigest()},
    }
    world.files[f"metadata/{version}.targets.json"] = targets
    world.files["metadata/50.snapshot.json"] = snapshot
    world.files[TIMESTAMP] = forge(
        world.repository.fresh.timestamp,
        lambda signed: signed.update(version=50, meta={"snapshot.json": named}),
        online,
    )
