"""From a hub over a stick to a device without a network; and sticks that would do harm."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pytest
from test_cli_operating import HERE, World, hub_up, until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Sticks:
    """A hub, two devices that joined and never ran, and a stick of each release for both.

    Attributes:
        world: the hub.
        folder: where homes and sticks are.
    """

    world: World
    folder: Path

    def stick(self, number: int, to: Path) -> Path:
        """A copy of a stick."""
        return shutil.copytree(self.folder / f"stick{number}", to / f"stick{number}")

    def home(self, to: Path, name: str = "lamp") -> Path:
        """A copy of a device's home, as it was when it had joined."""
        return shutil.copytree(self.folder / name, to / name)


@pytest.fixture(scope="module")
def sticks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sticks]:
    """Two releases, assigned one after the other."""
    folder = tmp_path_factory.mktemp("sticks")
    with hub_up(folder) as world:
        world.run("release", "keys", "init")
        for name in ("lamp", "door"):
            world.run("release", "root")
            token = world.json("hub", "token", "--uses", 1)["token"]
            joining = ("--hub", world.url, "--token", token, "--name", name, "--leaves", "nothing")
            world.run("device", "join", "--home", folder / name, *joining)
        for number in (1, 2):
            world.run("release", "publish", world.bundle(f"{number}.0.0", scale=2.0 + number))
            rollout = world.json("rollout", "start", f"light/{number}.0.0", "--stages", "100%")["id"]
            made = world.json(
                "release", "export", folder / f"stick{number}", "--device", "lamp", "--device", "door"
            )
            assert made["assigned"] == dict.fromkeys(("lamp", "door"), f"light/{number}.0.0/{HERE}.esb")
            if number == 1:
                world.run("rollout", "rollback", rollout)
        yield Sticks(world, folder)


