"""The operator's and the publisher's verbs, against a real hub on the loopback and a real device."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from typer.testing import CliRunner

from edgestill.cli.app import app
from edgestill.cli.fleet import _end
from edgestill.core.bundle import build, write_archive
from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError
from edgestill.core.hardware import HardwareClass
from edgestill.hub.home import Home
from edgestill.infer.golden import Golden
from edgestill.infer.policy import Policy
from edgestill.trust.keys import SigningKey
from edgestill.trust.publisher import Publisher
from edgestill.trust.repository import check_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

HERE = str(HardwareClass.here())


def until(what: Callable[[], Any], *, seconds: float = 30) -> Any:
    """What it gives as soon as it gives something."""
    pause, clock = threading.Event(), SystemClock()
    end = clock.monotonic() + seconds
    while not (found := what()):
        assert clock.monotonic() < end, "it did not come true in time"
        pause.wait(0.05)
    return found


@dataclass(frozen=True)
class World:
    """A hub as a process, and who works with it.

    Attributes:
        url: of the hub.
        folder: for whatever is made.
    """

    url: str
    folder: Path

    def run(self, *arguments: object, fails: bool = False) -> str:
        """A verb with all that it asks for; what it says."""
        told = {
            "EDGESTILL_HUB": self.url,
            "EDGESTILL_TOKEN_FILE": str(self.folder / "hub" / "operator.token"),
            "EDGESTILL_PUBLISHER": str(self.folder / "publisher"),
            "EDGESTILL_PASSPHRASE_FILE": str(self.folder / "passphrase"),
        }
        result = CliRunner().invoke(app, [str(one) for one in arguments], env=told)
        if fails:
            assert isinstance(result.exception, EdgestillError), result.output
            return str(result.exception)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        assert result.exit_code == 0, result.output
        return result.output

    def json(self, *arguments: object) -> Any:
        """Likewise, as JSON."""
        return json.loads(self.run(*arguments, "--json"))

    def bundle(
        self, version: str, *, name: str = "light", hardware_class: str = HERE, scale: float = 3.0
    ) -> Path:
        """A bundle that runs."""
        weight = helper.make_tensor(
            "w", TensorProto.FLOAT, [2, 2], np.eye(2, dtype=np.float32).ravel() * scale
        )
        graph = helper.make_graph(
            [
                helper.make_node("MatMul", ["input", "w"], ["logits"]),
                helper.make_node("Identity", ["input"], ["features"]),
            ],
            "light",
            [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 2])],
            [
                helper.make_tensor_value_info(one, TensorProto.FLOAT, ["N", 2])
                for one in ("logits", "features")
            ],
            [weight],
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        inputs = np.eye(2, dtype=np.float32)
        manifest, blobs = build(
            name=name,
            version=version,
            hardware_class=hardware_class,
            blobs={
                "model.onnx": model.SerializeToString(),
                "policy.json": Policy(labels=("dark", "bright"), leaves="nothing").to_bytes(),
                "golden.npz": Golden(
                    input=inputs, logits=inputs * np.float32(scale), tolerance=0.01
                ).to_bytes(),
                "lineage.json": b"{}",
                "card.md": b"# light\n",
            },
        )
        path = self.folder / f"{name}-{version}-{hardware_class}.esb"
        write_archive(path, manifest, blobs)
        return path


@contextmanager
def hub_up(folder: Path, *more: str) -> Iterator[World]:
    """A hub that serves, with further options, and ends in order."""
    (folder / "passphrase").write_text("correct horse\n")
    ready = folder / "ready"
    ready.unlink(missing_ok=True)
    command = [
        sys.executable,
        "-m",
        "edgestill.cli",
        "hub",
        "up",
        "--home",
        str(folder / "hub"),
        "--port",
        "0",
    ]
    with (folder / "log").open("ab") as log:
        process = subprocess.Popen(
            [*command, "--ready", str(ready), "--poll-interval", "0.1", *more],
            stderr=log,
            env=os.environ | {"EDGESTILL_LOG": "INFO"},
        )
    try:
        until(ready.exists)
        yield World(ready.read_text().strip(), folder)
    finally:
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0, (folder / "log").read_text()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub that has this publisher's root and one release."""
    with hub_up(tmp_path_factory.mktemp("world")) as made:
        made.run("release", "keys", "init")
        made.run("release", "root")
        made.run("release", "publish", made.bundle("1.0.0"))
        yield made


