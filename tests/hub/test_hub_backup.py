"""A hub is copied while it serves, and made again of the copy; what is damaged is refused, and a kill leaves nothing half-done."""

from __future__ import annotations

import json
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from hub_followers import HERE, Follower, publish, serving
from hub_worlds import World, esb, world

from edgestill.cli.republishing import bring
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ConflictError,
    EdgestillError,
    MessageError,
    NotFoundError,
    PathError,
    StoreError,
    TrustError,
)
from edgestill.core.release import target_name
from edgestill.hub import backup as backups
from edgestill.hub import handover
from edgestill.hub.backup import MANIFEST, back_up, restore, verify
from edgestill.hub.home import Home
from edgestill.hub.main import main
from edgestill.testing.clock import FakeClock
from edgestill.trust.publisher import Publisher

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

CLOCK = FakeClock()
R1 = "watch/1.0.0"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with two releases, one of which a device runs."""
    with world(tmp_path / "hub") as made:
        made.give_root()
        made.publish("1.0.0", "1.1.0")
        device = made.enrol("d0")
        made.roll_out(R1)
        made.confirm_all([device], R1)
        yield made


@pytest.fixture
def taken(there: World, tmp_path: Path) -> Path:
    """A backup of it."""
    back_up(there.hub.home.folder, tmp_path / "backup", clock=CLOCK)
    return tmp_path / "backup"


def test_a_backup_of_a_hub_that_serves_is_restored_as_it_was(
    there: World, taken: Path, tmp_path: Path
) -> None:
    """Devices, releases, rollouts, credentials and the audit log; another online key, and another token of the operator."""
    home = restore(taken, tmp_path / "again")
    assert home.key.public != there.hub.home.key.public
    assert home.operator != there.hub.home.operator
    assert home.authority.authorities.digests == there.hub.home.authority.authorities.digests
    paths = ("fleet", "releases", "rollouts/1", "join-tokens", "operators")
    before = {path: there.admin("GET", path).json for path in paths}
    log = there.admin("GET", "audit-log").json["entries"]
    with world(tmp_path / "again") as again:
        assert {path: again.admin("GET", path).json for path in paths} == before
        assert again.admin("GET", "audit-log").json["entries"][: len(log)] == log
        assert again.call("GET", "/metadata/1.root.json").status == 200


def test_a_backup_holds_no_key_that_assigns_and_is_its_owners_alone(there: World, taken: Path) -> None:
    """Neither the online key nor the operator's token, by name or by content; no other user reads a file."""
    secrets = [(there.hub.home.folder / name).read_bytes() for name in ("online.pem", "operator.token")]
    files = [path for path in taken.rglob("*") if path.is_file()]
    assert files
    for path in files:
        data = path.read_bytes()
        assert all(secret.strip() not in data for secret in secrets)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(taken.stat().st_mode) == 0o700
    assert not any(path.name in {"online.pem", "operator.token", "server.pem", "lock"} for path in files)


def test_a_hand_over_that_is_under_way_is_copied_too(tmp_path: Path) -> None:
    """With both keys; the restored hub goes on with it."""
    with world(tmp_path / "hub") as there:
        there.give_root()
        for step in ("begin", "switch"):
            there.admin("POST", f"authority/{step}", b"" if step == "begin" else {})
        back_up(there.hub.home.folder, tmp_path / "backup", clock=CLOCK)
    restore(tmp_path / "backup", tmp_path / "again")
    assert handover.standing_of(tmp_path / "again").phase == "switched"
    handover.finish(tmp_path / "again")


def test_a_backup_while_releases_come_is_whole(there: World, tmp_path: Path) -> None:
    """Whatever moment it catches: what its metadata names is in it, and it can be served."""
    stop, caught = threading.Event(), []

    def copy() -> None:
        number = 0
        while not stop.is_set() or number < 2:
            to = tmp_path / f"backup-{number}"
            back_up(there.hub.home.folder, to, clock=CLOCK)
            caught.append(to)
            number += 1

    thread = threading.Thread(target=copy)
    thread.start()
    try:
        for number in range(8):
            there.publish(f"2.0.{number}")
    finally:
        stop.set()
        thread.join()
    for number, one in enumerate(caught):
        restore(one, tmp_path / f"again-{number}")
        with world(tmp_path / f"again-{number}") as again:
            for release in again.admin("GET", "releases").json["releases"]:
                for name, info in release["bundles"].items():
                    path = f"/targets/{release['release']}/{info['digest'][7:]}.{name}.esb"
                    assert again.call("GET", path).status == 200


