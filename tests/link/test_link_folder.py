"""A folder in place of a hub: plain files within it and nothing else, with ranges; and what a stick may hold to do harm."""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, NotFoundError, RefusedError, TrustError, UnreachableError
from edgestill.core.protocols import Request
from edgestill.link.control import ControlClient
from edgestill.link.download import download, part_of
from edgestill.link.folder import FolderTransport
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

HUB = "http://hub.test"
DATA = bytes(range(256)) * 5000
NAME = "targets/watch/1.0.0/abc.esb"


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """A folder with a file of each kind."""
    folder = tmp_path / "stick"
    for path, data in {NAME: DATA, "metadata/1.root.json": b"{}", "assignments/d1.json": b"{}"}.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
    return folder


def transport(stick: Path, device: str = "d1") -> FolderTransport:
    """As the device d1 uses it."""
    return FolderTransport(stick, hub_url=HUB, device=device)


def got(stick: Path, path: str, **headers: str) -> tuple[int, bytes]:
    """Status and body of an answer."""
    response = transport(stick).send(Request("GET", f"{HUB}/{path}", headers), timeout=1)
    try:
        return response.status, b"".join(response.chunks())
    finally:
        response.close()
        response.close()


def fetched(stick: Path, to: Path, data: bytes = DATA) -> None:
    """Downloads the archive off the stick."""
    download(
        transport(stick),
        f"{HUB}/{NAME}",
        to=to,
        size=len(data),
        digest=Digest.of(data),
        clock=FakeClock(),
        timeout=1,
        minimum_speed=1,
    )


def test_files_are_found_under_the_paths_of_a_hub(stick: Path) -> None:
    """Metadata, archives, and as the answer to a poll the device's own assignment."""
    assert got(stick, NAME) == (200, DATA)
    assert got(stick, "metadata/1.root.json") == (200, b"{}")
    assert got(stick, "v1/poll?wait=0") == (200, b"{}")
    assert ControlClient(transport(stick), HUB).artefact("metadata/1.root.json", 10) == b"{}"


def test_what_is_not_there_is_not_found(stick: Path) -> None:
    """As at a hub: a root that is newer than the newest, a patch, another device's assignment."""
    for path in ("metadata/2.root.json", "patches/a/b", "targets/nothing/at/all.esb", "v1/admin/fleet", ""):
        assert got(stick, path) == (404, b"")
    assert transport(stick, "d2").send(Request("GET", f"{HUB}/v1/poll"), timeout=1).status == 404
    with pytest.raises(NotFoundError):
        ControlClient(transport(stick), HUB).artefact("metadata/2.root.json", 10)


@given(start=st.integers(0, len(DATA) + 10))
def test_a_range_is_the_rest_of_a_file(tmp_path_factory: pytest.TempPathFactory, start: int) -> None:
    """From anywhere within; beyond the end there is none."""
    folder = tmp_path_factory.getbasetemp() / "ranges"
    (folder / NAME).parent.mkdir(parents=True, exist_ok=True)
    (folder / NAME).write_bytes(DATA)
    expected = (206, DATA[start:]) if start < len(DATA) else (416, b"")
    assert got(folder, NAME, range=f"bytes={start}-") == expected


def test_a_download_goes_on_with_what_another_stick_had_begun(stick: Path, tmp_path: Path) -> None:
    """The beginning is kept, the rest is asked for, the digest of the whole decides."""
    to = tmp_path / "bundle.esb"
    part_of(to).write_bytes(DATA[:777])
    fetched(stick, to)
    assert to.read_bytes() == DATA


def test_attack_the_wrong_bytes_under_the_right_name(stick: Path, tmp_path: Path) -> None:
    """Nothing gets its name, and nothing of it is kept."""
    (stick / NAME).write_bytes(DATA[:-1] + b"?")
    with pytest.raises(TrustError, match="another digest"):
        fetched(stick, tmp_path / "bundle.esb")
    assert [one.name for one in tmp_path.iterdir()] == ["stick"]