def test_a_release_goes_from_the_publisher_to_a_device(world: World) -> None:
    """Publish, token, join, rollout, fleet: the whole way by verbs, each with its JSON."""
    published = world.json(
        "release", "publish", world.bundle("2.0.0"), world.bundle("2.0.0", hardware_class="other")
    )
    assert published["releases"] == ["light/2.0.0"]
    assert published["published"] == sorted([f"light/2.0.0/{HERE}.esb", "light/2.0.0/other.esb"])
    token = world.json("hub", "token", "--uses", 1)["token"]
    home, ready = world.folder / "device", world.folder / "device.ready"
    world.run(
        "device",
        "join",
        "--home",
        home,
        "--hub",
        world.url,
        "--token",
        token,
        "--name",
        "lamp",
        "--leaves",
        "nothing",
        "--label",
        "site=north",
    )
    agent = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "edgestill.cli",
            "device",
            "run",
            "--home",
            str(home),
            "--ready",
            str(ready),
            "--health-every",
            "100ms",
            "--health-window",
            "300ms",
        ]
    )
    try:
        rollout = world.json("rollout", "start", "light/2.0.0", "--stages", "100%", "--label", "site=north")[
            "id"
        ]
        until(lambda: world.json("rollout", "status", rollout)["state"] == "done")
        assert "light/2.0.0: done, stage 1 of 1 (100%)" in world.run("rollout", "status", rollout)
        why = world.json("rollout", "why", "lamp")
        (told,) = why["rollouts"]
        assert (told["rollout"]["release"], told["rollout"]["state"]) == ("light/2.0.0", "done")
        assert (told["device"]["state"], told["device"]["release"]) == ("confirmed", "light/2.0.0")
        assert world.run("rollout", "why", "lamp").startswith("lamp runs light/2.0.0\n")
        (device,) = world.json("fleet", "list")["devices"]
        assert (device["device"], device["release"], device["labels"]) == (
            "lamp",
            "light/2.0.0",
            {"site": "north"},
        )
        assert "site=north" in world.run("fleet", "list")
        assert "assigned: light/2.0.0/" in world.run("fleet", "show", "lamp")
        assert "certificate: ends in " in world.run("fleet", "show", "lamp")
        assert "may not come back" in world.run("fleet", "revoke", "lamp")
        assert "revoked: " in world.run("fleet", "show", "lamp")
    finally:
        agent.send_signal(signal.SIGTERM)
        agent.wait(30)


def test_a_rollout_is_paused_resumed_and_taken_back(world: World) -> None:
    """Each tells how it stands afterwards; the list has the newest first."""
    world.run("release", "publish", world.bundle("1.1.0", name="quiet"))
    rollout = world.json("rollout", "start", "quiet/1.1.0", "--stages", "10%, 100%", "--max-failed", "2%")[
        "id"
    ]
    assert world.run("rollout", "pause", rollout) == f"rollout {rollout} of quiet/1.1.0 is paused\n"
    assert world.json("rollout", "resume", rollout)["state"] == "running"
    assert world.json("rollout", "status", rollout)["gates"]["max_failed"] == pytest.approx(0.02)
    assert world.json("rollout", "advance", rollout)["state"] == "running"
    assert world.json("rollout", "rollback", rollout)["state"] == "rolled-back"
    assert world.json("rollout", "status")["rollouts"][0]["id"] == rollout
    lines = world.run("rollout", "status").splitlines()
    assert lines[0].split() == ["ID", "RELEASE", "STATE", "STAGE", "WHY"]
    assert lines[1].split()[:3] == [str(rollout), "quiet/1.1.0", "rolled-back"]


