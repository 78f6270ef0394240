"""Lists of roles at the hub: what it takes in and serves, what becomes of them, and that real TUF clients believe it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hub_worlds import CLASS, DAY, World, esb, world
from tuf.api.exceptions import DownloadHTTPError
from tuf.ngclient.fetcher import FetcherInterface
from tuf.ngclient.updater import Updater

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import NotFoundError, TrustError
from edgestill.hub import artefacts
from edgestill.hub.delegates import MOST_NAMED
from edgestill.link.control import ControlClient
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import SigningKey
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.repository import sign_targets
from edgestill.trust.roles import Delegation

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from pathlib import Path

    from hub_worlds import Reply

AUTO = f"auto/{CLASS}"
T1, T2, T3 = (f"watch/{version}/{CLASS}.esb" for version in ("1.0.0", "1.1.0", "1.2.0"))
LAB, MAKER = SigningKey.generate(), SigningKey.generate()


def auto(key: SigningKey = LAB) -> Delegation:
    """The lab's role."""
    return Delegation(role=AUTO, keys=(key.public,), names=("watch",))


def by_class(key: SigningKey = MAKER) -> Delegation:
    """The role of who builds for the hardware."""
    return Delegation(role=CLASS, keys=(key.public,))


def delegate(
    there: World,
    *roles: Delegation,
    revoke: tuple[str, ...] = (),
    add: Mapping[str, TargetInfo] | None = None,
) -> Reply:
    """The publisher's next list, with these roles from now on."""
    targets = sign_targets(
        previous=there.targets,
        add=add or {},
        keys=[there.targets_key],
        expires=there.clock.now() + 90 * DAY,
        delegate=roles,
        undelegate=revoke,
    )
    reply = there.admin("POST", "targets", targets)
    if reply.status == 200:
        there.targets = targets
    return reply


def role_list(
    there: World, *versions: str, key: SigningKey = LAB, previous: bytes | None = None, **changes: Any
) -> bytes:
    """A list of these versions, whose archives are uploaded."""
    add = {f"watch/{version}/{CLASS}.esb": there.upload(esb(version)) for version in versions}
    values: dict[str, Any] = {"keys": [key], "expires": there.clock.now() + 30 * DAY}
    return sign_targets(previous=previous, add=add, **(values | changes))


def publish(there: World, data: bytes, role: str = AUTO) -> Reply:
    """Hands a role's list over."""
    return there.admin("POST", "roles/" + role.replace("/", "%2F"), data)


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub whose publisher has listed 1.0.0 and delegates to the lab, which has listed 1.1.0."""
    with world(tmp_path / "hub") as made:
        begin(made)
        yield made


def begin(there: World) -> bytes:
    """As the fixture says; the lab's list."""
    there.give_root()
    there.publish("1.0.0")
    assert delegate(there, auto(), by_class()).status == 200
    assert publish(there, role_list(there, key=MAKER), CLASS).status == 200
    data = role_list(there, "1.1.0")
    assert publish(there, data).status == 200
    return data


def client(there: World, folder: Path) -> TrustedClient:
    """A device's view of the artefact plane, over its own control client."""
    control = ControlClient(there.transport, "http://hub.test")
    pinned = there.call("GET", "/metadata/1.root.json").body
    return TrustedClient(KeptMetadata(folder), root=pinned, fetch=control.artefact, clock=there.clock)


def listed(there: World) -> set[str]:
    """What devices may be assigned."""
    return set(there.hub.artefacts.publication.listed)


def roles(there: World) -> dict[str, Any]:
    """What operators are told, by role."""
    return {one["role"]: one for one in there.admin("GET", "roles").json["roles"]}


