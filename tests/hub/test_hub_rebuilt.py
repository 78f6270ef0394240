"""A hub is lost with everything in it: another is made of the publisher's folder and the archives, and devices follow it."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Any, cast
from unittest.mock import patch

import pytest
from hub_followers import HERE, Follower, Serving, publish, serving
from hub_worlds import DAY, URL, World, esb, world

from edgestill.cli.republishing import bring
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    AccessError,
    ConflictError,
    EdgestillError,
    NotFoundError,
    SettingError,
    TrustError,
)
from edgestill.core.jsonio import canonical
from edgestill.core.release import target_name
from edgestill.device.home import Home as DeviceHome
from edgestill.device.life import rejoin
from edgestill.device.main import main as agent
from edgestill.link.operator import OperatorClient
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.publisher import Publisher
from edgestill.trust.root import create_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

VERSIONS = ("1.0.0", "1.1.0")
R1 = "watch/1.1.0"


def archives(*versions: str) -> dict[str, bytes]:
    """Target name -> archive."""
    return {target_name("watch", one, HERE): esb(one, hardware_class=HERE) for one in versions}


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    """Of the fleet."""
    return Publisher.init(tmp_path / "publisher", None)


def lost(tmp_path: Path, publisher: Publisher) -> tuple[Follower, int]:
    """A device that ran what its hub assigned, and the port on which that hub was."""
    with serving(tmp_path) as hub:
        for version in VERSIONS:
            publish(publisher, hub.operator(), version)
        device = Follower(tmp_path / "device", hub)
        hub.operator().start_rollout(R1)
        assert device.poll() is not None
        device.close()
        port = int(hub.url.rpartition(":")[2])
    shutil.rmtree(tmp_path / "hub")
    return device, port


def listed(hub: Serving) -> list[str]:
    """Releases that the hub lists."""
    said = cast("Any", hub.operator().releases())
    return sorted(one["release"] for one in said["releases"] if one["listed"])


@pytest.mark.slow
def test_a_device_follows_a_hub_that_was_rebuilt_once_it_has_joined_again(
    tmp_path: Path, publisher: Publisher, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another authority, another online key, versions from 1, counters from 1: the publisher's next root makes it the device's hub."""
    device, port = lost(tmp_path, publisher)
    key = (device.home.path / "device.key").read_bytes()
    believed = device.believes
    with serving(tmp_path, port) as hub:
        bring(publisher, hub.operator(), archives(*VERSIONS), may_change=True, without_missing=False)
        assert listed(hub) == ["watch/1.0.0", R1]
        # its authority is another: believed by the word, which the publisher's root vouches for; but nobody knows the device
        device.start()
        device.later()
        with pytest.raises(EdgestillError):
            device.poll()
        assert device.believes != believed
        with pytest.raises(AccessError):
            device.poll()
        device.close()
        token = hub.operator().join_token()
        arguments = ["rejoin", "--home", str(device.home.path), "--hub", hub.url, "--token", token]
        assert agent(arguments) == 0
        assert "with what it had" in capsys.readouterr().out
        assert (device.home.path / "device.key").read_bytes() == key
        device.home = DeviceHome.open(device.home.path)
        device.start()
        hub.operator().start_rollout(R1)
        before = device.seen
        found = device.poll()
        assert found is not None
        assert found.target.release == R1
        assert found.counter > before
        device.poll()
        assert hub.operator().authority()["behind"] == 0
        device.close()


@pytest.mark.slow
def test_a_rebuilt_hub_that_has_the_old_authority_is_no_stranger(
    tmp_path: Path, publisher: Publisher
) -> None:
    """Where the authority's files were kept, members believe each other all along; the hub lets a device in once it has joined again."""
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), *VERSIONS)
        device = Follower(tmp_path / "device", hub)
        device.poll()
        device.close()
        port = int(hub.url.rpartition(":")[2])
    kept = {name: (tmp_path / "hub" / name).read_bytes() for name in ("authority.key", "authority.pem")}
    shutil.rmtree(tmp_path / "hub")
    (tmp_path / "hub").mkdir()
    for name, data in kept.items():
        (tmp_path / "hub" / name).write_bytes(data)
    with serving(tmp_path, port) as hub:
        bring(publisher, hub.operator(), archives(*VERSIONS), may_change=True, without_missing=False)
        device.start()
        with pytest.raises(AccessError):
            device.poll()
        believed = device.believes
        device.close()
        device.home = rejoin(device.home.path, hub=hub.url, token=hub.operator().join_token())
        device.start()
        device.poll()
        assert device.believes == believed
        device.close()