@pytest.mark.parametrize("moment", ["authority.pem", "metadata/timestamp.json"])
def test_a_release_that_comes_between_two_files_of_a_backup(
    there: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """A timestamp that is renewed just before it is copied has what it names copied, too."""
    copied = backups._copied

    def publishing(source: Path, to: Path, **rest: Any) -> Any:
        if source == there.hub.home.folder / moment:
            there.publish("2.0.0")
        return copied(source, to, **rest)

    with monkeypatch.context() as patched:
        patched.setattr(backups, "_copied", publishing)
        back_up(there.hub.home.folder, tmp_path / "backup", clock=CLOCK)
    restore(tmp_path / "backup", tmp_path / "again")
    with world(tmp_path / "again") as again:
        assert again.hub.artefacts.publication.listed == there.hub.artefacts.publication.listed


# What is refused


@pytest.mark.parametrize("way", ["altered", "cut", "gone", "longer"])
def test_attack_any_file_of_a_backup_that_was_changed(taken: Path, tmp_path: Path, way: str) -> None:
    """Attack: every one of them is refused, and nothing is left of the restoring."""
    files = [path for path in taken.rglob("*") if path.is_file() and path.name != MANIFEST]
    for path in files:
        data = path.read_bytes()
        if way == "gone":
            path.unlink()
        else:
            changed = {"altered": data[:-1] + bytes([data[-1] ^ 1]), "cut": data[:-1], "longer": data + b"x"}
            path.write_bytes(changed[way])
        for tried in (lambda: verify(taken), lambda: restore(taken, tmp_path / "again")):
            with pytest.raises(StoreError):
                tried()
        assert not list(tmp_path.glob("*again*")) + list(tmp_path.glob(".again*"))
        path.write_bytes(data)
    verify(taken)


def edited(taken: Path, change: Callable[[Any], object]) -> None:
    """A backup whose list says something else."""
    value = json.loads((taken / MANIFEST).read_bytes())
    change(value)
    (taken / MANIFEST).write_text(json.dumps(value))


@pytest.mark.parametrize(
    "name",
    ["../evil", "/etc/passwd", "metadata/../../evil", "online.pem", "operator.token", "lock", "blobs/incoming/x",
     "metadata/.hidden.json", "blobs/ab/cd/" + "g" * 64, "hub.db-wal", "metadata/a/b/c"],
)  # fmt: skip
def test_attack_a_name_that_leads_elsewhere(taken: Path, tmp_path: Path, name: str) -> None:
    """Attack: a list may name no file but those that a backup has."""
    entry = {"size": 1, "digest": "sha256:" + "0" * 64}
    edited(taken, lambda value: value["files"].update({name: entry}))
    with pytest.raises(MessageError, match="a name that no backup has"):
        restore(taken, tmp_path / "again")
    assert not (tmp_path / "evil").exists()


def test_attack_a_file_that_is_longer_than_its_size_says(taken: Path, tmp_path: Path) -> None:
    """Attack: of 2 GB behind a size of a few bytes, no more than one byte too many is read or written."""
    name = "authority.pem"
    size = (taken / name).stat().st_size
    with (taken / name).open("r+b") as file:
        file.truncate(2 << 30)
    written: list[int] = []

    def copied(source: Path, target: Path, **rest: Any) -> Any:
        found = _copied(source, target, **rest)
        written.append(target.stat().st_size)
        return found

    with (
        patch("edgestill.hub.backup._copied", copied),
        pytest.raises(StoreError, match="a file of the backup is another one"),
    ):
        restore(taken, tmp_path / "again")
    assert written[-1] == size + 1
    with pytest.raises(StoreError, match="a file of the backup is another one"):
        verify(taken)


def test_attack_a_link_in_a_backup(taken: Path, tmp_path: Path) -> None:
    """Attack: it is not followed, whatever it leads to; the right bytes included."""
    path = taken / "authority.pem"
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    for tried in (lambda: verify(taken), lambda: restore(taken, tmp_path / "again")):
        with pytest.raises(PathError):
            tried()
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize("named", [".", "/", "../here", ""])
def test_a_backup_to_here_or_to_the_root(
    there: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, named: str
) -> None:
    """The folder that the program runs in has no other in its place, also where it is empty; what is there stays."""
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    with pytest.raises(ConflictError, match="there is something already"):
        back_up(there.hub.home.folder, Path(named), clock=CLOCK)
    assert not list(here.iterdir())


def test_a_backup_by_a_relative_name_or_a_link(
    there: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Takes the place of the empty folder that is meant."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    for named, place in (("relative", "relative"), ("link", "empty"), ("hub/../other", "other")):
        back_up(there.hub.home.folder, Path(named), clock=CLOCK)
        verify(tmp_path / place)


def test_two_backups_at_once_to_one_name(there: World, tmp_path: Path) -> None:
    """The later one is told so, and the first comes to its end."""
    to = tmp_path / "to"
    refused: list[object] = []

    def copied(source: Path, target: Path, **rest: Any) -> Any:
        if not refused:
            with pytest.raises(ConflictError, match="somebody else is making this folder") as caught:
                back_up(there.hub.home.folder, to, clock=CLOCK)
            refused.append(caught)
        return _copied(source, target, **rest)

    with patch("edgestill.hub.backup._copied", copied):
        back_up(there.hub.home.folder, to, clock=CLOCK)
    assert refused
    verify(to)


def test_attack_an_archive_under_another_digest(taken: Path, tmp_path: Path) -> None:
    """Attack: the list agrees with the file, and the name does not."""
    (blob, *_) = (path for path in taken.glob("blobs/*/*/*"))
    blob.write_bytes(b"another")
    name = blob.relative_to(taken).as_posix()
    digest = "sha256:" + Digest.of(b"another").hex
    edited(taken, lambda value: value["files"].update({name: {"size": 7, "digest": digest}}))
    with pytest.raises(StoreError, match="a damaged archive"):
        restore(taken, tmp_path / "again")


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (lambda value: value.update(version=2), MessageError),
        (lambda value: value["files"].pop("hub.db"), MessageError),
        (lambda value: value["files"].pop("authority.key"), MessageError),
        (lambda value: value.update(files=[]), MessageError),
    ],
)
def test_a_list_that_is_none_is_refused(
    taken: Path, tmp_path: Path, change: Callable[[Any], object], error: type[EdgestillError]
) -> None:
    """Of a later version, or without what a hub needs."""
    edited(taken, change)
    with pytest.raises(error):
        restore(taken, tmp_path / "again")


