"""Bundles in the form that others take them in: a folder, and a signed image; and how images reach a hub."""

from __future__ import annotations

import datetime as dt
import json
from typing import TYPE_CHECKING, Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
)
from cryptography.x509.oid import NameOID
from test_cli_operating import HERE, World, hub_up
from test_cli_verbs import make_bundle
from typer.testing import CliRunner

from edgestill.cli.app import app
from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError
from edgestill.core.swu import Image

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PASSPHRASE = b"correct horse"


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with an image key, open and locked, its certificate and that of another key."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("image", "other"):
        key = rsa.generate_private_key(65537, 2048)
        (folder / f"{name}.key").write_bytes(pem_of(key, NoEncryption()))
        (folder / f"{name}.locked").write_bytes(pem_of(key, BestAvailableEncryption(PASSPHRASE)))
        who = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        now = dt.datetime.now(dt.UTC)
        day = dt.timedelta(days=1)
        made = x509.CertificateBuilder(who, who, key.public_key(), 7, now - day, now + day)
        (folder / f"{name}.crt").write_bytes(made.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM))
    (folder / "passphrase").write_bytes(PASSPHRASE + b"\n")
    return folder


def pem_of(key: rsa.RSAPrivateKey, lock: KeySerializationEncryption) -> bytes:
    """The key's file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)


def run(*arguments: object) -> str:
    """A verb that succeeds; what it says."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.output


def refused(*arguments: object) -> EdgestillError:
    """A verb that fails; why."""
    result = CliRunner().invoke(app, [str(one) for one in arguments])
    assert isinstance(result.exception, EdgestillError), result.output
    return result.exception


def image_of(bundle: Path, keys: Path, *more: object) -> dict[str, Any]:
    """What is said of an image that was made."""
    out = bundle.with_suffix(".swu")
    said = run("bundle", "export", bundle, out, "--to", "swu", "--key", keys / "image.key", "--json", *more)
    made: dict[str, Any] = json.loads(said)
    return made


def test_a_folder_is_the_same_bundle(tmp_path: Path) -> None:
    """Every blob is there; what is made of it again has the archive's bytes."""
    bundle, out = make_bundle(tmp_path / "tiny.esb"), tmp_path / "folder"
    said = json.loads(run("bundle", "export", bundle, out, "--to", "dir", "--json"))
    Bundle.open(out).verify()
    assert said["digest"] == str(Bundle.open(bundle).manifest.digest) == str(Bundle.open(out).manifest.digest)
    assert run("bundle", "export", bundle, tmp_path / "again", "--to", "dir").endswith("5 blobs\n")


def test_nothing_is_written_where_something_is(tmp_path: Path) -> None:
    """A folder with files, or a file, is left as it is."""
    bundle = make_bundle(tmp_path / "tiny.esb")
    for out in (tmp_path, bundle):
        before = sorted(tmp_path.iterdir())
        assert refused("bundle", "export", bundle, out, "--to", "dir").code == "path-unusable"
        assert sorted(tmp_path.iterdir()) == before


def test_an_image_is_always_the_same(tmp_path: Path, keys: Path) -> None:
    """Twice, of the archive or of its folder, as CMS or bare: the same bytes, with the archive in them that a publisher lists."""
    bundle = make_bundle(tmp_path / "tiny.esb")
    run("bundle", "export", bundle, tmp_path / "folder", "--to", "dir")
    for more in ((), ("--certificate", keys / "image.crt")):
        made = [image_of(one, keys, *more)["digest"] for one in (bundle, bundle, tmp_path / "folder")]
        assert len(set(made)) == 1
        read = Image.read(tmp_path / "tiny.swu")
        assert read.description.digest == Digest.of(bundle.read_bytes())
    assert len(read.signature) > 256, "the certificate goes with it"


def test_what_an_image_says_can_be_chosen(tmp_path: Path, keys: Path) -> None:
    """Its place on the device, and which revisions of hardware may install it."""
    bundle = make_bundle(tmp_path / "tiny.esb")
    plain = image_of(bundle, keys)
    assert (plain["path"], plain["hardware"]) == ("/var/lib/edgestill/inbox/tiny.esb", ["#RE:.*"])
    chosen = image_of(bundle, keys, "--inbox", "/data/models", "--hardware", "1.0", "--hardware", "#RE:2.*")
    assert (chosen["path"], chosen["hardware"]) == ("/data/models/tiny.esb", ["1.0", "#RE:2.*"])
    assert "installs /var/lib/edgestill/inbox/tiny.esb" in run(
        *("bundle", "export", bundle, tmp_path / "a.swu", "--to", "swu", "--key", keys / "image.key")
    )


def test_a_locked_key_opens_with_its_passphrase(tmp_path: Path, keys: Path) -> None:
    """Off a file; the image is the same."""
    bundle, out = make_bundle(tmp_path / "tiny.esb"), tmp_path / "locked.swu"
    run(
        *("bundle", "export", bundle, out, "--to", "swu", "--key", keys / "image.locked"),
        *("--passphrase-file", keys / "passphrase"),
    )
    assert str(Digest.of(out.read_bytes())) == image_of(bundle, keys)["digest"]


def test_what_makes_no_image_leaves_none(tmp_path: Path, keys: Path) -> None:
    """No key, a locked one, another's certificate, a folder that no image can name, a bundle that was altered."""
    bundle, out = make_bundle(tmp_path / "tiny.esb"), tmp_path / "none.swu"
    head = ("bundle", "export", bundle, out, "--to", "swu")
    key = ("--key", keys / "image.key")
    assert refused(*head).code == "setting-invalid"
    assert refused(*head, "--key", keys / "image.locked").code == "trust-refused"
    assert refused(*head, "--key", keys / "nothing").code == "path-unusable"
    assert refused(*head, "--key", keys / "image.crt").code == "message-invalid"
    assert refused(*head, *key, "--certificate", keys / "other.crt").code == "trust-refused"
    assert refused(*head, *key, "--inbox", "relative").code == "setting-invalid"
    bundle.write_bytes(bundle.read_bytes().replace(b"# A tiny model", b"# A tiny modem"))
    assert refused(*head, *key).code.startswith("bundle-")
    assert not out.exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub with this publisher's root."""
    with hub_up(tmp_path_factory.mktemp("world")) as made:
        made.run("release", "keys", "init")
        made.run("release", "root")
        yield made


def test_images_follow_their_bundles(world: World, keys: Path) -> None:
    """Refused before the bundle is there, kept after; and a device that was added by an operator has a token, once."""
    bundle = world.bundle("1.0.0", name="late")
    image = image_of(bundle, keys)["image"]
    assert "[not-found]" in world.run("release", "image", image, fails=True)
    world.run("release", "publish", bundle)
    (kept,) = world.json("release", "image", image)["images"]
    assert kept["archive"] == str(Digest.of(bundle.read_bytes()))
    assert world.run("release", "image", image) == f"{image}: the hub has it\n"
    assert "[message-invalid]" in world.run("release", "image", bundle, fails=True)
    added = world.json("fleet", "add", "gate", "--hardware-class", HERE, "--label", "site=north")
    assert added["device"] == "gate"
    assert added["token"].startswith("esd1.")
    shown = world.json("fleet", "show", "gate")
    assert (shown["class"], shown["labels"], shown["attributes"]) == (HERE, {"site": "north"}, {})
    assert "the name is taken" in world.run("fleet", "add", "gate", "--hardware-class", HERE, fails=True)
    assert "[setting-invalid]" in world.run(
        "fleet", "add", "b", "--hardware-class", HERE, "--label", "x", fails=True
    )