def test_a_release_is_retired(world: World) -> None:
    """It stays in the list of all there were, and no rollout takes it."""
    world.run("release", "publish", world.bundle("3.0.0", name="gone"))
    assert world.json("release", "retire", "gone/3.0.0") == {"retired": [f"gone/3.0.0/{HERE}.esb"]}
    shown = {one["release"]: one["listed"] for one in world.json("release", "list")["releases"]}
    assert shown["gone/3.0.0"] is False
    assert shown["light/1.0.0"] is True
    assert "retired" in world.run("release", "show", "gone/3.0.0")
    assert "[not-found]" in world.run("rollout", "start", "gone/3.0.0", fails=True)
    assert "no such release is listed" in world.run("release", "retire", "gone/3.0.0", fails=True)


@pytest.mark.parametrize("role", ["targets", "root"])
def test_keys_are_rotated_while_the_hub_serves(world: World, role: str) -> None:
    """And the next release is published with the new ones."""
    before = {name for name, one in world.json("release", "keys", "list")["keys"].items() if one["counts"]}
    after = {
        name for name, one in world.json("release", "keys", "rotate", role)["keys"].items() if one["counts"]
    }
    assert {name for name in before ^ after if not name.startswith(role)} == set()
    assert before != after
    assert "retired" in world.run("release", "keys", "list")
    number = {"targets": 1, "root": 2}[role]
    world.run("release", "publish", world.bundle(f"1.0.{number}"))
    assert f"light/1.0.{number}" in world.run("release", "list")


def test_what_was_signed_and_not_delivered_is_delivered_next(world: World) -> None:
    """The hub was out of reach while keys were changed twice: it gets every root in order, and nothing is lost."""
    publisher = Publisher(world.folder / "publisher", b"correct horse")
    now, before = SystemClock().now(), publisher.version
    publisher.rotate("targets", served=None, now=now)
    publisher.rotate("root", served=None, now=now)
    assert world.json("release", "root")["version"] == before + 2
    world.run("release", "publish", world.bundle("5.0.0"))
    told = world.json("release", "renew")
    assert told["expires"]["targets.json"] > now + 89 * 86_400
    assert "root.json holds for another 365 days" in world.run("release", "keys", "list")


def test_another_hub_is_not_vouched_for_unasked(world: World, tmp_path: Path) -> None:
    """One publish with the wrong address would cut the right hub off: it is refused, and nothing is signed."""
    publisher = Publisher(world.folder / "publisher", b"correct horse")
    now, version = SystemClock().now(), publisher.version
    copy = tmp_path / "copy"
    shutil.copytree(publisher.folder, copy)
    other = Publisher(copy, b"correct horse")
    other.sign_root(SigningKey.generate().public, now=now)
    said = world.run("release", "publish", world.bundle("6.0.0"), "--publisher", copy, fails=True)
    assert "this hub has another key than the one that is vouched for" in said
    assert (publisher.version, other.version) == (version, version + 1)
    assert "6.0.0" not in world.run("release", "list")


def test_a_hub_whose_key_was_stolen_gets_another(tmp_path: Path) -> None:
    """Refused until the publisher says that it is right; then what was published stands, under a root of the next epoch."""
    with hub_up(tmp_path) as before:
        before.run("release", "keys", "init")
        before.run("release", "root")
        before.run("release", "publish", before.bundle("1.0.0"))
    (tmp_path / "hub" / "online.pem").unlink()
    Home.init(tmp_path / "hub")
    with hub_up(tmp_path) as after:
        assert "another key than the one that is vouched for" in after.run("release", "renew", fails=True)
        assert after.json("release", "root", "--new-hub-key")["version"] == 2
        after.run("release", "publish", after.bundle("1.1.0"))
        assert "light/1.0.0" in after.run("release", "list")
    roots = [Publisher(tmp_path / "publisher", b"correct horse").root_of(version) for version in (1, 2)]
    now = SystemClock().now()
    assert check_root(root=roots[1], previous=roots[0], now=now).epoch == 1


