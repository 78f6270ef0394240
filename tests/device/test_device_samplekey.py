"""The key of a device's samples: made once, where its owner wants it, refused where others may read it, and told by where it lies."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import pytest
from replay_worlds import PLAN

from edgestill.core.errors import EdgestillError, NotFoundError, PathError, SettingError
from edgestill.device import samplekey
from edgestill.device.blocks import PlainFile
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.main import main
from edgestill.device.replay import Replay
from edgestill.device.samplekey import chosen_key, erase, key_to_keep, kind_of, place_of, read_key

if TYPE_CHECKING:
    from collections.abc import Callable

MEMORY = Path("/memory")
MOUNTS = """\
22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
30 22 0:26 / /run rw,nosuid shared:5 - tmpfs tmpfs rw,size=100k
31 22 0:27 / /odd rw - ramfs
32 22 8:17 / /media/a\\040stick rw - vfat /dev/sdb1 rw,umask=0077
not a line of it
"""


def home_in(folder: Path, settings: Settings) -> Home:
    """A device."""
    identity = Identity(
        device="d0",
        credential="secret",
        hub="http://127.0.0.1:9",
        hardware_class="x86_64-avx2-onnxruntime",
        interval=60,
    )
    return Home.create(folder / "home", identity=identity, settings=settings, root=b"{}")


@pytest.fixture
def in_memory(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Says whether folders are in memory: what they are on this machine is not known."""

    def say(value: bool) -> None:
        monkeypatch.setattr(samplekey, "memory_of", lambda _: MEMORY if value else None)

    say(False)
    return say


def test_a_key_is_made_once_and_is_its_owners_alone(tmp_path: Path) -> None:
    """32 bytes, no two alike, in a file that nobody else may read; naming it again changes nothing."""
    first = chosen_key(tmp_path / "key")
    assert (len(first), (tmp_path / "key").stat().st_mode & 0o777) == (32, 0o600)
    assert chosen_key(tmp_path / "key") == read_key(tmp_path / "key") == first
    assert chosen_key(tmp_path / "other") != first
    assert sorted(one.name for one in tmp_path.iterdir()) == ["key", "other"]


def test_a_missing_key_is_made_anew_on_the_file_system_that_was_settled_only(
    tmp_path: Path, in_memory: Callable[[bool], None]
) -> None:
    """On a disk it may be on a medium that is not there, and a new one in its place would lie where the owner did not want it."""
    for is_in_memory, anew_on in ((False, None), (False, MEMORY), (True, None), (True, MEMORY / "other")):
        in_memory(is_in_memory)
        with pytest.raises(NotFoundError, match=r"the key of the samples is not there.*settings --seal-s"):
            key_to_keep(tmp_path / "key", anew_on)
        assert not (tmp_path / "key").exists()
    made = key_to_keep(tmp_path / "key", MEMORY)
    assert made == key_to_keep(tmp_path / "key", MEMORY) == read_key(tmp_path / "key")


def test_a_key_whose_folder_is_not_there_is_never_made(
    tmp_path: Path, in_memory: Callable[[bool], None]
) -> None:
    """The mount point of a stick that was taken out."""
    in_memory(True)
    for make in (chosen_key, partial(key_to_keep, anew_on=MEMORY)):
        with pytest.raises(EdgestillError):
            make(tmp_path / "stick" / "key")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o777])