@pytest.mark.slow
def test_archives_that_are_lost_are_named_or_retired(tmp_path: Path, publisher: Publisher) -> None:
    """Without them nothing is sent and nothing signed, until somebody says that they may go."""
    _, port = lost(tmp_path, publisher)
    before = publisher.targets
    with serving(tmp_path, port) as hub:
        some = archives(VERSIONS[1])
        with pytest.raises(NotFoundError, match="archives of the list are missing") as caught:
            bring(publisher, hub.operator(), some, may_change=True, without_missing=False)
        assert "watch/1.0.0" in str(caught.value.got)
        assert (publisher.targets, publisher.version) == (before, 1)
        with pytest.raises(TrustError, match="another key than the one that is vouched for"):
            bring(publisher, hub.operator(), archives(*VERSIONS), may_change=False, without_missing=False)
        gone = bring(publisher, hub.operator(), some, may_change=True, without_missing=True)
        assert gone == [target_name("watch", "1.0.0", HERE)]
        assert listed(hub) == [R1]
        again = bring(publisher, hub.operator(), {}, may_change=False, without_missing=False)
        assert again == [], "a second time there is nothing to do"


def test_attack_an_archive_in_the_place_of_a_published_one(there: World, publisher: Publisher) -> None:
    """Attack: another content under a published name, or a name that the list has not, is refused before anything is sent."""
    info = {name: TargetInfo(len(data), Digest.of(data)) for name, data in archives("1.0.0").items()}
    online = SigningKey.generate().public
    client = OperatorClient(there.transport, URL, token=there.operator)
    with pytest.raises(NotFoundError, match="nothing was published from this folder"):
        bring(publisher, client, archives("1.0.0"), may_change=True, without_missing=False)
    publisher.sign_root(online, now=SystemClock().now())
    publisher.sign_targets(served=None, add=info, now=SystemClock().now())
    other = {next(iter(info)): archives("1.1.0").popitem()[1]}
    with pytest.raises(ConflictError, match="another archive than the one that was published"):
        bring(publisher, client, other, may_change=True, without_missing=True)
    with pytest.raises(NotFoundError, match="an archive that the list does not name"):
        bring(publisher, client, archives("1.1.0"), may_change=True, without_missing=True)
    assert there.hub.artefacts.publication.root is None
    assert not list(there.hub.home.blobs.glob("*/*/*"))


class Twins:
    """A hub with one version of the list, and two folders of its publisher that have it.

    Args:
        there: the hub.
        publisher: of the first folder.
    """

    def __init__(self, there: World, publisher: Publisher) -> None:
        self.client = OperatorClient(there.transport, URL, token=there.operator)
        self.publishers = [publisher]
        self.publish(0, "1.0.0")
        other = publisher.folder.with_name("other")
        shutil.copytree(publisher.folder, other)
        self.publishers.append(Publisher(other, None))

    def publish(self, which: int, version: str, *, deliver: bool = True) -> None:
        """Signs the next list in a folder."""
        signer = self.publishers[which]
        info = {name: TargetInfo(len(data), Digest.of(data)) for name, data in archives(version).items()}
        if deliver:
            publish(signer, self.client, version)
        else:
            signer.sign_targets(served=None, add=info, now=SystemClock().now())

    def bring(self, which: int, *versions: str, without_missing: bool = False) -> list[str]:
        """Republishes out of a folder."""
        signer = self.publishers[which]
        return bring(
            signer, self.client, archives(*versions), may_change=False, without_missing=without_missing
        )


@pytest.mark.parametrize("without_missing", [True, False])
@pytest.mark.parametrize("ahead", [1, 2])
def test_an_older_list_than_the_hubs_is_not_brought(
    there: World, publisher: Publisher, ahead: int, *, without_missing: bool
) -> None:
    """Nothing is uploaded, nothing signed, and nobody is told that it is done: the folder is behind."""
    twins = Twins(there, publisher)
    for version in ("1.1.0", "1.2.0")[:ahead]:
        twins.publish(1, version)
    served, own = twins.client.targets(), publisher.targets
    with pytest.raises(ConflictError, match="the hub's list is newer than this folder's"):
        twins.bring(0, "1.0.0", without_missing=without_missing)
    assert (twins.client.targets(), publisher.targets) == (served, own)


def test_another_list_of_the_hubs_version_is_not_brought(there: World, publisher: Publisher) -> None:
    """Two folders have signed at once: that is said, and the archive that was given is not uploaded."""
    twins = Twins(there, publisher)
    twins.publish(1, "1.1.0")
    twins.publish(0, "1.2.0", deliver=False)
    before, own = sorted(there.hub.home.blobs.glob("*/*/*")), publisher.targets
    with pytest.raises(TrustError, match="another list of the same version"):
        twins.bring(0, "1.2.0", without_missing=True)
    assert sorted(there.hub.home.blobs.glob("*/*/*")) == before
    assert publisher.targets == own


