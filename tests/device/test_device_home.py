"""The home of a device, its socket's path, and what may leave it."""

from __future__ import annotations

import json
import os
import shutil
import socket
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ConflictError,
    MessageError,
    NotFoundError,
    PathError,
    SettingError,
    UnreachableError,
)
from edgestill.device import asking
from edgestill.device import home as homes
from edgestill.device.home import Home, Identity, Settings, choose_socket, drop_socket, find_socket
from edgestill.device.privacy import LEVELS, Permissions
from edgestill.device.slots import Slots
from edgestill.infer.policy import Leaves, Policy

IDENTITY = Identity(
    device="d1",
    credential="secret",
    hub="http://127.0.0.1:1",
    hardware_class="x86_64-vnni-onnxruntime",
    interval=1.5,
)
SETTINGS = Settings(leaves="features", labels={"site": "north"})


def created(path: Path) -> Home:
    """A home."""
    return Home.create(path, identity=IDENTITY, settings=SETTINGS, root=b"{}")


def test_a_home_is_opened_as_it_was_made(tmp_path: Path) -> None:
    """Identity, settings and root come back."""
    home = created(tmp_path / "home")
    assert Home.open(home.path) == home
    assert (home.identity, home.settings, home.root) == (IDENTITY, SETTINGS, b"{}")


def test_a_home_is_for_its_owner_alone(tmp_path: Path) -> None:
    """It holds a credential."""
    home = created(tmp_path / "home")
    assert stat.S_IMODE(home.path.stat().st_mode) == 0o700
    assert stat.S_IMODE((home.path / "identity.json").stat().st_mode) == 0o600


def test_a_second_device_does_not_move_in(tmp_path: Path) -> None:
    """Joining twice would orphan the first credential."""
    home = created(tmp_path / "home")
    with pytest.raises(ConflictError, match="a device lives here already"):
        created(home.path)


def test_an_empty_folder_is_no_home(tmp_path: Path) -> None:
    """And the error says how to make one."""
    with pytest.raises(NotFoundError, match=r"no device lives here.*edgestill-agent join"):
        Home.open(tmp_path)


def test_a_kill_while_joining_leaves_no_home(tmp_path: Path) -> None:
    """The identity is written last: without it, joining may be done again."""
    home = created(tmp_path / "home")
    (home.path / "identity.json").unlink()
    assert created(home.path).identity == IDENTITY


def test_a_damaged_home_is_named(tmp_path: Path) -> None:
    """Missing, malformed and oversized files each say which they are."""
    home = created(tmp_path / "home")
    (home.path / "settings.json").write_bytes(b'{"leaves": "everything", "labels": {}}')
    with pytest.raises(MessageError, match=r"settings.json: leaves"):
        Home.open(home.path)
    (home.path / "settings.json").write_bytes(b" " * 400_000)
    with pytest.raises(MessageError, match="too long"):
        Home.open(home.path)
    (home.path / "settings.json").unlink()
    with pytest.raises(PathError, match="cannot read a file of the home"):
        Home.open(home.path)


def test_a_home_cannot_be_made_on_a_file(tmp_path: Path) -> None:
    """The system's reason is passed on."""
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(PathError, match="cannot make a home"):
        created(tmp_path / "file" / "home")


def test_only_one_supervisor_runs(tmp_path: Path) -> None:
    """The lock is let go when the block ends."""
    home = created(tmp_path / "home")
    with home.locked(), pytest.raises(ConflictError, match="an agent runs here already"), home.locked():
        pass
    with home.locked():
        pass


def test_a_short_home_holds_its_socket(tmp_path: Path) -> None:
    """It lies in the home and is recorded there."""
    chosen = choose_socket(tmp_path)
    assert len(os.fsencode(chosen)) <= homes.MAX_SOCKET_BYTES
    assert find_socket(tmp_path) == chosen


def test_a_long_home_has_its_socket_elsewhere(tmp_path: Path) -> None:
    """Unix sockets have short names; the private folder is found again, and used again."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    chosen = choose_socket(long)
    try:
        assert len(os.fsencode(chosen)) <= homes.MAX_SOCKET_BYTES
        assert stat.S_IMODE(chosen.parent.stat().st_mode) == 0o700
        assert find_socket(long) == chosen
        assert choose_socket(long) == chosen
        chosen.parent.chmod(0o777)
        other = choose_socket(long)
        assert other != chosen, "a folder that others may write to is not used again"
        other.parent.rmdir()
    finally:
        chosen.parent.rmdir()


@pytest.mark.parametrize("length", [40, 72, 73, 150])
def test_a_long_folder_for_temporary_files_leaves_room_for_a_socket(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    """Home and TMPDIR may both be long, as on a build machine: the socket's name is short all the same."""
    import tempfile

    long, root = tmp_path / ("x" * 120), Path(tempfile.mkdtemp(prefix="t", dir="/tmp"))
    long.mkdir()
    folder = root / "x".ljust(length - len(str(root)) - 1, "x")
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    chosen = choose_socket(long)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(chosen))
    assert (chosen.parent.parent == folder) == (length <= 72)
    drop_socket(long, chosen)
    assert not chosen.parent.exists()
    shutil.rmtree(root)