def update(home: Path, stick: Path) -> tuple[int, str]:
    """`edgestill-agent update`: exit status, and what it says."""
    command = [
        sys.executable,
        "-m",
        "edgestill.device.main",
        "update",
        "--home",
        str(home),
        "--from",
        str(stick),
    ]
    done = subprocess.run(
        [*command, "--health-window", "300ms", "--json"],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    return done.returncode, done.stdout if done.returncode == 0 else done.stderr


def status(home: Path) -> Any:
    """`edgestill-agent status`."""
    command = [sys.executable, "-m", "edgestill.device.main", "status", "--home", str(home), "--json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_a_release_reaches_a_device_that_has_no_network(sticks: Sticks, tmp_path: Path) -> None:
    """It serves what the stick brought; a second time there is nothing to do; when the hub is there, the hub hears of it."""
    home, stick = sticks.home(tmp_path), sticks.stick(2, tmp_path)
    for _ in range(2):
        assert update(home, stick) == (0, json.dumps({"device": "lamp", "release": "light/2.0.0"}) + "\n")
    assert status(home)["release"] == "light/2.0.0"
    shown = sticks.world.json("fleet", "show", "lamp")
    assert (shown["release"], shown["last_seen"]) == (None, None), "nobody has asked the hub"
    command = [sys.executable, "-m", "edgestill.device.main", "run", "--home", str(home)]
    agent = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        until(lambda: sticks.world.json("fleet", "show", "lamp")["state"] == "confirmed")
        assert sticks.world.json("fleet", "show", "lamp")["release"] == "light/2.0.0"
        code, said = update(home, stick)
        assert (code, said.startswith("[state-conflict] an agent runs here already")) == (1, True)
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)


def test_one_stick_after_another(sticks: Sticks, tmp_path: Path) -> None:
    """The newer one is followed, from what the older one brought."""
    home = sticks.home(tmp_path)
    for number in (1, 2):
        assert update(home, sticks.stick(number, tmp_path))[0] == 0
        assert status(home)["release"] == f"light/{number}.0.0"


def test_an_unattended_update_comes_by_a_stick_to_whoever_has_opted_in(tmp_path: Path) -> None:
    """What a role of somebody else lists is on the stick with that role's list; a device that was not opted in refuses it there, too."""
    with hub_up(tmp_path) as world:
        world.run("release", "keys", "init")
        world.run("release", "root")
        lab, role = tmp_path / "lab", f"auto/{HERE}"
        public = world.json("release", "keys", "new", "--delegate", lab)["public"]
        world.run("release", "keys", "delegate", HERE, "--auto", "--name", "light", "--key", public)
        for name, more in (("lamp", ("--accept-auto",)), ("door", ())):
            token = world.json("hub", "token")["token"]
            joining = ("--hub", world.url, "--token", token, "--name", name, "--leaves", "nothing", *more)
            world.run("device", "join", "--home", tmp_path / name, *joining)
        world.run("release", "publish", world.bundle("3.0.0"), "--role", role, "--delegate", lab)
        world.run("rollout", "start", "light/3.0.0", "--stages", "100%")
        stick = tmp_path / "stick"
        world.run("release", "export", stick, "--device", "lamp", "--device", "door")
        assert (stick / "metadata" / f"1.auto%2F{HERE}.json").is_file()
        said = json.dumps({"device": "lamp", "release": "light/3.0.0"})
        assert update(tmp_path / "lamp", stick) == (0, f"{said}\n")
        code, why = update(tmp_path / "door", stick)
        assert (code, "unattended" in why) == (1, True), why
        assert status(tmp_path / "door")["release"] is None


def test_attack_an_older_stick(sticks: Sticks, tmp_path: Path) -> None:
    """All on it was once signed and has not expired: the device knows newer, and stays with it."""
    home = sticks.home(tmp_path)
    assert update(home, sticks.stick(2, tmp_path))[0] == 0
    code, said = update(home, sticks.stick(1, tmp_path))
    assert (code, said.startswith("[trust-refused]")) == (1, True), said
    assert status(home)["release"] == "light/2.0.0"


def test_attack_an_older_assignment_on_a_newer_stick(sticks: Sticks, tmp_path: Path) -> None:
    """The metadata is the newest; what is assigned was taken back since."""
    home, stick = sticks.home(tmp_path), sticks.stick(2, tmp_path)
    assert update(home, stick)[0] == 0
    shutil.copytree(sticks.folder / "stick1" / "targets", stick / "targets", dirs_exist_ok=True)
    shutil.copy(sticks.folder / "stick1" / "assignments" / "lamp.json", stick / "assignments" / "lamp.json")
    code, said = update(home, stick)
    assert (code, said.startswith("[assignment-replayed]")) == (1, True), said
    assert status(home)["release"] == "light/2.0.0"


def test_attack_a_stick_for_another_device(sticks: Sticks, tmp_path: Path) -> None:
    """Under this device's name lies what is signed for the other; without a name of its own there is nothing for it."""
    home, stick = sticks.home(tmp_path), sticks.stick(2, tmp_path)
    (stick / "assignments" / "door.json").replace(stick / "assignments" / "lamp.json")
    code, said = update(home, stick)
    assert (code, said.startswith("[assignment-replayed]")) == (1, True), said
    (stick / "assignments" / "lamp.json").unlink()
    code, said = update(home, stick)
    assert code == 1
    assert "HTTP 404" in said
    assert status(home)["release"] is None


def newest(stick: Path, role: str) -> Path:
    """The file of a role with the largest version."""
    return max((stick / "metadata").glob(f"*.{role}.json"), key=lambda one: int(one.name.split(".")[0]))


def mixed_snapshot(stick: Path, old: Path) -> None:
    """The older snapshot under the newer name."""
    shutil.copy(newest(old, "snapshot"), newest(stick, "snapshot"))


def mixed_list(stick: Path, old: Path) -> None:
    """The older list under the newer name."""
    shutil.copy(newest(old, "targets"), newest(stick, "targets"))


def altered_archive(stick: Path, _: Path) -> None:
    """One bit of the bundle."""
    (path,) = (stick / "targets").rglob("*.esb")
    path.write_bytes(path.read_bytes().replace(b"# light", b"# lighu"))


def endless_archive(stick: Path, _: Path) -> None:
    """A terabyte, of which nothing is on the disk."""
    (path,) = (stick / "targets").rglob("*.esb")
    os.truncate(path, 2**40)


def endless_timestamp(stick: Path, _: Path) -> None:
    """Likewise in the place of metadata."""
    os.truncate(stick / "metadata" / "timestamp.json", 2**40)


def linked_archive(stick: Path, old: Path) -> None:
    """The right bytes behind a link."""
    (path,) = (stick / "targets").rglob("*.esb")
    away = old.parent / "away.esb"
    path.replace(away)
    path.symlink_to(away)


def piped_timestamp(stick: Path, _: Path) -> None:
    """A pipe that nobody writes to."""
    path = stick / "metadata" / "timestamp.json"
    path.unlink()
    os.mkfifo(path)


def linked_assignments(stick: Path, old: Path) -> None:
    """The folder is a link."""
    shutil.move(stick / "assignments", old.parent / "away")
    (stick / "assignments").symlink_to(old.parent / "away", target_is_directory=True)


def junk_assignment(stick: Path, _: Path) -> None:
    """Bytes that are no message."""
    (stick / "assignments" / "lamp.json").write_bytes(b"\xff" * 1000)


@pytest.mark.parametrize(
    ("attack", "code"),
    [
        (mixed_snapshot, "trust-refused"),
        (mixed_list, "trust-refused"),
        (altered_archive, "trust-refused"),
        (endless_archive, "trust-refused"),
        (endless_timestamp, "peer-refused"),
        (linked_archive, "peer-refused"),
        (piped_timestamp, "peer-refused"),
        (linked_assignments, "peer-refused"),
        (junk_assignment, "message-invalid"),
    ],
)
def test_attack_a_stick_that_was_tampered_with(
    sticks: Sticks, tmp_path: Path, attack: Callable[[Path, Path], None], code: str
) -> None:
    """It ends with one line, what served serves on, and a sound stick is taken afterwards."""
    home = sticks.home(tmp_path)
    assert update(home, sticks.stick(1, tmp_path))[0] == 0
    stick = sticks.stick(2, tmp_path)
    attack(stick, tmp_path / "stick1")
    exit_code, said = update(home, stick)
    assert exit_code == 1
    assert said.splitlines()[-1].startswith(f"[{code}]"), said
    assert status(home)["release"] == "light/1.0.0"
    sound = sticks.stick(2, tmp_path / "sound")
    assert update(home, sound)[0] == 0
    assert status(home)["release"] == "light/2.0.0"


def test_a_stick_that_lacks_the_bundle_is_gone_on_with_another(sticks: Sticks, tmp_path: Path) -> None:
    """As one that is pulled out after the metadata was read."""
    home, stick = sticks.home(tmp_path), sticks.stick(1, tmp_path)
    shutil.rmtree(stick / "targets")
    code, said = update(home, stick)
    assert (code, said.startswith("[not-found]")) == (1, True), said
    assert update(home, sticks.stick(2, tmp_path))[0] == 0
    assert status(home)["release"] == "light/2.0.0"


def test_what_cannot_be_exported_is_refused(sticks: Sticks, tmp_path: Path) -> None:
    """No such device, nothing assigned to it, names that a stick cannot tell apart, a time that is too long; and no assignment is written."""
    world, out = sticks.world, tmp_path / "out"
    assert "[not-found]" in world.run("release", "export", out, "--device", "nobody", fails=True)
    world.run("fleet", "add", "alone", "--hardware-class", "other-avx2-onnxruntime")
    assert "[state-conflict]" in world.run("release", "export", out, "--device", "alone", fails=True)
    assert "[setting-invalid]" in world.run(
        "release", "export", out, "--device", "lamp", "--device", "LAMP", fails=True
    )
    assert "[peer-refused]" in world.run(
        "release", "export", out, "--device", "lamp", "--expires", "40d", fails=True
    )
    assert not out.exists()


def test_an_export_says_how_long_it_is_good(sticks: Sticks, tmp_path: Path) -> None:
    """As long as what ends first: here the assignment; and the order is in the audit log."""
    made = sticks.world.json("release", "export", tmp_path / "out", "--device", "door", "--expires", "1h")
    told = json.loads((tmp_path / "out" / "assignments" / "door.json").read_bytes())
    assert made["good_until"] == told["assignment"]["signed"]["expires"]
    assert "good for another" in sticks.world.run("release", "export", tmp_path / "out", "--device", "door")
    assert "device.assignment" in sticks.world.run("hub", "log")
