"""The verbs for what changes hands and what is lost: authorities, backups, a rebuilt hub, keys that are elsewhere."""

from __future__ import annotations

import json
import shutil
from typing import TYPE_CHECKING

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from test_cli_operating import HERE, World, hub_up

if TYPE_CHECKING:
    from pathlib import Path


def published(world: World) -> None:
    """Keys, a root and one release."""
    world.run("release", "keys", "init")
    world.run("release", "publish", world.bundle("1.0.0"))


def joined(world: World) -> Path:
    """The home of a device."""
    home, token = world.folder / "device", world.json("hub", "token")["token"]
    place = ("--home", home, "--hub", world.url, "--token", token)
    world.run("device", "join", *place, "--name", "lamp", "--leaves", "nothing")
    return home


def test_one_authority_hands_over_to_the_next(tmp_path: Path) -> None:
    """Each verb tells where it stands, and who is behind; as JSON too."""
    with hub_up(tmp_path) as world:
        published(world)
        joined(world)
        assert "hand-over: settled" in world.run("hub", "authority", "status")
        told = world.run("hub", "authority", "begin")
        assert "hand-over: announced" in told
        assert "behind:    lamp" in told
        assert "devices have not followed yet" in world.run("hub", "authority", "switch", fails=True)
        assert world.json("hub", "authority", "switch", "--force")["phase"] == "switched"
        assert world.json("hub", "authority", "switch", "--back")["phase"] == "announced"
        assert "at another step" in world.run("hub", "authority", "finish", "--force", fails=True)
        assert world.json("hub", "authority", "abandon")["phase"] == "settled"
        world.run("hub", "authority", "begin")
        world.run("hub", "authority", "switch", "--force")
        done = world.json("hub", "authority", "finish", "--force")
        assert (done["phase"], len(done["authorities"])) == ("settled", 1)
        orders = [line.split()[4] for line in world.run("hub", "log").splitlines() if "authority." in line]
        assert set(orders) == {f"authority.{one}" for one in ("begin", "switch", "back", "finish", "abandon")}


@pytest.mark.slow
def test_a_hub_is_restored_or_rebuilt_and_a_device_joins_it_again(tmp_path: Path) -> None:
    """As the page of the hub has it, verb by verb."""
    with hub_up(tmp_path) as world:
        published(world)
        home = joined(world)
        said = world.json("hub", "backup", tmp_path / "backup", "--home", tmp_path / "hub")
        assert said["files"] >= 5
        world.run("release", "publish", world.bundle("1.1.0"))
    shutil.rmtree(tmp_path / "hub")
    world.run("hub", "restore", tmp_path / "backup", "--to", tmp_path / "hub")
    with hub_up(tmp_path) as world:
        refused = world.run("release", "republish", world.bundle("1.1.0"), fails=True)
        assert "another key than the one that is vouched for" in refused
        world.run("release", "republish", world.bundle("1.1.0"), "--new-hub-key")
        states = {one["release"]: one["listed"] for one in world.json("release", "list")["releases"]}
        assert states == {"light/1.0.0": True, "light/1.1.0": True}
        assert [one["device"] for one in world.json("fleet", "list")["devices"]] == ["lamp"]
    shutil.rmtree(tmp_path / "hub")
    with hub_up(tmp_path) as world:
        assert "archives of the list are missing" in world.run("release", "republish", fails=True)
        said = world.json("release", "republish", world.bundle("1.1.0"), "--new-hub-key", "--without-missing")
        assert said["retired"] == [f"light/1.0.0/{HERE}.esb"]
        token = world.json("hub", "token")["token"]
        told = world.run("device", "rejoin", "--home", home, "--hub", world.url, "--token", token)
        assert "lamp belongs to" in told
        assert [one["device"] for one in world.json("fleet", "list")["devices"]] == ["lamp"]
        assert "the name is taken" not in world.run("fleet", "show", "lamp")


def test_a_publisher_signs_with_keys_that_are_elsewhere(tmp_path: Path) -> None:
    """Named at the beginning, or later in the place of a file; the hub takes what they sign."""
    for name in ("root", "targets"):
        private = ec.generate_private_key(ec.SECP256R1())
        pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        (tmp_path / f"{name}.key").write_bytes(pem)
        public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
        (tmp_path / f"{name}.pub.pem").write_bytes(public)
    with hub_up(tmp_path) as world:
        root = ("--root-uri", f"file2:{tmp_path / 'root.key'}", "--root-public", tmp_path / "root.pub.pem")
        made = world.json("release", "keys", "init", *root)
        assert set(made["keys"]) == {"root-1.json", "targets-1.pem"}
        world.run("release", "publish", world.bundle("1.0.0"))
        uri = ("--uri", f"file2:{tmp_path / 'targets.key'}", "--public", tmp_path / "targets.pub.pem")
        said = world.json("release", "keys", "rotate", "targets", *uri)
        assert [name for name, one in said["keys"].items() if one["counts"]] == [
            "root-1.json",
            "targets-2.json",
        ]
        world.run("release", "publish", world.bundle("1.1.0"))
        assert len(world.json("release", "list")["releases"]) == 2
        file = json.loads((tmp_path / "publisher" / "root-1.json").read_text())
        assert set(file) == {"uri", "public"}