def test_a_socket_goes_with_its_private_folder(tmp_path: Path) -> None:
    """An orderly end leaves nothing in the folder for temporary files; the next run finds its way all the same."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    chosen = choose_socket(long)
    chosen.touch()
    drop_socket(long, chosen)
    assert not chosen.parent.exists()
    drop_socket(long, chosen)  # twice is once
    other = choose_socket(long)
    assert find_socket(long) == other
    drop_socket(long, other)


def test_a_private_folder_that_holds_something_else_is_left(tmp_path: Path) -> None:
    """What we did not put there is not ours to remove."""
    long = tmp_path / ("x" * 120)
    long.mkdir()
    chosen = choose_socket(long)
    (chosen.parent / "theirs").touch()
    drop_socket(long, chosen)
    assert [one.name for one in chosen.parent.iterdir()] == ["theirs"]
    shutil.rmtree(chosen.parent)


def test_the_home_stays_when_its_socket_goes(tmp_path: Path) -> None:
    """A short home holds its socket, and is not removed with it, even where it is empty otherwise."""
    chosen = choose_socket(tmp_path)
    chosen.touch()
    drop_socket(tmp_path, chosen)
    assert [one.name for one in tmp_path.iterdir()] == ["socket"]


def test_without_a_record_there_is_no_socket(tmp_path: Path) -> None:
    """The agent has never run."""
    with pytest.raises(NotFoundError, match="no agent has run here"):
        find_socket(tmp_path)


@pytest.mark.parametrize("device", LEVELS)
@pytest.mark.parametrize("policy", LEVELS)
@pytest.mark.parametrize("adapter", [None, Digest.of(b"adapter")])
def test_the_stricter_level_holds(device: str, policy: Leaves, adapter: Digest | None) -> None:
    """Neither can loosen the other; features are asked with only where the bundle's own policy was fitted for that."""
    level = min(LEVELS.index(device), LEVELS.index(policy))
    named = None if policy == "raw" else adapter
    permissions = Permissions.of(device, Policy(labels=("any",), leaves=policy, adapter=named))
    by_features = level == 1 and policy == "features" and named is not None
    assert permissions.asks == ("raw" if level == 2 else "features" if by_features else "nothing")
    assert permissions.retain == (level == 2)
    assert permissions.statistics == (level >= 1)


def test_an_unknown_level_is_refused() -> None:
    """A typing error must not open a door."""
    with pytest.raises(SettingError, match=r"unknown privacy level.*nothing < features < raw"):
        Permissions.of("all", Policy(labels=("any",)))


@pytest.mark.parametrize("content", [b"", b"\0\0\0\0", b"/tmp/\0/app.sock", b"/" + b"x" * 5000, b"relative"])
def test_a_damaged_record_of_the_socket_is_no_record(tmp_path: Path, content: bytes) -> None:
    """A flash that rots must not keep the agent from starting: it chooses anew, and askers are told that none runs."""
    home = created(tmp_path / ("h" * 120))
    (home.path / "socket").write_bytes(content)
    with pytest.raises(NotFoundError, match="no agent has run here"):
        find_socket(home.path)
    chosen = choose_socket(home.path)
    assert find_socket(home.path) == chosen
    drop_socket(home.path, chosen)


@given(st.binary(max_size=200))
def test_any_bytes_in_the_record_of_the_socket_are_a_path_or_none(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    """And a path that is found can be connected to or is told as unreachable."""
    folder = tmp_path_factory.mktemp("home")
    (folder / "socket").write_bytes(content)
    try:
        path = find_socket(folder)
    except NotFoundError:
        return
    with pytest.raises(UnreachableError):
        asking.connect(path, timeout=0.1)


@pytest.mark.parametrize("name", ["identity.json", "settings.json"])
@given(data=st.binary(max_size=200) | st.text(max_size=60).map(lambda text: json.dumps({text: 1}).encode()))
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_a_home_are_told_in_our_own_way(tmp_path: Path, name: str, data: bytes) -> None:
    """Half-written by another program, or rotten: an error of ours that names the file, never a crash."""
    path = tmp_path / "home"
    if not path.exists():
        created(path)
    before = (path / name).read_bytes()
    (path / name).write_bytes(data)
    with pytest.raises(MessageError, match=name.replace(".", r"\.")):
        Home.open(path)
    (path / name).write_bytes(before)
    assert Home.open(path).identity == IDENTITY


def test_a_hidden_folder_in_the_way_keeps_no_agent_from_running(tmp_path: Path) -> None:
    """File systems and desktops leave such; what a kill of ours leaves are files."""
    home = created(tmp_path / "home")
    for folder in (home.learned, home.tuf, home.slots, home.slots / "a"):
        (folder / ".snapshot").mkdir(parents=True)
        (folder / ".half.abc").write_bytes(b"x")
    Slots.open(home.slots)
    with home.locked():
        pass
    for folder in (home.learned, home.tuf, home.slots, home.slots / "a"):
        assert (folder / ".snapshot").is_dir()
        assert not (folder / ".half.abc").exists()


def test_a_slot_with_a_folder_in_it_can_still_be_emptied(tmp_path: Path) -> None:
    """Whatever lies there, the next bundle has room."""
    slots = Slots.open(tmp_path / "slots")
    (tmp_path / "slots" / "a" / ".snapshot" / "deep").mkdir(parents=True)
    slots.clear("a")
    assert list((tmp_path / "slots" / "a").iterdir()) == []