def test_a_folder_that_is_in_use_is_left_alone(there: World, taken: Path, tmp_path: Path) -> None:
    """Neither a backup nor a hub is written over; a folder that is no hub, or no backup, is said to be none."""
    for tried in (
        lambda: back_up(there.hub.home.folder, taken, clock=CLOCK),
        lambda: restore(taken, there.hub.home.folder),
    ):
        with pytest.raises(ConflictError, match="there is something already"):
            tried()
    with pytest.raises(NotFoundError, match="not a backup"):
        restore(tmp_path / "nothing", tmp_path / "again")
    with pytest.raises(PathError, match="not a hub's folder"):
        back_up(tmp_path / "nothing", tmp_path / "other", clock=CLOCK)
    Home.init(tmp_path / "fresh")
    with pytest.raises(NotFoundError, match="no database yet"):
        back_up(tmp_path / "fresh", tmp_path / "other", clock=CLOCK)


def test_a_damaged_hub_gives_no_backup(there: World, tmp_path: Path) -> None:
    """An archive that is not what its name says, or a database that is none: a backup of it would be found out too late."""
    (blob, *_) = there.hub.home.folder.glob("blobs/*/*/*")
    good = blob.read_bytes()
    blob.write_bytes(good[:-1])
    with pytest.raises(StoreError, match="a damaged archive"):
        back_up(there.hub.home.folder, tmp_path / "backup", clock=CLOCK)
    blob.write_bytes(good)
    copy = tmp_path / "copy"
    shutil.copytree(there.hub.home.folder, copy, ignore=shutil.ignore_patterns("hub.db*"))
    (copy / "hub.db").write_bytes(b"no database" * 1000)
    with pytest.raises(StoreError, match="the database cannot be copied"):
        back_up(copy, tmp_path / "backup", clock=CLOCK)
    assert not list(tmp_path.glob("*backup*"))


