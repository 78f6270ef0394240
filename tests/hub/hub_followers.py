"""A hub process that speaks TLS, its publisher, and a device of real parts whose time a test moves."""

from __future__ import annotations

import signal
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from hub_processes import Process
from hub_worlds import esb

from edgestill.cli.delivering import deliver, let_speak
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.hardware import HardwareClass
from edgestill.core.release import target_name
from edgestill.device.courier import RENEWAL_PAUSE, Courier
from edgestill.device.home import Home, Settings
from edgestill.device.life import join
from edgestill.device.papers import HubTransport, Papers
from edgestill.device.word import Word
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport
from edgestill.link.operator import OperatorClient
from edgestill.link.tls import hub_context
from edgestill.testing.clock import FakeClock
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.metadata import TargetInfo

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.device.events import Assigned
    from edgestill.trust.publisher import Publisher

HERE = str(HardwareClass.here())


class Serving:
    """A hub that runs.

    Args:
        process: of it.
    """

    def __init__(self, process: Process) -> None:
        self.process = process
        self.url = process.url()
        self._opened: list[HttpTransport] = []

    def operator(self) -> OperatorClient:
        """The owner, who believes whom the hub's folder names now."""
        authorities = (self.process.home / "authority.pem").read_text()
        self._opened.append(HttpTransport(tls=hub_context(authorities)))
        token = (self.process.home / "operator.token").read_text().strip()
        return OperatorClient(self._opened[-1], self.url, token=token)

    def close(self) -> None:
        """Hangs up."""
        while self._opened:
            self._opened.pop().close()


@contextmanager
def serving(folder: Path, port: int = 0, *options: str) -> Iterator[Serving]:
    """A hub in `folder/hub`, with a certificate of its fleet's authority."""
    (folder / "ready").unlink(missing_ok=True)
    process = Process(folder, "--tls", *options, *(("--port", str(port)) if port else ()))
    try:
        made = Serving(process)
        yield made
        made.close()
    finally:
        code, log = process.stop(signal.SIGTERM)
    assert code == 0, log
    assert "Traceback" not in log


def publish(publisher: Publisher, client: OperatorClient, *versions: str) -> None:
    """Versions of `watch` for this machine's class."""
    add = {}
    for version in versions:
        archive = esb(version, hardware_class=HERE)
        client.upload_bundle(archive)
        add[target_name("watch", version, HERE)] = TargetInfo(len(archive), Digest.of(archive))
    let_speak(publisher, client)
    publisher.sign_targets(served=client.targets(), add=add, now=SystemClock().now())
    deliver(publisher, client)


class Follower:
    """A device that has joined, and polls when the test says so.

    Args:
        folder: its home, to be made.
        hub: that it joins.
        name: in the fleet.
    """

    def __init__(self, folder: Path, hub: Serving, name: str = "d0") -> None:
        token = hub.operator().join_token()
        self.home: Home = join(
            folder, hub=hub.url, token=token, name=name, settings=Settings(leaves="raw", labels={})
        )
        self.clock = FakeClock(now=SystemClock().now())
        self.seen = 0
        self.start()

    def start(self) -> None:
        """As a start of the agent puts it together."""
        self.papers = Papers.of(self.home, self.clock)
        self._transport = HttpTransport(tls=self.papers.context)
        carried = HubTransport(self._transport, self.papers)
        identity = self.home.identity
        control = ControlClient(carried, identity.hub, credential=identity.credential, timeout=20)
        self.trusted = TrustedClient(
            KeptMetadata(self.home.tuf), root=self.home.root, fetch=control.artefact, clock=self.clock
        )
        self.courier = Courier(
            identity,
            control=control,
            trusted=self.trusted,
            transport=carried,
            clock=self.clock,
            wait=0,
            papers=self.papers,
            word=Word(self.home, self.papers, self.clock),
        )

    def poll(self) -> Assigned | None:
        """What is assigned anew; later polls refuse what comes before it."""
        found, _ = self.courier.poll(seen=self.seen)
        if found is not None:
            self.seen = found.counter
        return found

    def later(self) -> None:
        """As long as the device pauses between two tries."""
        self.clock.advance(RENEWAL_PAUSE + 1)

    @property
    def believes(self) -> Any:
        """Digests of authorities."""
        from edgestill.trust.certificates import Authorities

        return Authorities.from_pem((self.home.path / "authorities.pem").read_bytes()).digests

    @property
    def issuer(self) -> str | None:
        """Of its certificate; None where that is of no use."""
        found = self.papers.member()
        return None if found is None else found.issuer

    def close(self) -> None:
        """Hangs up."""
        self._transport.close()