def test_a_role_list_is_taken_in_and_believed_by_a_device(there: World, tmp_path: Path) -> None:
    """The whole way: its file with a quoted name, its version in the snapshot, its archive under its digest, a patch to it."""
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    found = trusted.listing(T2)
    assert (found.role, found.info.digest) == (AUTO, Digest.of(esb("1.1.0")))
    assert trusted.listing(T1).role == "targets"
    reply = there.call("GET", f"/targets/watch/1.1.0/{found.info.digest.hex}.{CLASS}.esb")
    assert reply.body == esb("1.1.0")
    assert there.call("GET", f"/patches/{Digest.of(esb('1.0.0')).hex}/{found.info.digest.hex}").status == 200
    told = {
        one["release"]: one["bundles"][CLASS]["role"]
        for one in there.admin("GET", "releases").json["releases"]
    }
    assert told == {"watch/1.0.0": "targets", "watch/1.1.0": AUTO}


class _Fetcher(FetcherInterface):
    """python-tuf's own way to the hub."""

    def __init__(self, there: World) -> None:
        self.there = there
        self.asked: list[str] = []

    def _fetch(self, url: str) -> Iterator[bytes]:
        path = url.removeprefix("http://hub.test")
        self.asked.append(path)
        reply = self.there.call("GET", path)
        if reply.status != 200:
            raise DownloadHTTPError("not there", reply.status)
        return iter([reply.body])


