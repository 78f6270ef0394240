"""Debian's own SWUpdate, unmodified, as a process: it asks a real hub by hawkBit's interface and installs what the verbs made."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import tempfile
import threading
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import pytest
from test_cli_operating import HERE, World, hub_up, until

from edgestill.core import cpio, swu
from edgestill.core.bundle import Bundle, build, write_archive
from edgestill.core.digest import Digest
from edgestill.core.manifest import REQUIRED
from edgestill.core.protocols import Request
from edgestill.link.http import HttpTransport

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

SWUPDATE = shutil.which("swupdate")
OPENSSL = shutil.which("openssl")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(SWUPDATE is None, reason="needs SWUpdate: apt-get install swupdate"),
    pytest.mark.skipif(OPENSSL is None, reason="needs OpenSSL: apt-get install openssl"),
]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A hub with this publisher's root, whose publisher has an image key as well."""
    with hub_up(tmp_path_factory.mktemp("world")) as made:
        made.run("release", "keys", "init")
        made.run("release", "root")
        make_key(made.folder, "image")
        yield made


def make_key(folder: Path, name: str) -> None:
    """As the documentation says."""
    assert OPENSSL is not None
    subprocess.run(
        [
            *(OPENSSL, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "3650"),
            *("-keyout", str(folder / f"{name}.key"), "-out", str(folder / f"{name}.crt")),
            *("-subj", "/CN=publisher"),
        ],
        check=True,
        capture_output=True,
    )


def export(world: World, bundle: Path, inbox: Path, *, key: str = "image") -> Path:
    """The bundle's image, signed."""
    image = bundle.with_suffix(f".{key}.swu")
    made = world.json(
        *("bundle", "export", bundle, image, "--to", "swu", "--inbox", inbox),
        *("--key", world.folder / f"{key}.key", "--certificate", world.folder / f"{key}.crt"),
    )
    assert made["hardware"] == [HERE]
    return image