def test_attack_a_file_without_end(stick: Path, tmp_path: Path) -> None:
    """A sparse file of a terabyte is refused by its length, before a byte of it is read."""
    for path in (NAME, "metadata/1.root.json"):
        os.truncate(stick / path, 2**40)
    with pytest.raises(TrustError, match="another length"):
        fetched(stick, tmp_path / "bundle.esb")
    with pytest.raises(RefusedError):
        ControlClient(transport(stick), HUB).artefact("metadata/1.root.json", 1000)


@pytest.mark.parametrize("what", ["link", "link to nothing", "pipe", "socket", "folder"])
def test_attack_a_file_that_is_none(
    stick: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    """A link out of the folder, or within it; what blocks whoever opens it; a folder. None is read or waited for."""
    (tmp_path / "secret").write_bytes(DATA)
    (stick / NAME).unlink()
    place = stick / NAME
    match what:
        case "link":
            place.symlink_to(tmp_path / "secret")
        case "link to nothing":
            place.symlink_to("nothing")
        case "pipe":
            os.mkfifo(place)
        case "folder":
            place.mkdir()
        case _:
            with socket.socket(socket.AF_UNIX) as listener:
                monkeypatch.chdir(place.parent)  # its name is short enough there
                listener.bind(place.name)
    with pytest.raises(RefusedError, match="no plain file"):
        got(stick, NAME)


@pytest.mark.parametrize("part", ["targets", "targets/watch", "targets/watch/1.0.0"])
def test_attack_a_folder_that_is_a_link(stick: Path, tmp_path: Path, part: str) -> None:
    """Also where it leads to the very same files: what it leads to next is anybody's guess."""
    (stick / part).rename(tmp_path / "elsewhere")
    (stick / part).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    with pytest.raises(RefusedError, match="no plain file"):
        got(stick, NAME)


@pytest.mark.parametrize(
    "path",
    [
        "targets/../secret",
        "targets/watch/../../../secret",
        "../secret",
        "targets//secret",
        "targets/./watch",
        "targets/.hidden",
        "/secret",
        "metadata/" + "a" * 300,
        "metadata/a/b/c/d/e/f/g/h",
        "targets/%2e%2e/secret",
        "targets/a\0b",
        "assignments/d2.json",
        "v1/poll/../../secret",
    ],
)
def test_attack_a_path_that_leads_elsewhere(stick: Path, tmp_path: Path, path: str) -> None:
    """Whatever metadata may name: it is not there."""
    (tmp_path / "secret").write_bytes(DATA)
    assert got(stick, path) == (404, b"")


@pytest.mark.parametrize("device", ["..", "a/b", "", "../d1", "a" * 65, "\u0661"])
def test_attack_a_device_whose_name_is_a_path(stick: Path, device: str) -> None:
    """Its assignment is looked for in one place only."""
    assert transport(stick, device).send(Request("GET", f"{HUB}/v1/poll"), timeout=1).status == 404


def test_nothing_can_be_said_to_a_folder(stick: Path) -> None:
    """Reports wait for a hub; other hubs are none of its business."""
    for request in (Request("POST", f"{HUB}/v1/reports"), Request("GET", f"http://elsewhere.test/{NAME}")):
        with pytest.raises(UnreachableError):
            transport(stick).send(request, timeout=1)


def test_a_stick_that_is_pulled_out_is_a_hub_that_is_away(stick: Path, tmp_path: Path) -> None:
    """Before a file is opened: unreachable, not missing."""
    stick.rename(tmp_path / "gone")
    with pytest.raises(UnreachableError, match="does not answer"):
        got(stick, NAME)


def test_a_stick_that_is_pulled_out_in_the_middle_loses_nothing(stick: Path, tmp_path: Path) -> None:
    """What had arrived is kept, and the next stick is asked for the rest."""
    to = tmp_path / "bundle.esb"
    response = transport(stick).send(Request("GET", f"{HUB}/{NAME}"), timeout=1)
    os.truncate(stick / NAME, 1000)
    with pytest.raises(UnreachableError, match="became shorter"):
        list(response.chunks())
    response.close()
    part_of(to).write_bytes(DATA[:1000])
    with pytest.raises(EdgestillError):
        fetched(stick, to)
    (stick / NAME).write_bytes(DATA)
    fetched(stick, to)
    assert to.read_bytes() == DATA
