"""Filling a stick that comes back: one that would have other files overwritten, and one that is pulled out meanwhile."""

from __future__ import annotations

import json
import os
import shutil
from typing import TYPE_CHECKING

import pytest
from test_cli_offline import Sticks, sticks, update

from edgestill.cli import carrying
from edgestill.core.bundle import replace

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

__all__ = ["sticks"]

pytestmark = pytest.mark.slow


def fill(sticks: Sticks, stick: Path, *, fails: bool = False) -> str:
    """Exports onto the stick what is assigned to both devices."""
    return sticks.world.run("release", "export", stick, "--device", "lamp", "--device", "door", fails=fails)


def archive(stick: Path) -> Path:
    """The bundle on it."""
    (path,) = (stick / "targets").rglob("*.esb")
    return path


def linked_part(stick: Path, mine: Path) -> None:
    """A download that seems to have begun is the operator's file."""
    path = archive(stick)
    path.unlink()
    path.with_name(f"{path.name}.part").symlink_to(mine / "notes")


def second_name_for_a_part(stick: Path, mine: Path) -> None:
    """Likewise, by another name of the same file."""
    path = archive(stick)
    path.unlink()
    os.link(mine / "notes", path.with_name(f"{path.name}.part"))


def linked_archive(stick: Path, mine: Path) -> None:
    """The bundle itself is a link to a file that is not there yet."""
    path = archive(stick)
    path.unlink()
    path.symlink_to(mine / "new")


def linked_list(stick: Path, mine: Path) -> None:
    """The timestamp is a link."""
    (stick / "metadata" / "timestamp.json").unlink()
    (stick / "metadata" / "timestamp.json").symlink_to(mine / "notes")


def linked_release(stick: Path, mine: Path) -> None:
    """A folder deep in the path leads away."""
    shutil.rmtree(stick / "targets" / "light")
    (stick / "targets" / "light").symlink_to(mine, target_is_directory=True)


def linked_folder(name: str) -> Callable[[Path, Path], None]:
    """A folder of the stick leads away."""

    def attack(stick: Path, mine: Path) -> None:
        shutil.rmtree(stick / name)
        (stick / name).symlink_to(mine, target_is_directory=True)

    return attack


def piped_assignment(stick: Path, _: Path) -> None:
    """A pipe, in whose place the export would wait for ever."""
    (stick / "assignments" / "lamp.json").unlink()
    os.mkfifo(stick / "assignments" / "lamp.json")


@pytest.mark.parametrize(
    "attack",
    [
        linked_part,
        second_name_for_a_part,
        linked_archive,
        linked_list,
        linked_release,
        linked_folder("targets"),
        linked_folder("metadata"),
        linked_folder("assignments"),
        piped_assignment,
    ],
)
def test_attack_a_returned_stick_that_would_overwrite_the_operators_files(
    sticks: Sticks, tmp_path: Path, attack: Callable[[Path, Path], None]
) -> None:
    """It is refused before anything is written, on the stick or off it."""
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "notes").write_text("the operator's own")
    stick = sticks.stick(1, tmp_path)
    shutil.copytree(sticks.folder / "stick2" / "targets", stick / "targets", dirs_exist_ok=True)
    shutil.rmtree(stick / "targets" / "light" / "1.0.0")
    attack(stick, mine)
    before = sorted(os.fspath(path) for path in stick.rglob("*"))
    said = fill(sticks, stick, fails=True)
    assert said.startswith("[path-unusable] a folder that would have other files overwritten"), said
    assert [path.name for path in mine.iterdir()] == ["notes"]
    assert (mine / "notes").read_text() == "the operator's own"
    assert sorted(os.fspath(path) for path in stick.rglob("*")) == before


def test_a_stick_that_comes_back_is_filled_again(sticks: Sticks, tmp_path: Path) -> None:
    """With an older release on it, and a download that broke off; the folder may be named by a link of the operator's own."""
    stick = sticks.stick(1, tmp_path)
    part = archive(sticks.folder / "stick2").relative_to(sticks.folder / "stick2")
    (stick / part).parent.mkdir(parents=True)
    (stick / f"{part}.part").write_bytes((sticks.folder / "stick2" / part).read_bytes()[:1000])
    (tmp_path / "link").symlink_to(stick, target_is_directory=True)
    fill(sticks, tmp_path / "link")
    assert (stick / part).read_bytes() == (sticks.folder / "stick2" / part).read_bytes()
    assert not (stick / f"{part}.part").exists()
    assert update(sticks.home(tmp_path), stick)[0] == 0


def test_a_stick_is_good_whenever_it_is_pulled_out_while_it_is_filled(
    sticks: Sticks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each file that is written the timestamp leads to a snapshot that is there, and that to lists which are."""
    written: list[str] = []

    def looked_at(path: Path, data: bytes, *, mode: int) -> None:
        replace(path, data, mode=mode)
        written.append(path.name)
        check_leads_on(stick / "metadata")

    stick = sticks.stick(1, tmp_path)
    check_leads_on(stick / "metadata")
    monkeypatch.setattr(carrying, "replace", looked_at)
    fill(sticks, stick)
    assert written.index("timestamp.json") == len(written) - 3, "two assignments come after it"
    assert update(sticks.home(tmp_path), stick)[0] == 0


def check_leads_on(metadata: Path) -> None:
    """What the timestamp names is there, and what that names."""
    path = metadata / "timestamp.json"
    for name in ("snapshot.json", "targets.json"):
        version = json.loads(path.read_bytes())["signed"]["meta"][name]["version"]
        path = metadata / f"{version}.{name}"
        assert path.is_file(), path.name


def test_what_else_is_on_a_stick_does_not_matter_for_how_long_it_is_good(
    sticks: Sticks, tmp_path: Path
) -> None:
    """Files that a Mac leaves beside each, and metadata of an earlier time that has ended; the time is the same as on a new stick."""
    stick = sticks.stick(1, tmp_path)
    ended = (stick / "metadata" / "timestamp.json").read_bytes().replace(b'"expires":"2', b'"expires":"1')
    assert ended != (stick / "metadata" / "timestamp.json").read_bytes()
    for name in ("1.snapshot.json", "0.targets.json", "7.other.json"):
        (stick / "metadata" / name).write_bytes(ended)
    for name in ("._1.root.json", "._timestamp.json", "x.root.json", "notes"):
        (stick / "metadata" / name).write_bytes(b"\x00\x05\x16\x07")
    order = ("release", "export", "--device", "lamp", "--device", "door", "--expires", "1h")
    made = sticks.world.json(*order, stick)
    new = sticks.world.json(*order, tmp_path / "new")
    assert abs(made["good_until"] - new["good_until"]) < 60
    assert update(sticks.home(tmp_path), stick)[0] == 0
