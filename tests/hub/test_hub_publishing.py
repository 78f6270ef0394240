"""Publishing and downloading: what the hub takes in, what it serves, and that a real TUF client believes it."""

from __future__ import annotations

import io
import tracemalloc
from typing import TYPE_CHECKING

import pytest
from hub_worlds import CLASS, DAY, World, esb, world
from tuf.api.metadata import Metadata, Root  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import ExpiredError, NotFoundError
from edgestill.core.jsonio import parse_object
from edgestill.core.manifest import REQUIRED
from edgestill.delta.codec import apply
from edgestill.hub import artefacts
from edgestill.hub.settings import Settings
from edgestill.trust.assignment import AssignmentKeys
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import ASSIGNMENT_FIELD, signed_by
from edgestill.trust.repository import TargetInfo, countersign, sign_targets

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

T1 = f"watch/1.0.0/{CLASS}.esb"
T2 = f"watch/1.1.0/{CLASS}.esb"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a root."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        yield made


def client(there: World, folder: Path, root: bytes | None = None) -> TrustedClient:
    """A device's view of the artefact plane."""

    def fetch(path: str, at_most: int) -> bytes:
        reply = there.call("GET", f"/{path}")
        if reply.status == 404:
            raise NotFoundError("no such file", where=path)
        assert reply.status == 200
        assert len(reply.body) <= at_most
        return reply.body

    folder.mkdir(exist_ok=True)
    pinned = root or there.call("GET", "/metadata/1.root.json").body
    return TrustedClient(KeptMetadata(folder), root=pinned, fetch=fetch, clock=there.clock)


def test_a_published_release_is_believed_by_a_device(there: World, tmp_path: Path) -> None:
    """A real TUF client refreshes from the hub's files, and finds the archive under its digest."""
    there.publish("1.0.0")
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    info = trusted.target(T1)
    reply = there.call("GET", f"/targets/watch/1.0.0/{info.digest.hex}.{CLASS}.esb")
    assert Digest.of(reply.body) == info.digest
    assert reply.body == esb("1.0.0")


def test_the_next_release_is_believed_too(there: World, tmp_path: Path) -> None:
    """Versions of targets, snapshot and timestamp grow together; a retired release is gone."""
    there.publish("1.0.0")
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    there.clock.advance(60)
    there.publish("1.1.0", retire=(T1,))
    trusted.refresh()
    assert list(trusted.targets()) == [T2]
    assert there.admin("GET", "releases").json["releases"][0]["release"] == "watch/1.1.0"
    listed = {one["release"]: one["listed"] for one in there.admin("GET", "releases").json["releases"]}
    assert listed == {"watch/1.1.0": True, "watch/1.0.0": False}


def test_archives_are_served_in_ranges(there: World) -> None:
    """Resuming after a break: the rest of the file, 206, and what range it is."""
    there.publish("1.0.0")
    data = esb("1.0.0")
    path = f"/targets/watch/1.0.0/{Digest.of(data).hex}.{CLASS}.esb"
    reply = there.call("GET", path, range="bytes=1000-")
    assert (reply.status, reply.body) == (206, data[1000:])
    assert reply.headers["content-range"] == f"bytes 1000-{len(data) - 1}/{len(data)}"
    assert reply.headers["etag"] == f'"{Digest.of(data).hex}"'
    head = there.call("HEAD", path)
    assert (head.status, head.body, int(head.headers["content-length"])) == (200, b"", len(data))
    assert there.call("GET", path, range=f"bytes={len(data)}-").status == 416


def test_a_patch_is_there_when_the_release_is(there: World) -> None:
    """From the older version of the same name and class; applying it gives the new archive bit for bit."""
    there.publish("1.0.0")
    there.publish("1.1.0")
    old, new = esb("1.0.0"), esb("1.1.0")
    reply = there.call("GET", f"/patches/{Digest.of(old).hex}/{Digest.of(new).hex}")
    assert reply.status == 200
    assert len(reply.body) < len(new) / 5
    out = io.BytesIO()
    apply(io.BytesIO(old), io.BytesIO(reply.body), out, expected=Digest.of(new), max_size=len(new))
    assert out.getvalue() == new


def test_patches_are_made_from_the_newest_older_versions_only(tmp_path: Path) -> None:
    """At most so many bases, no newer ones, none of another class."""
    with world(tmp_path / "hub", settings=Settings(patch_bases=2)) as there:
        there.give_root()
        there.publish("1.0.0", "1.1.0", "1.10.0", "3.0.0")
        there.publish("1.9.0", hardware_class="any")
        there.publish("2.0.0")
        new = Digest.of(esb("2.0.0")).hex
        found = {
            version: there.call("GET", f"/patches/{Digest.of(esb(version)).hex}/{new}").status
            for version in ("1.0.0", "1.1.0", "1.10.0", "3.0.0")
        }
        assert found == {"1.0.0": 404, "1.1.0": 200, "1.10.0": 200, "3.0.0": 404}