def test_a_database_of_a_newer_version_is_not_restored(taken: Path, tmp_path: Path) -> None:
    """It says which one can read it."""
    connection = sqlite3.connect(taken / "hub.db")
    connection.execute("UPDATE alembic_version SET version_num = '9999'")
    connection.commit()
    connection.close()
    known = backups._digested(taken / "hub.db")
    edited(
        taken,
        lambda value: value["files"].update({"hub.db": {"size": known.size, "digest": str(known.digest)}}),
    )
    with pytest.raises(StoreError, match="a schema this version does not know"):
        restore(taken, tmp_path / "again")


# Kills


class _Killed(BaseException):
    """The power failed."""


@pytest.mark.parametrize("verb", ["backup", "restore"])
def test_a_kill_anywhere_leaves_nothing_or_everything(
    there: World, taken: Path, tmp_path: Path, verb: str
) -> None:
    """At every file that is copied: under the name there is nothing, or what can be read back; the next try goes through."""
    at, killed = 0, True
    while killed:
        to, count = tmp_path / f"{verb}-{at}", 0

        def cut(source: Path, target: Path, **rest: Any) -> Any:
            nonlocal count
            if count == at:  # noqa: B023  # run at once
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(source.read_bytes()[:10])
                raise _Killed
            count += 1
            return _copied(source, target, **rest)

        def run(to: Path = to) -> object:
            folder = there.hub.home.folder
            return back_up(folder, to, clock=CLOCK) if verb == "backup" else restore(taken, to)

        with patch("edgestill.hub.backup._copied", cut), patch("edgestill.core.begun.shutil.rmtree", _kept):
            try:
                run()
                killed = False
            except _Killed:
                assert not to.exists()
                assert list(tmp_path.glob(f".{to.name}.begun"))
        if killed:
            run()
        assert not list(tmp_path.glob(".*begun"))
        at += 1
    assert at > 5


_copied = backups._copied


def _kept(path: Path, **_: object) -> None:
    """A kill clears nothing up; what an earlier one has left is cleared by the next try."""
    if sys.exc_info()[0] is not _Killed:
        subprocess.run(["rm", "-rf", str(path)], check=True)  # a folder of the test's own


def test_attack_a_disk_that_is_full(there: World, taken: Path, tmp_path: Path) -> None:
    """Attack: the error says so, and what was begun is gone."""
    full = OSError(28, "No space left on device")
    with patch("edgestill.hub.backup.os.fsync", side_effect=full):
        with pytest.raises(PathError, match="No space left"):
            restore(taken, tmp_path / "again")
        with pytest.raises(StoreError, match="No space left"):
            back_up(there.hub.home.folder, tmp_path / "other", clock=CLOCK)
    assert not list(tmp_path.glob("*other*")) + list(tmp_path.glob(".*"))


# The verbs, and a device that lives through it


@pytest.mark.slow
def test_a_device_follows_a_hub_that_was_restored(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The steps of the page: what the backup says is older than what the device has seen, and counts under the root that names the new key."""
    publisher = Publisher.init(tmp_path / "publisher", None)
    with serving(tmp_path) as hub:
        publish(publisher, hub.operator(), "1.0.0")
        device = Follower(tmp_path / "device", hub)
        hub.operator().start_rollout(R1)
        first = device.poll()
        assert main(["backup", str(tmp_path / "backup"), "--home", str(hub.process.home)]) == 0
        publish(publisher, hub.operator(), "1.2.0")
        hub.operator().rollback("1")
        hub.operator().start_rollout("watch/1.2.0")
        second = device.poll()
        assert first is not None
        assert second is not None
        assert second.counter > first.counter
        port = int(hub.url.rpartition(":")[2])
        device.close()
    shutil.rmtree(tmp_path / "hub")
    assert main(["restore", str(tmp_path / "backup"), "--to", str(tmp_path / "hub")]) == 0
    assert "release root --new-hub-key" in capsys.readouterr().out
    with serving(tmp_path, port) as hub:
        device.start()
        device.later()
        with pytest.raises(TrustError):
            device.poll()
        archives = {target_name("watch", "1.2.0", HERE): esb("1.2.0", hardware_class=HERE)}
        bring(publisher, hub.operator(), archives, may_change=True, without_missing=False)
        found = device.poll()
        assert found is not None
        assert found.counter > second.counter
        assert found.target.release == R1, "what the backup says that it shall run"
        hub.operator().rollback("1")
        hub.operator().start_rollout("watch/1.2.0")
        again = device.poll()
        assert again is not None
        assert again.target.release == "watch/1.2.0"
        device.close()