class Device:
    """A device that has SWUpdate and nothing of ours."""

    def __init__(self, world: World, name: str, *, revision: str = HERE) -> None:
        self.world = world
        self.name = name
        self.revision = revision
        self.token = world.json("fleet", "add", name, "--hardware-class", HERE, "--label", f"row={name}")[
            "token"
        ]
        self.folder = Path(tempfile.mkdtemp(prefix="swu-"))  # short: it makes sockets there
        self.inbox = self.folder / "inbox"
        self.log = self.folder / "log"

    @contextmanager
    def running(self, *more: str, url: str = "") -> Iterator[subprocess.Popen[bytes]]:
        """SWUpdate in suricatta mode until the block ends, when its power is cut; a restart is another call.

        Not by SIGTERM: its own handler for that now and then waits forever for a lock (1 of 40 tries with 2022.12).
        """
        assert SWUPDATE is not None
        suricatta = (
            f"-t default -u {url or self.world.url} -i {self.name} -k {self.token} -p 1 {' '.join(more)}"
        )
        with self.log.open("ab") as log:
            process = subprocess.Popen(
                [
                    *(SWUPDATE, "-v", "-k", str(self.world.folder / "image.crt")),
                    *("-H", f"edgestill:{self.revision}", "-u", suricatta),
                ],
                env=os.environ | {"TMPDIR": str(self.folder)},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        try:
            yield process
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(30)

    def shown(self) -> Any:
        """The hub's view of it."""
        return self.world.json("fleet", "show", self.name)

    def told(self) -> str:
        """Its log."""
        return self.log.read_text(errors="replace")


@contextmanager
def device(world: World, name: str, **rest: str) -> Iterator[Device]:
    """A device whose folder goes with it."""
    made = Device(world, name, **rest)
    try:
        yield made
    finally:
        shutil.rmtree(made.folder)


def test_an_unmodified_swupdate_installs_a_release(world: World) -> None:
    """It finds the deployment, verifies the signature, puts the bundle in its place; the rollout is done when the device says that it works."""
    bundle = world.bundle("1.0.0", name="swu")
    with device(world, "gate") as one:
        world.run("release", "publish", bundle)
        world.run("release", "image", export(world, bundle, one.inbox))
        rollout = world.json("rollout", "start", "swu/1.0.0", "--stages", "100%", "--label", "row=gate")["id"]
        with one.running():
            until(lambda: one.shown()["state"] == "staged")
        assert (one.inbox / "swu.esb").read_bytes() == bundle.read_bytes()
        Bundle.open(one.inbox / "swu.esb").verify()
        assert world.json("rollout", "status", rollout)["state"] == "running", "staged is not yet confirmed"
        with one.running("-c", "2"):
            until(lambda: one.shown()["state"] == "confirmed")
        assert one.shown()["release"] == "swu/1.0.0"
        assert world.json("rollout", "status", rollout)["state"] == "done"
    refused = [line for line in (world.folder / "log").read_text().splitlines() if " refused " in line]
    assert not [line for line in refused if "by device" in line]


def test_a_device_that_is_started_without_a_word_does_not_install_again(world: World) -> None:
    """SWUpdate remembers nothing over a restart without a bootloader's environment; the hub does, and the device still confirms."""
    bundle = world.bundle("1.0.0", name="again")
    with device(world, "forgetful") as one:
        world.run("release", "publish", bundle)
        world.run("release", "image", export(world, bundle, one.inbox))
        world.run("rollout", "start", "again/1.0.0", "--stages", "100%", "--label", "row=forgetful")
        with one.running():
            until(lambda: one.shown()["state"] == "staged")
        written = one.told().count("Found file")
        (one.inbox / "again.esb").unlink()
        asked = one.told().count("Update action available")
        with one.running():
            until(lambda: one.told().count("Update action available") >= asked + 6)
        assert one.told().count("Found file") == written > 0
        assert not (one.inbox / "again.esb").exists()
        assert one.shown()["state"] == "staged"
        with one.running("-c", "2"):
            until(lambda: one.shown()["state"] == "confirmed")


def other_key(world: World, bundle: Path, inbox: Path) -> bytes:
    """Sound in all, but signed with a key that the device does not know."""
    make_key(world.folder, "other")
    return export(world, bundle, inbox, key="other").read_bytes()


def other_bundle(world: World, bundle: Path, inbox: Path) -> bytes:
    """A signed description with other bytes than it names behind it; the archive's own checksum is right."""
    image = export(world, bundle, inbox)
    description, signature = parts_of(image)
    altered = bytearray(bundle.read_bytes())
    altered[-2000] ^= 1
    return laid_out(description.to_bytes(), signature, description.file, bytes(altered))


def other_description(world: World, bundle: Path, inbox: Path) -> bytes:
    """Other bytes and a description that names them, under the signature of the one before."""
    image = export(world, bundle, inbox)
    description, signature = parts_of(image)
    altered = bytearray(bundle.read_bytes())
    altered[-2000] ^= 1
    forged = replace(description, digest=Digest.of(bytes(altered)))
    return laid_out(forged.to_bytes(), signature, description.file, bytes(altered))


def unsigned(world: World, bundle: Path, inbox: Path) -> bytes:
    """No signature at all."""
    description, _ = parts_of(export(world, bundle, inbox))
    return laid_out(description.to_bytes(), None, description.file, bundle.read_bytes())


def with_a_script(world: World, bundle: Path, inbox: Path) -> bytes:
    """A description that names a shell script too."""
    description, signature = parts_of(export(world, bundle, inbox))
    said = description.to_bytes().decode()
    script = f'\tscripts: ( {{ filename = "{description.file}"; type = "preinstall"; }} );\n}}\n'
    forged = said.removesuffix("}\n") + script
    return laid_out(forged.encode(), signature, description.file, bundle.read_bytes())


def parts_of(image: Path) -> tuple[swu.Description, bytes]:
    """What an image says, and its signature."""
    read = swu.Image.read(image)
    return read.description, read.signature


def laid_out(description: bytes, signature: bytes | None, name: str, data: bytes) -> bytes:
    """An archive of these files, its checksums right."""
    files = [(swu.DESCRIPTION, description), (swu.SIGNATURE, signature), (name, data)]
    made = b""
    for number, (file, content) in enumerate(files, start=1):
        if content is not None:
            made += cpio.header(file, len(content), check=cpio.checksum(content), number=number)
            made += content + cpio.padding(len(content))
    return made + cpio.end(len(made))


@pytest.mark.parametrize(
    ("forge", "why"),
    [
        (other_key, "Authentication of all signatures failed"),
        (other_bundle, "HASH mismatch"),
        (other_description, "Signature verification failed"),
        (unsigned, "Image invalid or corrupted"),
        (with_a_script, "Signature verification failed"),
    ],
)
def test_attack_a_stolen_hub_that_hands_out_a_forged_image(
    world: World, forge: Callable[[World, Path, Path], bytes], why: str
) -> None:
    """The hub's database and its blobs are in other hands: SWUpdate refuses what the publisher has not signed, and the rollout pauses."""
    name = f"forged-{forge.__name__.replace('_', '-')}"
    bundle = world.bundle("1.0.0", name=name)
    with device(world, name) as one:
        world.run("release", "publish", bundle)
        plant(world, Digest.of(bundle.read_bytes()), forge(world, bundle, one.inbox))
        rollout = world.json(
            "rollout", "start", f"{name}/1.0.0", "--stages", "100%", "--label", f"row={name}"
        )["id"]
        with one.running():
            until(lambda: one.shown()["state"] == "fell-back")
        assert not one.inbox.exists() or list(one.inbox.iterdir()) == []
        status = world.json("rollout", "status", rollout)
        assert status["state"] == "paused"
        assert f"{name} failed, of 1" in status["reason"]
        assert why in one.told()
        assert "No suitable .swu image found" in one.shown()["reason"], "the device's own words"
        assert one.shown()["release"] is None


def plant(world: World, archive: Digest, image: bytes) -> None:
    """Puts an image where the hub would have refused it."""
    digest = Digest.of(image).hex
    path = world.folder / "hub" / "blobs" / digest[:2] / digest[2:4] / digest
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(image)
    sums = [hashlib.new(name, image, usedforsecurity=False).hexdigest() for name in ("sha1", "md5")]
    connection = sqlite3.connect(world.folder / "hub" / "hub.db", timeout=20)
    with connection:
        connection.execute(
            "INSERT OR REPLACE INTO images (archive, digest, size, sha1, md5, added_at) VALUES (?, ?, ?, ?, ?, 0)",
            (archive.hex, digest, len(image), *sums),
        )
    connection.close()


def test_a_device_of_another_class_refuses_the_image(world: World) -> None:
    """What runs it is said under the signature: a hub cannot send a bundle to hardware that it is not for."""
    bundle = world.bundle("1.0.0", name="elsewhere")
    with device(world, "elsewhere", revision="another-class") as one:
        world.run("release", "publish", bundle)
        world.run("release", "image", export(world, bundle, one.inbox))
        world.run("rollout", "start", "elsewhere/1.0.0", "--stages", "100%", "--label", "row=elsewhere")
        with one.running():
            until(lambda: one.shown()["state"] == "fell-back")
        assert "not compatible with hardware" in one.shown()["reason"]
        assert not one.inbox.exists()


def test_a_download_is_called_off_and_the_device_says_so(world: World) -> None:
    """The rollout is rolled back while the image is on its way: SWUpdate stops, and is given nothing more."""
    bundle = large_bundle(world, "slow")
    with device(world, "slow") as one:
        world.run("release", "publish", bundle)
        world.run("release", "image", export(world, bundle, one.inbox))
        rollout = world.json("rollout", "start", "slow/1.0.0", "--stages", "100%", "--label", "row=slow")[
            "id"
        ]
        log = world.folder / "log"
        with one.running("-n", "100k"):
            until(lambda: "Installing" in one.told() or "Found file" in one.told())
            world.run("rollout", "rollback", rollout)
            until(lambda: "device slow: action" in log.read_text())
        assert "is called off" in log.read_text()
        assert one.shown()["state"] is None
        assert not one.inbox.exists()


def test_an_interrupted_download_goes_on_where_it_was(world: World) -> None:
    """The hub is gone for a while in the middle of it: SWUpdate asks for the rest, and installs the whole."""
    bundle = large_bundle(world, "broken")
    with device(world, "broken") as one:
        world.run("release", "publish", bundle)
        world.run("release", "image", export(world, bundle, one.inbox))
        world.run("rollout", "start", "broken/1.0.0", "--stages", "100%", "--label", "row=broken")
        with Cutting(world.url, after=600_000) as proxy:
            with one.running("-r", "5", "-w", "1", url=proxy.url):
                until(lambda: one.shown()["state"] == "staged", seconds=60)
            assert proxy.cuts == 1
            assert any("bytes=" in asked for asked in proxy.ranges)
        assert (one.inbox / "broken.esb").read_bytes() == bundle.read_bytes()


def large_bundle(world: World, name: str) -> Path:
    """A bundle of two megabytes that no engine will see."""
    blobs = {one: random.Random(one).randbytes(400_000) for one in REQUIRED}
    manifest, ordered = build(name=name, version="1.0.0", hardware_class=HERE, blobs=blobs)
    path = world.folder / f"{name}.esb"
    write_archive(path, manifest, ordered)
    return path


class Cutting:
    """A proxy on the loopback that cuts the first image off after so many bytes.

    Attributes:
        cuts: how often it did.
        ranges: what was asked for in ranges.
    """

    def __init__(self, url: str, *, after: int) -> None:
        self.cuts = 0
        self.ranges: list[str] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_any(self) -> None:
                body = self.rfile.read(int(self.headers.get("content-length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                if "range" in headers:
                    proxy.ranges.append(headers["range"])
                response = HttpTransport().send(
                    Request(self.command, url + self.path, headers, body), timeout=20
                )
                data = b"".join(response.chunks())
                self.send_response(response.status)
                for name, value in response.headers.items():
                    if name.lower() not in {"connection", "transfer-encoding", "date", "server"}:
                        self.send_header(name, value)
                self.end_headers()
                if "softwaremodules" in self.path and not proxy.cuts:
                    proxy.cuts += 1
                    self.wfile.write(data[:after])
                    self.close_connection = True
                    return
                self.wfile.write(data)

            do_GET = do_POST = do_PUT = handle_any  # noqa: N815  # the names that the server looks for

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