def test_attack_a_key_that_others_may_read_or_change_is_refused(tmp_path: Path, mode: int) -> None:
    """Whatever they may do with it; the error says how to make it right, and not what is in it."""
    key = chosen_key(tmp_path / "key")
    (tmp_path / "key").chmod(mode)
    with pytest.raises(PathError, match=f"got {mode:04o}, of user .*; chmod 600") as error:
        chosen_key(tmp_path / "key")
    assert key.hex() not in str(error.value)
    (tmp_path / "key").chmod(0o400)
    assert read_key(tmp_path / "key") == key


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make what root has made")
def test_a_key_that_root_gives_an_agent_may_be_readable_by_roots_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is how a list of who may read looks from outside; nothing more than that, and not what belongs to somebody else."""
    key = chosen_key(tmp_path / "key")
    (tmp_path / "key").chmod(0o440)
    with pytest.raises(PathError, match="got 0440"):
        read_key(tmp_path / "key")
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert read_key(tmp_path / "key") == key
    for mode, owner in ((0o460, 0), (0o444, 0), (0o440, 1001), (0o600, 1001)):
        (tmp_path / "key").chmod(mode)
        os.chown(tmp_path / "key", owner, 0)
        with pytest.raises(PathError, match=f"got {mode:04o}, of user {owner}"):
            read_key(tmp_path / "key")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_attack_a_key_that_belongs_to_somebody_else_is_refused(tmp_path: Path) -> None:
    """Its owner could read what is sealed with it, and take it away; even root's agent takes none such."""
    chosen_key(tmp_path / "key")
    os.chown(tmp_path / "key", 1001, 0)
    with pytest.raises(PathError, match=r"expected mode 0600 or 0400, of user 0; got 0600, of user 1001"):
        read_key(tmp_path / "key")


@pytest.mark.parametrize("data", [b"", b"k" * 31, b"k" * 33, b"k" * 10_000])
def test_a_key_of_another_length_is_refused(tmp_path: Path, data: bytes) -> None:
    """Half a key too, such as a full disk leaves; it is not replaced, as it may be somebody's file."""
    (tmp_path / "key").write_bytes(data)
    (tmp_path / "key").chmod(0o600)
    for read in (read_key, chosen_key, partial(key_to_keep, anew_on=MEMORY)):
        with pytest.raises(SettingError, match="expected 32 bytes") as error:
            read(tmp_path / "key")
        assert "kkk" not in str(error.value)
    assert (tmp_path / "key").read_bytes() == data


def test_attack_a_key_that_is_no_file_is_refused(tmp_path: Path) -> None:
    """A pipe, which would wait for ever, a folder, and what never ends."""
    os.mkfifo(tmp_path / "pipe", 0o600)
    for path in (tmp_path / "pipe", tmp_path, Path("/dev/zero")):
        with pytest.raises(PathError, match="cannot be read"):
            chosen_key(path)


@pytest.mark.parametrize(
    ("device", "kind"),
    [((8, 1), "ext4"), ((0, 26), "tmpfs"), ((0, 27), "ramfs"), ((8, 17), "vfat"), ((9, 9), ""), ((0, 2), "")],
)
def test_the_kind_of_a_file_system_is_read_of_the_kernels_list(device: tuple[int, int], kind: str) -> None:
    """By the numbers of its device; what is not told is no kind, and lines that are none are passed over."""
    assert kind_of(MOUNTS, os.makedev(*device)) == kind


def test_the_kernels_own_list_is_understood() -> None:
    """The file system of processes is what it says; of a machine without the list nothing is said to be in memory."""
    assert kind_of(Path("/proc/self/mountinfo").read_text(), Path("/proc/self").stat().st_dev) == "proc"


def test_where_a_key_lies_is_told(tmp_path: Path, in_memory: Callable[[bool], None]) -> None:
    """Beside the samples, in memory, or on a medium of its own; of one that is not there nothing is said."""
    samples = tmp_path / "samples"
    assert place_of(tmp_path / "key", samples) == "not there now"
    assert place_of(tmp_path / "stick" / "key", samples) == "not there now"
    chosen_key(tmp_path / "key")
    assert place_of(tmp_path / "key", samples) == "on the same file system"
    assert place_of(Path("/proc/version"), samples) == "on another file system"
    in_memory(True)
    assert place_of(tmp_path / "key", samples) == "in memory"


def test_what_was_kept_is_overwritten_before_it_is_removed(tmp_path: Path) -> None:
    """Whoever still has the file open finds zeros, of the same length."""
    path = tmp_path / "samples"
    path.write_bytes(b"a picture" * 200_000)
    with path.open("rb") as file:
        assert erase(path) is True
        assert file.read() == bytes(1_800_000)
    assert not path.exists()
    assert erase(path) is True, "nothing was there"


