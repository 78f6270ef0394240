"""Devices of one fleet that answer each other: known by their certificates, in both directions."""

from __future__ import annotations

import shutil
import signal
import ssl
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import pytest
import uvicorn
from device_bundles import HERE, batches, logits_of, tiny_bundle
from device_fleet import until
from device_worlds import target

from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.errors import SettingError, UnreachableError
from edgestill.device.home import (
    AUTHORITIES,
    CERTIFICATE,
    DEVICE_KEY,
    Home,
    Identity,
    Settings,
    choose_socket,
)
from edgestill.device.main import main
from edgestill.device.memory import Memory
from edgestill.device.model import Serving
from edgestill.device.neighbours import Neighbours, Upstream
from edgestill.device.outbox import Outbox
from edgestill.device.papers import Papers
from edgestill.device.privacy import Permissions
from edgestill.device.processes import listening
from edgestill.device.serve.listening import Tls, fleet_tls
from edgestill.device.serve.models import of_bundle
from edgestill.device.serve.server import Server as WebServer
from edgestill.device.serving import Server
from edgestill.device.slots import Slots
from edgestill.device.state import State
from edgestill.infer.policy import Policy
from edgestill.testing.clock import FakeClock
from edgestill.trust.authority import Authority
from edgestill.trust.certificates import IdentityKey, Requested

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 86_400.0
FLEET = "0123456789abcdef"
AUTHORITY, STRANGER = Authority.create(FLEET), Authority.create(FLEET)
POLICY = Policy(labels=("low", "middle", "high"))


def papers_of(name: str, authority: Authority = AUTHORITY, *, lifetime: float = DAY) -> dict[str, bytes]:
    """The papers of a device of this name."""
    key = IdentityKey.generate()
    now = SystemClock().now()
    return {
        DEVICE_KEY: key.to_pem(),
        AUTHORITIES: authority.authorities.to_pem(),
        CERTIFICATE: authority.device(Requested.from_pem(key.request()), name, now=now, lifetime=lifetime),
    }


def home_of(path: Path, name: str, papers: dict[str, bytes]) -> Home:
    """A device."""
    identity = Identity(
        device=name, credential="c", hub="http://127.0.0.1:9", hardware_class=HERE, interval=1.0
    )
    settings = Settings(leaves="nothing", labels={})
    return Home.create(path, identity=identity, settings=settings, root=b"{}", papers=papers)


@contextmanager
def serving(folder: Path) -> Iterator[tuple[Home, str]]:
    """A device named `gateway` that serves its fleet: its engine here, its server a process of its own."""
    home = home_of(folder / "gateway", "gateway", papers_of("gateway"))
    Slots.open(home.slots).save(State(active="a", a=target(1), seen=1, counter=1))
    Outbox.open(home.outbox).close()
    archive = folder / "tiny.esb"
    archive.write_bytes(tiny_bundle())
    bundle = Bundle.open(archive)
    engine = Serving(
        bundle,
        memory=Memory(home.learned, bundle.manifest.digest),
        permissions=Permissions.of("nothing", POLICY),
        clock=SystemClock(),
        random=lambda: 0.5,
        teachers=None,
    )
    listener = listening(choose_socket(home.path))
    server = Server(listener, engine.answer, clock=SystemClock())
    server.start()
    ready = folder / "ready"
    command = [
        sys.executable,
        "-m",
        "edgestill.device.main",
        "serve",
        "--home",
        str(home.path),
        "--tls-fleet",
    ]
    child = subprocess.Popen([*command, "--port", "0", "--ready", str(ready)])
    try:
        until(ready.exists)
        yield home, ready.read_text().strip()
    finally:
        child.send_signal(signal.SIGTERM)
        code = child.wait(30)
        server.stop(seconds=5)
        listener.close()
    assert code == 0


def asks(home: Home, url: str, fleet: str) -> list[int]:
    """The classes that the neighbour names for five inputs."""
    near = Upstream(name="gateway", url=url, model="student", output="probabilities", fleet=fleet)
    model = near.connect(
        POLICY, "input", clock=SystemClock(), random=lambda: 0.5, papers=Papers.of(home, SystemClock())
    )
    return [int(one) for one in model.predict(batches(5, 1)).probabilities.argmax(axis=1)]