def test_what_was_brought_is_asked_for_at_the_end(there: World, publisher: Publisher) -> None:
    """A list that somebody else brought meanwhile is found out: nobody is told that all is well."""
    twins = Twins(there, publisher)
    twins.publish(0, "1.1.0", deliver=False)

    upload = OperatorClient.upload_targets

    def late(client: OperatorClient, targets: bytes) -> None:
        """The other folder's list comes right after."""
        upload(client, targets)
        if targets == publisher.targets:
            twins.publish(1, "1.2.0")

    with (
        patch.object(OperatorClient, "upload_targets", late),
        pytest.raises(ConflictError, match="the hub serves another list than was brought"),
    ):
        twins.bring(0, "1.1.0")
    assert twins.client.targets() != publisher.targets


# Joining again


@pytest.mark.slow
def test_attack_joining_again_at_a_hub_of_another_publisher(tmp_path: Path, publisher: Publisher) -> None:
    """Attack: its root does not follow from the one that the device trusts; no token is used, and nothing changes at the device."""
    device, _ = lost(tmp_path, publisher)
    before = {path.name: path.read_bytes() for path in device.home.path.glob("*.*")}
    stranger = Publisher.init(tmp_path / "stranger", None)
    with serving(tmp_path) as hub:
        publish(stranger, hub.operator(), "1.0.0")
        token = hub.operator().join_token()
        with pytest.raises(TrustError):
            rejoin(device.home.path, hub=hub.url, token=token)
        said = cast("Any", hub.operator().join_tokens())
        assert [one["uses_left"] for one in said["tokens"]] == [1]
    assert {path.name: path.read_bytes() for path in device.home.path.glob("*.*")} == before
    with pytest.raises(SettingError, match="not a join token"):
        rejoin(device.home.path, hub=hub.url, token="nonsense")
    with pytest.raises(NotFoundError, match="no device lives here"):
        rejoin(tmp_path / "nobody", hub=hub.url, token=token)


# Every root at once


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub without a root."""
    with world(tmp_path / "hub") as made:
        yield made


def chain(there: World, *lifetimes: float) -> list[bytes]:
    """Roots of as many versions, the last of which names the hub."""
    key, targets = SigningKey.generate(), SigningKey.generate()
    made = []
    for version, lifetime in enumerate(lifetimes, start=1):
        is_last = version == len(lifetimes)
        online = there.online if is_last else SigningKey.from_pem(OLD).public
        made.append(
            create_root(
                root=[key],
                targets=[targets.public],
                online=online,
                expires=there.clock.now() + lifetime,
                version=version,
                epoch=1 if is_last and len(lifetimes) > 1 else 0,
            )
        )
    return made


OLD = SigningKey.generate().to_pem(None)


def sent(there: World, roots: list[bytes]) -> int:
    """The status with which they are answered."""
    return there.admin("POST", "roots", canonical({"roots": [one.decode() for one in roots]})).status


def test_a_new_hub_takes_every_root_and_serves_each(there: World) -> None:
    """Those that named another hub, and those that have ended, only lead to the newest; sending them again changes nothing."""
    roots = chain(there, -DAY, DAY, 30 * DAY)
    for _ in range(2):
        assert sent(there, roots) == 200
        for version, root in enumerate(roots, start=1):
            assert there.call("GET", f"/metadata/{version}.root.json").body == root
    assert there.hub.artefacts.publication.root == roots[-1]


def test_attack_roots_that_do_not_lead_to_this_hub(there: World) -> None:
    """Attack: one left out, in another order, the newest ended or for another hub, another publisher's in between, none, no text."""
    roots, strange = chain(there, DAY, DAY, DAY), chain(there, DAY, DAY, DAY)
    for wrong in (
        [],
        roots[1:],
        [roots[0], roots[2]],
        roots[::-1],
        roots[:2],
        [roots[0], strange[1], roots[2]],
        chain(there, DAY, -1.0),
        [b"{}"],
        [b"\xef\xbf\xbd"],
    ):
        assert 400 <= sent(there, wrong) < 500, wrong
    assert there.hub.artefacts.publication.root is None
    assert not list(there.hub.home.metadata.iterdir())


def test_attack_roots_in_place_of_those_that_there_are(there: World) -> None:
    """Attack: a hub that has a root takes the next one alone."""
    there.give_root()
    before = there.hub.artefacts.publication.root
    assert sent(there, chain(there, DAY, DAY)) == 409
    assert there.hub.artefacts.publication.root == before


def test_a_kill_between_two_roots_is_mended_by_sending_them_again(tmp_path: Path) -> None:
    """The newest is written first: the hub starts, and takes the rest."""
    with world(tmp_path / "hub") as there:
        roots = chain(there, DAY, DAY, DAY)
        assert sent(there, roots) == 200
        for left in range(1, 3):
            (there.hub.home.metadata / f"{left}.root.json").unlink()
    with world(tmp_path / "hub") as again:
        assert again.hub.artefacts.publication.root == roots[-1]
        assert sent(again, roots) == 200
        assert again.call("GET", "/metadata/1.root.json").body == roots[0]