def test_what_an_engine_still_fills_is_left_alone(tmp_path: Path) -> None:
    """It could write it again; and the caller is told."""
    path = tmp_path / "samples"
    path.write_bytes(b"a picture")
    engine = PlainFile.to_write(path)
    assert erase(path) is False
    assert path.read_bytes() == b"a picture"
    engine.close()


def test_a_file_that_cannot_be_overwritten_is_an_error(tmp_path: Path) -> None:
    """A link to somewhere else stays, and what it leads to."""
    (tmp_path / "other").write_bytes(b"of somebody else")
    (tmp_path / "samples").symlink_to(tmp_path / "other")
    with pytest.raises(PathError, match="cannot be erased"):
        erase(tmp_path / "samples")
    assert (tmp_path / "other").read_bytes() == b"of somebody else"


# The owner's setting


def settings_of(home: Home, *more: str) -> int:
    """`edgestill-agent settings`; its exit status."""
    return main(["settings", "--home", str(home.path), *more])


def test_an_owner_switches_sealing_on_and_off(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], in_memory: Callable[[bool], None]
) -> None:
    """On makes the key and forgets what lies there in the clear; off leaves the key; other settings change neither."""
    home, key = home_in(tmp_path, Settings(leaves="raw", labels={}, keeps=1_000)), tmp_path / "key"
    home.samples.write_bytes(b"in the clear")
    assert settings_of(home, "--seal-samples", str(key)) == 0
    assert f"sealed          by {key}, on the same file system\n" in capsys.readouterr().out
    assert (Home.open(home.path).settings.seal, home.samples.exists()) == (key, False)
    made = read_key(key)
    Replay.create(home.samples, PLAN, random=Random(0), key=made).close()
    sealed = home.samples.read_bytes()
    assert settings_of(home, "--seal-samples", str(key)) == settings_of(home, "--accept-auto") == 0
    assert (home.samples.read_bytes(), read_key(key)) == (sealed, made)
    capsys.readouterr()
    assert settings_of(home, "--seal-samples", "no") == 0
    assert "sealed          no\n" in capsys.readouterr().out
    assert (Home.open(home.path).settings.seal, read_key(key)) == (None, made)


def test_a_relative_path_is_kept_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The agent runs in another folder than its owner."""
    home = home_in(tmp_path, Settings(leaves="raw", labels={}))
    monkeypatch.chdir(tmp_path)
    assert settings_of(home, "--seal-samples", "key") == 0
    assert Home.open(home.path).settings.seal == tmp_path / "key"


@pytest.mark.parametrize("wrong", ["missing/key", "home/samples", "home"])
def test_a_key_that_cannot_be_changes_no_setting(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: str
) -> None:
    """A folder that is not there, the samples themselves, and a folder; what was kept stays."""
    home = home_in(tmp_path, Settings(leaves="raw", labels={}, keeps=1_000))
    home.samples.write_bytes(b"in the clear")
    assert settings_of(home, "--seal-samples", str(tmp_path / wrong)) == 1
    assert capsys.readouterr().err.startswith("[")
    assert (Home.open(home.path).settings, home.samples.read_bytes()) == (home.settings, b"in the clear")


def test_settings_with_a_key_survive_their_bytes(tmp_path: Path) -> None:
    """And those of older homes name none."""
    for anew_on in (None, MEMORY):
        settings = Settings(leaves="raw", labels={}, keeps=5, seal=tmp_path / "key", seal_anew_on=anew_on)
        assert Settings.from_bytes(settings.to_bytes()) == settings
    assert Settings.from_bytes(b'{"leaves":"raw","labels":{}}').seal is None
    older = Settings.from_bytes(b'{"leaves":"raw","labels":{},"seal":"/run/key"}')
    assert (older.seal, older.seal_anew_on) == (Path("/run/key"), None)