def test_a_device_asks_another_of_its_fleet(tmp_path: Path) -> None:
    """By its name, or any of the fleet; each has looked at the other's certificate. Strangers, and who is somebody else, get no answer."""
    expected = np.argmax(logits_of(1, batches(5, 1)), axis=1).tolist()
    with serving(tmp_path) as (_, url):
        assert url.startswith("https://127.0.0.1:")
        home = home_of(tmp_path / "d1", "d1", papers_of("d1"))
        assert asks(home, url, "gateway") == expected
        assert asks(home, url, "*") == expected
        with pytest.raises(UnreachableError, match="of another member"):
            asks(home, url, "gateway-2")
        for name, papers in {
            "stranger": papers_of("d1", STRANGER) | {AUTHORITIES: AUTHORITY.authorities.to_pem()},
            "expired": papers_of("d1", lifetime=-1.0),
            "bare": {},
        }.items():
            with pytest.raises(UnreachableError):
                asks(home_of(tmp_path / name, "d1", papers), url, "gateway")
        plain = Upstream(name="gateway", url=url, model="student").connect(
            POLICY, "input", clock=SystemClock(), random=lambda: 0.5
        )
        with pytest.raises(UnreachableError):
            plain.predict(batches(1, 1))


def test_a_server_takes_up_the_renewed_certificate(tmp_path: Path) -> None:
    """The agent renews it in the home; the server beside it reads it again, and outlives a file that rotted."""
    home = home_of(tmp_path / "gateway", "gateway", papers_of("gateway"))
    tls = fleet_tls(home, SystemClock())
    config = uvicorn.Config(lambda *_: None, lifespan="off", log_config=None)
    config.load()
    loaded: list[Path] = []

    class Watched(ssl.SSLContext):
        def load_cert_chain(self, certfile: object, keyfile: object = None, password: object = None) -> None:
            super().load_cert_chain(certfile, keyfile)  # type: ignore[arg-type]  # paths, as they came
            loaded.append(tls.certificate)

    config.ssl = Watched(ssl.PROTOCOL_TLS_SERVER)
    server = WebServer(config, None, ready=lambda: None, tls=tls)  # type: ignore[arg-type]  # nothing is asked
    server.take_up()
    (home.path / CERTIFICATE).write_bytes(b"nonsense")
    server.take_up()
    assert loaded == [tls.certificate]
    fixed = Tls(certificate=tls.certificate, key=tls.key)
    WebServer(config, None, ready=lambda: None, tls=fixed).take_up()  # type: ignore[arg-type]  # likewise
    assert len(loaded) == 1, "files that an operator named are read once"


@pytest.mark.parametrize("papers", [{}, papers_of("d1", lifetime=-1.0), papers_of("another")])
def test_without_a_certificate_that_holds_nothing_is_served(tmp_path: Path, papers: dict[str, bytes]) -> None:
    """None, one that has ended, or somebody else's."""
    home = home_of(tmp_path / "d1", "d1", papers)
    with pytest.raises(SettingError, match="this device has no certificate that holds"):
        fleet_tls(home, SystemClock())


def test_two_certificates_for_one_server_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nobody could say which one it is."""
    home = home_of(tmp_path / "d1", "d1", papers_of("d1"))
    files = ["--tls-certificate", str(home.path / CERTIFICATE), "--tls-key", str(home.path / DEVICE_KEY)]
    assert main(["serve", "--home", str(home.path), "--tls-fleet", *files]) == 1
    assert "two certificates for one server" in capsys.readouterr().err


def test_a_neighbour_of_the_fleet_is_written_down(tmp_path: Path) -> None:
    """With the verb, and read back."""
    home = home_of(tmp_path / "d1", "d1", papers_of("d1"))
    adding = ["neighbours", "--home", str(home.path), "--add", "gateway=https://10.0.0.2:8000"]
    assert main([*adding, "--fleet", "gateway-1", "--model", "student"]) == 0
    (one,) = Neighbours.of(home.neighbours).each
    assert (one.fleet, one.token) == ("gateway-1", None)


def test_a_gateway_that_is_no_device_cannot_ask_so(tmp_path: Path) -> None:
    """It has no certificate; it is told before it serves."""
    archive = tmp_path / "tiny.esb"
    archive.write_bytes(tiny_bundle())
    near = Neighbours(each=(Upstream(name="near", url="https://10.0.0.2", fleet="*"),))
    with pytest.raises(SettingError, match="only a device of the fleet can ask another"):
        of_bundle(
            Bundle.open(archive),
            upstream=Upstream(url="http://127.0.0.1:1"),
            neighbours=near,
            clock=FakeClock(),
            random=lambda: 0.5,
        )


def test_contexts_to_members_are_kept_until_the_papers_change(tmp_path: Path) -> None:
    """So that connections are."""
    home = home_of(tmp_path / "d1", "d1", papers_of("d1"))
    given = Papers.of(home, SystemClock()).to_member("gateway")
    first = given()
    assert given() is first
    shutil.copy(home.path / CERTIFICATE, home.path / "copy")
    (home.path / "copy").replace(home.path / CERTIFICATE)
    assert given() is not first