def test_a_folder_that_is_behind_is_told(world: World, tmp_path: Path) -> None:
    """Another machine has signed newer roots: going on from here would part the two."""
    copy = tmp_path / "copy"
    shutil.copytree(world.folder / "publisher", copy)
    world.run("release", "renew")
    behind = world.run("release", "root", "--publisher", copy, fails=True)
    assert "the hub has newer roots than this folder" in behind


def test_a_folder_whose_list_is_behind_goes_on_from_the_hubs(world: World, tmp_path: Path) -> None:
    """A copy on another machine, with the same roots: what was published meanwhile stays listed."""
    copy = tmp_path / "copy"
    shutil.copytree(world.folder / "publisher", copy)
    world.run("release", "publish", world.bundle("7.0.0"))
    world.run("release", "publish", world.bundle("7.1.0"), "--publisher", copy)
    said = world.run("release", "list")
    assert "light/7.0.0" in said
    assert "light/7.1.0" in said
    world.run("release", "publish", world.bundle("7.2.0"))


def test_without_root_keys_the_list_is_renewed_all_the_same(world: World, tmp_path: Path) -> None:
    """They lie in a safe; a change of keys is refused before anything is made."""
    folder = world.folder / "publisher"
    hidden = list(folder.glob("root-*.pem"))
    for one in hidden:
        one.rename(tmp_path / one.name)
    before = Publisher(folder, b"correct horse").version
    assert "too few root keys are here" in world.run("release", "renew", fails=True)
    assert "too few root keys are here" in world.run("release", "keys", "rotate", "targets", fails=True)
    left = Publisher(folder, b"correct horse")
    assert left.version == before
    assert left.expires()["targets.json"] > SystemClock().now() + 89 * 86_400
    for one in hidden:
        (tmp_path / one.name).rename(one)


def test_a_new_publisher_does_not_vouch_for_somebody_elses_hub(world: World, tmp_path: Path) -> None:
    """It looks before it signs: nothing is written down."""
    folder = tmp_path / "fresh"
    world.run("release", "keys", "init", "--publisher", folder)
    said = world.run("release", "root", "--publisher", folder, fails=True)
    assert "the hub has a root of somebody else already" in said
    assert Publisher(folder, b"correct horse").version == 0


def test_the_same_bundle_may_be_published_again(world: World) -> None:
    """Another content under its name may not."""
    path = world.bundle("1.0.0")
    world.run("release", "publish", path)
    path = world.bundle("1.0.0", scale=4.0)
    assert "[state-conflict] another content under a name that is listed" in world.run(
        "release", "publish", path, fails=True
    )
    assert "two bundles of one name" in world.run("release", "publish", path, path, fails=True)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["release", "show", "none/1.0.0"], "no such release"),
        (["release", "keys", "init"], "there is something already"),
        (["release", "publish", "missing.esb"], "missing.esb"),
        (["fleet", "show", "nobody"], "no such device"),
        (["fleet", "revoke", "nobody"], "no such device"),
        (["rollout", "why", "nobody"], "no rollout has to do with this device"),
        (["rollout", "status", "999"], "[not-found]"),
        (["rollout", "status", "../x"], "not the id of a rollout"),
        (["rollout", "start", "light/1.0.0", "--label", "north"], "not a label"),
        (["rollout", "start", "light/1.0.0", "--max-failed", "2"], "[unit-invalid]"),
        (["rollout", "start", "light/1.0.0", "--stages", "50%, 10%"], "stages"),
        (["release", "keys", "list", "--publisher", "nowhere"], "no publisher's folder"),
        (["release", "keys", "list", "--no-passphrase"], "a key does not open"),
        (["fleet", "list", "--hub", "http://elsewhere.example"], "[setting-invalid]"),
        (["fleet", "list", "--token-file", "nowhere"], "[path-unusable]"),
    ],
)
def test_what_is_wrong_is_told_in_one_line(world: World, arguments: list[str], text: str) -> None:
    """With a code, and nothing is changed."""
    said = world.run(*arguments, fails=True)
    assert text in said
    assert "\n" not in said