def test_another_client_of_tuf_believes_it(
    there: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """python-tuf's Updater finds and downloads what the lab lists, by the names of files that it makes itself."""
    import datetime as dt

    at = dt.datetime.fromtimestamp(there.clock.now(), dt.UTC)

    class Now(dt.datetime):
        """The hub's time."""

        @classmethod
        def now(cls, tz: dt.tzinfo | None = None) -> Any:
            """It stands."""
            del tz
            return at

    monkeypatch.setattr("tuf.ngclient._internal.trusted_metadata_set.datetime.datetime", Now)
    fetcher = _Fetcher(there)
    updater = Updater(
        str(tmp_path),
        "http://hub.test/metadata/",
        str(tmp_path),
        "http://hub.test/targets/",
        fetcher=fetcher,
        bootstrap=there.call("GET", "/metadata/1.root.json").body,
    )
    target = updater.get_targetinfo(T2)
    assert target is not None
    assert updater.get_targetinfo(T3) is None
    updater.download_target(target, str(tmp_path / "got"))
    assert (tmp_path / "got").read_bytes() == esb("1.1.0")
    assert f"/metadata/1.auto%2F{CLASS}.json" in fetcher.asked


def test_who_may_list_what_is_told(there: World) -> None:
    """To operators, and to the lab that goes on from there."""
    told = roles(there)
    assert list(told) == [CLASS, AUTO]
    assert told[AUTO]["keys"] == [LAB.public.keyid]
    assert (told[AUTO]["version"], told[AUTO]["listed"], told[CLASS]["listed"]) == (1, [T2], [])
    assert told[AUTO]["paths"] == [f"watch/*/{CLASS}.esb"]
    assert there.admin("GET", f"roles/auto%2F{CLASS}").body.startswith(b"{")
    assert there.admin("GET", "roles/auto%2Fother").status == 404


def test_the_next_list_goes_on(there: World, tmp_path: Path) -> None:
    """What is retired is gone, also for who had it; the same list again changes nothing."""
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    before = there.hub.artefacts.publication.delegated[AUTO].data
    after = sign_targets(previous=before, add={}, remove=[T2], keys=[LAB], expires=there.clock.now() + DAY)
    assert publish(there, after).status == 200
    stamp = there.call("GET", "/metadata/timestamp.json").body
    assert publish(there, after).status == 200
    assert there.call("GET", "/metadata/timestamp.json").body == stamp
    trusted.refresh()
    with pytest.raises(TrustError, match="does not list this target"):
        trusted.listing(T2)
    assert listed(there) == {T1}
    assert (publish(there, before).status, publish(there, before).json["what"]) == (
        422,
        "the list does not grow",
    )


def test_it_is_there_after_a_restart(tmp_path: Path) -> None:
    """From the files that the snapshot names, and fresh metadata goes on naming it."""
    with world(tmp_path / "hub") as there:
        begin(there)
        clock = there.clock
    with world(tmp_path / "hub", clock=clock) as again:
        assert listed(again) == {T1, T2}
        assert roles(again)[AUTO]["version"] == 1
        again.clock.advance(DAY)
        again.hub.artefacts.freshen(again.clock.now())
        trusted = client(again, tmp_path / "device")
        trusted.refresh()
        assert trusted.listing(T2).role == AUTO


@pytest.mark.parametrize("thief", ["maker", "stranger", "hub", "publisher"])
def test_attack_a_role_list_by_another_key_is_refused(there: World, thief: str) -> None:
    """Another role's, a stranger's, the hub's own, and the publisher's, which has its own list."""
    keys = {"maker": MAKER, "hub": there.hub.home.key, "publisher": there.targets_key}
    key = keys.get(thief) or SigningKey.generate()
    forged = role_list(there, "1.2.0", key=key, least=2)
    assert publish(there, forged).status == 422
    assert listed(there) == {T1, T2}


@pytest.mark.parametrize(("version", "status"), [(1, 422), (2, 200), (1001, 200), (1002, 422), (10**9, 422)])
def test_attack_a_role_list_that_leaps_or_goes_back(there: World, version: int, status: int) -> None:
    """A stolen key cannot use up the versions by one signature."""
    data = role_list(there, "1.2.0", least=version)
    assert publish(there, data).status == status


def test_a_role_that_was_not_delegated_and_a_list_too_early_are_refused(tmp_path: Path) -> None:
    """Before the publisher has said anything, and for a role that it did not name."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        data = role_list(there, "1.1.0")
        reply = publish(there, data)
        assert (reply.status, reply.json["what"]) == (409, "nothing is published yet")
        there.publish("1.0.0")
        reply = publish(there, data)
        assert (reply.status, reply.json["what"]) == (404, "the publisher delegates nothing to this role")
        for hostile in ("../root", "auto/../targets", "targets", "x" * 300):
            assert publish(there, data, hostile).status in {404, 422}


def test_a_role_list_needs_its_archives(there: World) -> None:
    """A device must never learn of a bundle that cannot be had; nor of one that is not what its name says."""
    missing = sign_targets(
        previous=None,
        add={T3: TargetInfo(7, Digest.of(b"nowhere"))},
        keys=[LAB],
        expires=there.clock.now() + DAY,
        least=2,
    )
    assert (publish(there, missing).status, publish(there, missing).json["what"]) == (
        404,
        "an archive is not here",
    )
    other = sign_targets(
        previous=None,
        add={T3: there.upload(esb("1.0.0"))},
        keys=[LAB],
        expires=there.clock.now() + DAY,
        least=2,
    )
    assert publish(there, other).json["what"] == "an archive is not what its name says"


def other_archive(there: World, version: str) -> bytes:
    """Another bundle of the same name and version."""
    info = there.upload(esb(version))
    path, _ = there.hub.artefacts.archive_path(f"watch/{version}/{info.digest.hex}.{CLASS}.esb")
    known = bundle.Bundle.open(path).manifest.blobs
    blobs = dict.fromkeys(known, b"other")
    return bundle.archive_bytes(
        *bundle.build(name="watch", version=version, hardware_class=CLASS, blobs=blobs)
    )


def test_attack_the_lab_cannot_occupy_a_name(there: World, tmp_path: Path) -> None:
    """What the publisher lists itself counts, also where the lab had listed another content under that name before."""
    theirs = there.upload(other_archive(there, "1.1.0"))
    assert delegate(there, add={T2: theirs}).status == 200
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    found = trusted.listing(T2)
    assert (found.role, found.info) == ("targets", theirs)
    assert there.hub.artefacts.publication.listed[T2] == theirs
    assert there.call("GET", f"/targets/watch/1.1.0/{theirs.digest.hex}.{CLASS}.esb").status == 200
    before = there.hub.artefacts.publication.delegated[AUTO].data
    renewed = sign_targets(previous=before, add={}, keys=[LAB], expires=there.clock.now() + DAY)
    assert publish(there, renewed).json["what"] == "a name that is listed already, with another content"
    retired = sign_targets(previous=before, add={}, remove=[T2], keys=[LAB], expires=there.clock.now() + DAY)
    assert publish(there, retired).status == 200
    assert listed(there) == {T1, T2}


def test_attack_a_revoked_role_is_served_no_more(there: World, tmp_path: Path) -> None:
    """Its list, its bundles and its file are gone at once; its version stays named, so that it cannot come back older."""
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    data = there.hub.artefacts.publication.delegated[AUTO].data
    assert delegate(there, revoke=(AUTO,)).status == 200
    assert listed(there) == {T1}
    assert there.call("GET", f"/metadata/1.auto%2F{CLASS}.json").status == 404
    assert there.call("GET", f"/targets/watch/1.1.0/{Digest.of(esb('1.1.0')).hex}.{CLASS}.esb").status == 404
    trusted.refresh()
    with pytest.raises(TrustError, match="does not list this target"):
        trusted.listing(T2)
    assert publish(there, data).status == 404
    assert delegate(there, auto()).status == 200
    assert publish(there, data).json["what"] == "the list does not grow"
    assert there.hub.trouble == ""


def test_a_lost_key_is_replaced(there: World, tmp_path: Path) -> None:
    """The old key's list is dropped with the next list of the publisher; the new one begins above it, and what it lists is believed."""
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    assert trusted.listing(T2).role == AUTO
    fresh = SigningKey.generate()
    assert delegate(there, auto(fresh)).status == 200
    assert (roles(there)[AUTO]["version"], roles(there)[AUTO]["listed"]) == (1, None)
    assert listed(there) == {T1}
    assert publish(there, role_list(there, "1.2.0", key=LAB, least=2)).status == 422
    assert publish(there, role_list(there, "1.2.0", key=fresh)).json["what"] == "the list does not grow"
    assert publish(there, role_list(there, "1.2.0", key=fresh, least=2)).status == 200
    trusted.refresh()
    assert trusted.listing(T3).role == AUTO
    with pytest.raises(TrustError, match="does not list this target"):
        trusted.listing(T2)


def test_a_new_key_of_the_hub_keeps_the_lists_that_still_hold(there: World, tmp_path: Path) -> None:
    """And forgets the versions of those that do not: that is how one that has leapt is recovered from (TUF 5.3.11)."""
    assert delegate(there, by_class(SigningKey.generate())).status == 200
    assert there.hub.artefacts.versions_said[CLASS] == 1
    fresh = SigningKey.generate()
    object.__setattr__(there.hub.home, "key", fresh)
    assert there.admin("POST", "root", there.root(version=2, epoch=1, online=fresh.public)).status == 200
    assert there.hub.trouble == ""
    assert there.hub.artefacts.versions_said == {"targets": 3, AUTO: 1}
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    assert trusted.listing(T1).role == "targets"


def test_names_of_roles_do_not_grow_for_ever(there: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A snapshot names revoked roles too, and a device takes one of bounded length."""
    assert MOST_NAMED * 300 < 64_000
    monkeypatch.setattr(artefacts, "MOST_NAMED", 3)
    other = Delegation(role="other", keys=(LAB.public,))
    assert delegate(there, other, revoke=(CLASS,)).status == 200
    reply = publish(there, role_list(there), "other")
    assert (reply.status, reply.json["what"]) == (409, "there were too many roles")


def test_an_expired_role_list_does_not_silence_the_publisher(there: World, tmp_path: Path) -> None:
    """A lab that was given up: fresh metadata is made all the same, and devices go on with what the publisher lists."""
    trusted = client(there, tmp_path / "device")
    trusted.refresh()
    there.clock.advance(40 * DAY)
    there.hub.artefacts.freshen(there.clock.now())
    trusted.refresh()
    assert trusted.listing(T1).role == "targets"
    with pytest.raises(Exception, match=r"past its time|expired"):
        trusted.listing(T2)


@pytest.mark.parametrize(
    "path",
    [
        "metadata/1.auto%2F..%2Ftargets.json",
        "metadata/..%2Fonline.pem",
        "metadata/1.auto/../../online.pem",
        "metadata/1.auto%252Fx86_64-vnni-onnxruntime.json",
        "metadata/2.auto%2Fx86_64-vnni-onnxruntime.json",
        "metadata/auto%2Fx86_64-vnni-onnxruntime.json",
        "metadata/1.auto%2Fother.json",
        "metadata/1.hub.json",
    ],
)
def test_attack_no_name_of_a_role_leads_out_of_what_is_served(there: World, path: str) -> None:
    """Whatever is written in the path: 404, and never a secret."""
    reply = there.call("GET", f"/{path}")
    assert reply.status == 404
    assert b"PRIVATE" not in reply.body


def test_both_spellings_of_a_role_file_are_served(there: World) -> None:
    """Some servers and clients unquote a path on their way."""
    quoted, plain = (there.call("GET", f"/metadata/1.auto{slash}{CLASS}.json") for slash in ("%2F", "/"))
    assert (quoted.status, quoted.body) == (200, plain.body)
    assert "immutable" in quoted.headers["cache-control"]


def test_what_a_role_lists_is_written_into_the_audit_log(there: World) -> None:
    """Who handed it over, for which role, and what may be installed since."""
    entries = there.admin("GET", "audit-log").json["entries"]
    done = [one for one in entries if one["what"] == "role.publish" and "released" in str(one)]
    assert T2 in str(done[-1])
    assert any(AUTO in str(one) for one in entries if one["what"] == "role.publish")


def test_a_kill_while_publishing_a_role_leaves_the_old_list_or_the_new(tmp_path: Path) -> None:
    """Killed at each write in turn: a new hub on the folder serves something whole, and publishing again works."""
    for kill_at in range(6):
        folder = tmp_path / str(kill_at)
        with world(folder) as there:
            before = begin(there)
            data = role_list(there, "1.2.0", previous=before)
            done: list[Path] = []

            def dying(path: Path, data: bytes, done: list[Path] = done, kill_at: int = kill_at) -> None:
                if len(done) == kill_at:
                    raise KeyboardInterrupt
                done.append(path)
                bundle.replace(path, data)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(artefacts, "replace", dying)
                with pytest.raises(KeyboardInterrupt):
                    there.hub.artefacts.publish_role(AUTO, data, there.clock.now())
            clock, keys = there.clock, (there.root_key, there.targets_key)
        with world(folder, clock=clock) as again:
            again.root_key, again.targets_key = keys
            trusted = client(again, folder / "device")
            trusted.refresh()
            assert trusted.listing(T2).role == AUTO
            assert publish(again, data).status == 200
            trusted.refresh()
            assert trusted.listing(T3).role == AUTO


def test_a_role_file_that_is_gone_is_told_at_the_start(tmp_path: Path) -> None:
    """Not served, and not guessed at."""
    with world(tmp_path / "hub") as there:
        begin(there)
    (tmp_path / "hub" / "metadata" / f"1.auto%2F{CLASS}.json").unlink()
    with pytest.raises(Exception, match="the metadata folder is damaged"), world(tmp_path / "hub"):
        pass


def test_a_rollout_reaches_what_a_role_lists(there: World) -> None:
    """Devices are assigned it as any other release; the list of those that are offered says who lists it."""
    device = there.enrol("d0")
    there.roll_out("watch/1.1.0")
    told = device.poll()
    assert told["target"] == T2
    delegate(there, revoke=(AUTO,))
    reply = there.admin("POST", "rollouts", {"release": "watch/1.1.0"})
    assert (reply.status, reply.json["what"]) == (404, "no such release is listed")
    with pytest.raises(NotFoundError):
        there.hub.artefacts.archive_path(f"watch/1.1.0/{Digest.of(esb('1.1.0')).hex}.{CLASS}.esb")