def test_a_patch_that_cannot_be_made_costs_the_patch_only(
    there: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The release is published all the same."""

    def broken(_: bytes, __: bytes) -> bytes:
        raise OSError("disk full")

    monkeypatch.setattr(artefacts, "diff", broken)
    there.publish("1.0.0")
    there.publish("1.1.0")
    assert len(there.admin("GET", "releases").json["releases"]) == 2
    old, new = Digest.of(esb("1.0.0")).hex, Digest.of(esb("1.1.0")).hex
    assert there.call("GET", f"/patches/{old}/{new}").status == 404


def test_metadata_says_how_long_it_may_be_kept(there: World) -> None:
    """Numbered files for ever; the timestamp not at all."""
    there.publish("1.0.0")
    kept = {
        name: there.call("GET", f"/metadata/{name}").headers["cache-control"]
        for name in ("1.root.json", "1.targets.json", "timestamp.json")
    }
    assert kept["timestamp.json"] == "no-cache"
    assert "immutable" in kept["1.root.json"]
    assert "immutable" in kept["1.targets.json"]


@pytest.mark.parametrize(
    "path",
    [
        "metadata/../online.pem",
        "metadata/..%2Fonline.pem",
        "metadata/%2e%2e/operator.token",
        "metadata/2.root.json",
        "metadata/root.json",
        "metadata/online.pem",
        "targets/../online.pem",
        "targets/..%2f..%2fhub.db",
        "targets/watch/1.0.0/x86_64-vnni-onnxruntime.esb",
        f"targets/watch/1.0.0/{'0' * 64}.{CLASS}.esb",
        f"targets/a/b/../{'0' * 64}.{CLASS}.esb",
        "patches/../online.pem",
        f"patches/{'0' * 64}/{'0' * 64}",
        "patches/%2e%2e/online.pem",
    ],
)
def test_attack_no_path_leads_out_of_what_is_served(there: World, path: str) -> None:
    """Whatever is written in the path: 404 (or not a path of ours), and never a secret."""
    there.publish("1.0.0")
    reply = there.call("GET", f"/{path}")
    assert reply.status == 404
    assert b"PRIVATE" not in reply.body


def test_an_archive_that_is_not_listed_is_not_served(there: World) -> None:
    """Uploading makes nothing public."""
    info = there.upload(esb("5.0.0"))
    assert there.call("GET", f"/targets/watch/5.0.0/{info.digest.hex}.{CLASS}.esb").status == 404


def test_attack_an_operator_alone_can_publish_nothing(there: World) -> None:
    """A stolen hub, or token, has no targets key: a list signed by any other key is refused."""
    info = there.upload(esb("1.0.0"))
    for thief in (SigningKey.generate(), there.hub.home.key):
        forged = sign_targets(previous=None, add={T1: info}, keys=[thief], expires=there.clock.now() + DAY)
        reply = there.admin("POST", "targets", forged)
        assert (reply.status, reply.json["code"]) == (422, "trust-refused")
    assert there.admin("GET", "metadata/targets").status == 404


def test_attack_an_older_list_does_not_come_back(there: World) -> None:
    """Rolling the list back would bring a retired release back."""
    there.publish("1.0.0")
    old = there.targets
    there.publish("1.1.0", retire=(T1,))
    assert old is not None
    reply = there.admin("POST", "targets", old)
    assert (reply.status, reply.json["code"]) == (422, "trust-refused")


def test_an_expired_list_is_refused(there: World) -> None:
    """With its own code."""
    info = there.upload(esb("1.0.0"))
    targets = there.sign({T1: info})
    there.clock.advance(91 * DAY)
    reply = there.admin("POST", "targets", targets)
    assert (reply.status, reply.json["code"]) == (422, "expired")


def test_publishing_again_what_is_served_changes_nothing(there: World) -> None:
    """An operator whose answer got lost may send it again."""
    there.publish("1.0.0")
    assert there.targets is not None
    before = there.call("GET", "/metadata/timestamp.json").body
    assert there.admin("POST", "targets", there.targets).json == {"listed": [T1]}
    assert there.call("GET", "/metadata/timestamp.json").body == before
    assert there.admin("GET", "metadata/targets").body == there.targets


def test_a_list_is_taken_in_only_when_every_archive_is_here(there: World) -> None:
    """A device must never learn of a release that cannot be had."""
    data = esb("1.0.0")
    targets = there.sign({T1: TargetInfo(len(data), Digest.of(data))})
    reply = there.admin("POST", "targets", targets)
    assert (reply.status, reply.json["what"], reply.json["where"]) == (404, "an archive is not here", T1)
    there.upload(data)
    assert there.admin("POST", "targets", targets).status == 200


def test_an_archive_under_another_name_is_refused(there: World) -> None:
    """What the manifest says and what the path says must be one."""
    info = there.upload(esb("1.0.0"))
    reply = there.admin("POST", "targets", there.sign({T2: info}))
    assert (reply.status, reply.json["what"]) == (409, "an archive is not what its name says")


def test_a_listed_name_keeps_its_content(there: World) -> None:
    """Even a publisher's own key cannot swap what a version is, without removing it first."""
    there.publish("1.0.0")
    other = bundle.build(
        name="watch",
        version="1.0.0",
        hardware_class=CLASS,
        blobs=dict.fromkeys(bundle.Bundle.open(_only_blob(there)).manifest.blobs, b"other"),
    )
    info = there.upload(bundle.archive_bytes(*other))
    retired = there.sign({}, (T1,))
    there.targets = retired
    swapped = there.sign({T1: info})
    reply = there.admin("POST", "targets", swapped)
    assert (reply.status, reply.json["what"]) == (409, "another content under a name that is listed")


def _only_blob(there: World) -> Path:
    info = there.hub.artefacts.publication.listed[T1]
    path, _ = there.hub.artefacts.archive_path(f"watch/1.0.0/{info.digest.hex}.{CLASS}.esb")
    return path


@pytest.mark.parametrize("damage", ["truncated", "altered", "garbage", "empty"])
def test_an_unsound_archive_is_refused_and_not_kept(there: World, damage: str) -> None:
    """With 422; and no upload is left lying about."""
    data = bytearray(esb("1.0.0"))
    data[-30_000:-29_999] = b"\xff" if damage == "altered" else data[-30_000:-29_999]
    body = {"truncated": bytes(data[:5000]), "garbage": b"x" * 5000, "empty": b""}.get(damage, bytes(data))
    if damage == "altered":
        at = bytes(data).index(b"card.md of watch")
        body = bytes(data[:at]) + b"C" + bytes(data[at + 1 :])
    reply = there.admin("PUT", "blobs", body)
    assert reply.status == 422, reply
    assert reply.json["code"].startswith("bundle-")
    assert list(there.hub.home.incoming.iterdir()) == []


def test_attack_an_archive_as_large_as_the_bound_takes_little_memory(tmp_path: Path) -> None:
    """48 MB of archive, taken in, checked and kept: a few megabytes at any moment, whatever its blobs' sizes."""
    blobs = {blob: blob.encode() for blob in REQUIRED} | {
        "model.onnx": bytes(2**25),
        "train.onnx": bytes(2**24),
    }
    archive = bundle.archive_bytes(
        *bundle.build(name="watch", version="1.0.0", hardware_class="any", blobs=blobs)
    )
    with world(tmp_path / "hub") as there:
        artefacts = there.hub.artefacts
        pieces = [archive[at : at + 2**20] for at in range(0, len(archive), 2**20)]
        tracemalloc.start()
        try:
            with artefacts.incoming() as coming:
                for piece in pieces:
                    coming.write(piece)
                info = artefacts.add_archive(coming)
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert (info.size, info.digest) == (len(archive), Digest.of(archive))
        assert peak < 6_000_000
        assert list(there.hub.home.incoming.iterdir()) == []


def test_a_root_must_name_this_hub(there: World) -> None:
    """A root for another hub's key would make every device refuse this one."""
    root = countersign(
        there.root(version=2, epoch=1, online=SigningKey.generate().public), keys=[there.root_key]
    )
    reply = there.admin("POST", "root", root)
    assert (reply.status, reply.json["what"]) == (422, "the root does not name this hub")


@pytest.mark.parametrize("mine", ["roles", "assignments"])
def test_a_root_that_gives_this_hub_half_of_its_work_is_refused(there: World, mine: str) -> None:
    """It must be named for snapshot and timestamp, and for assignments too."""
    other = SigningKey.generate().public
    online, assigning = (there.online, other) if mine == "roles" else (other, there.online)
    root = Metadata[Root].from_bytes(there.root(version=2, online=online))
    keys = AssignmentKeys((assigning,), epoch=int(assigning != there.online))
    root.signed.unrecognized_fields[ASSIGNMENT_FIELD] = keys.as_json()
    reply = there.admin("POST", "root", signed_by(root, [there.root_key]))
    assert (reply.status, reply.json["what"]) == (422, "the root does not name this hub")


def test_attack_a_root_by_other_keys_is_refused(there: World) -> None:
    """The second root needs the signature of the first one's key."""
    thief = SigningKey.generate()
    reply = there.admin("POST", "root", there.root(version=2, root=[thief]))
    assert (reply.status, reply.json["code"]) == (422, "trust-refused")


def test_a_root_rotates_the_targets_key(there: World, tmp_path: Path) -> None:
    """Old devices follow from the first root; the hub says what it waits for until the list is signed anew."""
    there.publish("1.0.0")
    first = there.call("GET", "/metadata/1.root.json").body
    trusted = client(there, tmp_path / "device", first)
    trusted.refresh()
    old, there.targets_key = there.targets_key, SigningKey.generate()
    assert there.admin("POST", "root", there.root(version=2)).status == 200
    assert "metadata cannot be renewed" in there.hub.trouble
    assert there.targets is not None
    again = sign_targets(
        previous=there.targets,
        add={},
        keys=[there.targets_key],
        expires=there.clock.now() + 90 * DAY,
        trusted=[old.public],
    )
    assert there.admin("POST", "targets", again).status == 200
    assert there.hub.trouble == ""
    trusted.refresh()
    assert list(trusted.targets()) == [T1]


def test_the_hub_keeps_its_metadata_fresh(there: World, tmp_path: Path) -> None:
    """After half of the lifetime a new timestamp is made, by whoever polls; devices keep trusting."""
    there.publish("1.0.0")
    device = there.enrol("d0")
    trusted = client(there, tmp_path / "device")
    for _ in range(6):
        there.clock.advance(Settings().metadata_lifetime * 0.6)
        device.poll()
        trusted.refresh()
        assert list(trusted.targets()) == [T1]


def test_without_a_living_hub_metadata_expires(there: World, tmp_path: Path) -> None:
    """Freeze attack: who serves old files for ever is noticed."""
    there.publish("1.0.0")
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    there.clock.advance(Settings().metadata_lifetime * 1.1)
    with pytest.raises(ExpiredError):
        trusted.refresh()


def test_the_hub_says_when_the_publisher_must_sign_again(there: World) -> None:
    """The list runs out: the hub goes on serving, and the page says what is wrong."""
    there.publish("1.0.0")
    device = there.enrol("d0")
    there.clock.advance(91 * DAY)
    assert device.call("GET", "/v1/poll").status == 200
    assert "metadata cannot be renewed" in there.hub.trouble
    page = there.call("GET", "/", authorization=f"Bearer {there.operator}").body.decode()
    assert "metadata cannot be renewed" in page


def test_a_kill_while_publishing_leaves_the_old_list_or_the_new(tmp_path: Path) -> None:
    """Killed at each write in turn: a new hub on the folder serves something whole, and publishing again works."""
    for kill_at in range(4):
        folder = tmp_path / str(kill_at)
        with world(folder) as there:
            there.give_root()
            there.publish("1.0.0")
            there.upload(esb("1.1.0"))
            targets = there.sign({T2: there.upload(esb("1.1.0"))})
            _publish_until(there, targets, kill_at)
            clock = there.clock
            keys = there.root_key, there.targets_key
        with world(folder, clock=clock) as again:
            again.root_key, again.targets_key = keys
            trusted = client(again, folder / f"device{kill_at}")
            trusted.refresh()
            assert T1 in trusted.targets()
            assert again.admin("POST", "targets", targets).status == 200
            trusted.refresh()
            assert set(trusted.targets()) == {T1, T2}


def _publish_until(there: World, targets: bytes, writes: int) -> None:
    """Publishes, and dies before the write of this number."""
    done: list[Path] = []

    def dying(path: Path, data: bytes) -> None:
        if len(done) == writes:
            raise KeyboardInterrupt
        done.append(path)
        bundle.replace(path, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(artefacts, "replace", dying)
        with pytest.raises(KeyboardInterrupt):
            there.hub.artefacts.publish(targets, there.clock.now())


def test_a_damaged_metadata_folder_is_told_at_the_start(tmp_path: Path) -> None:
    """Not served, and not guessed at."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        there.publish("1.0.0")
    (tmp_path / "hub" / "metadata" / "1.snapshot.json").write_bytes(b"{}")
    with pytest.raises(Exception, match="the metadata folder is damaged"), world(tmp_path / "hub"):
        pass


def test_the_publisher_can_ask_for_the_hubs_key(there: World) -> None:
    """The public half, in the form that root metadata takes."""
    assert there.admin("GET", "online-key").json == there.online.as_json()
    root = parse_object(there.call("GET", "/metadata/1.root.json").body, where="root")
    assert there.online.keyid in str(root)