@pytest.mark.parametrize(
    ("left_out", "option"), [("EDGESTILL_HUB", "--hub"), ("EDGESTILL_TOKEN_FILE", "--token-file")]
)
def test_which_hub_and_as_whom_must_be_said(tmp_path: Path, left_out: str, option: str) -> None:
    """By option or by environment."""
    told = {"EDGESTILL_HUB": "http://127.0.0.1:9", "EDGESTILL_TOKEN_FILE": str(tmp_path / "token")}
    told[left_out] = ""
    result = CliRunner().invoke(app, ["fleet", "list"], env=told)
    assert isinstance(result.exception, EdgestillError)
    assert f"not said which hub, or as whom; at {option}" in str(result.exception)


def test_a_join_token_is_listed_and_revoked(world: World) -> None:
    """By its id; the list says that it has ended, and the log who ended it."""
    token = world.json("hub", "token", "--uses", "3", "--expires", "1 h")["token"]
    newest = world.json("hub", "tokens", "list")["tokens"][0]
    assert newest["uses_left"] == 3
    shown = world.run("hub", "tokens", "list").splitlines()
    assert shown[0].split()[:1] == ["ID"]
    assert "3 left until" in shown[1]
    assert world.run("hub", "tokens", "revoke", newest["id"]) == (
        f"{newest['id']} lets nobody in any more\nby it came: nobody\n"
    )
    assert world.run("hub", "tokens", "list").splitlines()[1].endswith("revoked")
    assert world.json("hub", "tokens", "revoke", token)["id"] == newest["id"]
    assert "no such join token" in world.run("hub", "tokens", "revoke", "nothing", fails=True)
    assert f'token.revoke  {{"id":"{newest["id"]}"' in world.run("hub", "log")


def test_operators_are_made_and_ended_and_the_log_tells_it(world: World) -> None:
    """A viewer may look and not order; the log is whole, and an earlier seal is found in it."""
    seal = world.run("hub", "log").splitlines()[-1].rpartition(" ")[2]
    token = world.json("hub", "operators", "add", "ann", "viewer", "--expires", "30 d")["token"]
    (world.folder / "ann.token").write_text(token)
    mine = ["--token-file", world.folder / "ann.token"]
    assert "releases" in world.json("release", "list", *mine)
    assert "[access-denied] this role may not do that" in world.run("hub", "token", *mine, fails=True)
    assert ["ann", "viewer", "may", "call"] in [
        line.split() for line in world.run("hub", "operators", "list").splitlines()
    ]
    assert world.run("hub", "operators", "revoke", "ann") == "ann may not call any more\n"
    assert "[access-denied]" in world.run("release", "list", *mine, fails=True)
    lines = world.run("hub", "log", "--seal", seal).splitlines()
    assert "owner  operator.revoke  " in lines[-2]
    assert ", none changed; seal " in lines[-1]
    assert "the audit log was changed" in world.run("hub", "log", "--seal", "0" * 63 + "1", fails=True)
    entries = [json.loads(line) for line in world.run("hub", "log", "--json").splitlines()]
    assert [one["id"] for one in entries] == list(range(1, len(entries) + 1))


def test_somebody_else_lists_bundles_for_a_class(world: World) -> None:
    """Their key is made where it signs; the publisher names its public half, and takes it back: all by verbs, over a real hub."""
    lab = world.folder / "lab"
    made = world.json("release", "keys", "new", "--delegate", lab)
    public, role = made["public"], f"auto/{HERE}"
    told = world.json("release", "keys", "delegate", HERE, "--auto", "--name", "light", "--key", public)
    assert told == {"role": role, "paths": [f"light/*/{HERE}.esb"], "keys": [made["keyid"]]}
    bundle = world.bundle("7.7.0")
    published = world.json("release", "publish", bundle, "--role", role, "--delegate", lab)
    assert published["releases"] == ["light/7.7.0"]
    (one,) = world.json("release", "keys", "roles")["roles"]
    assert (one["role"], one["version"], one["listed"]) == (role, 1, [f"light/7.7.0/{HERE}.esb"])
    assert role in world.run("release", "keys", "roles")
    assert role in world.run("release", "show", "light/7.7.0")
    other = world.bundle("7.7.0", hardware_class="other")
    refused = world.run("release", "publish", other, "--role", role, "--delegate", lab, fails=True)
    assert "a name that this role may not list" in refused
    world.run("release", "renew", "--role", role, "--delegate", lab)
    retired = world.json("release", "retire", "light/7.7.0", "--role", role, "--delegate", lab)
    assert retired["retired"] == [f"light/7.7.0/{HERE}.esb"]
    thief = world.folder / "thief"
    world.run("release", "keys", "new", "--delegate", thief)
    text = world.run("release", "publish", bundle, "--role", role, "--delegate", thief, fails=True)
    assert "the publisher has named other keys for this role" in text
    key = thief / "delegate-1.pub.pem"
    world.run("release", "keys", "delegate", HERE, "--auto", "--name", "light", "--key", key)
    world.run("release", "publish", bundle, "--role", role, "--delegate", thief)
    assert world.json("release", "keys", "roles")["roles"][0]["listed"] == [f"light/7.7.0/{HERE}.esb"]
    assert world.json("release", "keys", "undelegate", role) == {"undelegated": role}
    assert world.json("release", "keys", "roles") == {"roles": []}
    gone = world.json("release", "show", "light/7.7.0")["bundles"][HERE]
    assert (gone["listed"], gone["role"]) == (False, None)
    text = world.run("release", "publish", bundle, "--role", role, "--delegate", lab, fails=True)
    assert "the publisher delegates nothing to this role" in text


def test_a_role_without_a_name_or_with_a_private_key_is_not_made(world: World) -> None:
    """What is asked for is looked at before the hub hears of it."""
    lab = world.folder / "careless"
    world.run("release", "keys", "new", "--delegate", lab, "--no-passphrase")
    text = world.run(
        "release", "keys", "delegate", HERE, "--auto", "--key", lab / "delegate-1.pub.pem", fails=True
    )
    assert "a role for unattended updates without a name" in text
    text = world.run("release", "keys", "delegate", HERE, "--key", lab / "delegate-1.pem", fails=True)
    assert "not a public key that may be named" in text
    text = world.run("release", "keys", "undelegate", "nobody", fails=True)
    assert "no such role is delegated to" in text


def test_a_stranger_is_refused(world: World) -> None:
    """A token that the hub does not know."""
    (world.folder / "wrong").write_text("eso1." + "x" * 43)
    assert "[access-denied]" in world.run("fleet", "list", "--token-file", world.folder / "wrong", fails=True)


def test_without_a_terminal_nobody_is_asked_for_a_passphrase(tmp_path: Path) -> None:
    """A script that forgot the file must not hang."""
    arguments = ["release", "keys", "init", "--publisher", str(tmp_path / "p")]
    result = CliRunner().invoke(app, arguments, env={"EDGESTILL_PASSPHRASE_FILE": ""})
    assert isinstance(result.exception, EdgestillError)
    assert "nobody to ask for the passphrase" in str(result.exception)
    assert not (tmp_path / "p").exists()


def test_open_keys_are_made_where_that_is_said(tmp_path: Path) -> None:
    """For a machine that signs by itself."""
    arguments = [
        "release",
        "keys",
        "init",
        "--publisher",
        str(tmp_path / "p"),
        "--no-passphrase",
        "--root-keys",
        "3",
        "--json",
    ]
    said = json.loads(CliRunner().invoke(app, arguments).output)
    assert sorted(said["keys"]) == ["root-1.pem", "root-2.pem", "root-3.pem", "targets-1.pem"]
    assert b"ENCRYPTED" not in (tmp_path / "p" / "root-1.pem").read_bytes()


@pytest.mark.parametrize(
    ("until", "text"),
    [(None, "-"), (2 * 86_400.0, "ends in 24 h"), (86_400.0, "ended now"), (0.0, "ended 24 h ago")],
)
def test_a_device_is_shown_with_the_end_of_its_certificate(until: float | None, text: str) -> None:
    """In both directions of time; a device that has none says so."""
    assert _end(until, 86_400.0) == text
