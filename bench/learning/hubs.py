"""A hub as a process of its own, which may be killed at any moment and comes back at the same address, and devices that enrol with it.

It is `edgestill hub up`, on the loopback, over TLS by its fleet's authority; devices have to show their certificates.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Self

from edgestill.core.clock import SystemClock
from edgestill.device.home import Home, Settings
from edgestill.device.life import join
from edgestill.link.http import HttpTransport
from edgestill.link.operator import OperatorClient
from edgestill.link.tls import hub_context
from edgestill.trust.keys import PublicKey, SigningKey
from edgestill.trust.root import create_root

LONG: Final = 60.0
_YEAR: Final = 365 * 86_400.0


class HubProcess:
    """Started, killed and started again in one folder.

    Args:
        folder: for the hub's own, its log, and devices.

    Attributes:
        url: where it listens, once it has.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._home = folder / "hub"
        self._ready = folder / "ready"
        self._port = "0"
        self.url = ""
        self.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    def start(self) -> None:
        """Starts a process; returns at once."""
        self._ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "edgestill.cli", "hub", "up", "--home", str(self._home)]
        command += ["--port", self._port, "--ready", str(self._ready), "--tls", "--require-certificates"]
        with (self._folder / "hub.log").open("ab") as log:
            # a process group of its own, so that one signal ends whatever it has started
            self._child = subprocess.Popen(command, stderr=log, stdout=log, start_new_session=True)  # noqa: S603  # our own program

    def wait(self) -> None:
        """Until it listens; from then on it comes back at the same port."""
        end = time.monotonic() + LONG
        while not self._ready.exists():
            if self._child.poll() is not None or time.monotonic() > end:
                raise AssertionError((self._folder / "hub.log").read_text()[-2000:])
            time.sleep(0.01)
        self.url = self._ready.read_text().strip()
        self._port = self.url.rpartition(":")[2]

    def start_cpu_seconds(self) -> float:
        """Of the processor, until a process listens: what a start takes on a machine that has nothing else to do, or little more."""
        self.kill()
        self.start()
        self.wait()
        told = Path(f"/proc/{self._child.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, told[11:13])) / os.sysconf("SC_CLK_TCK")

    def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        if self._child.poll() is None:
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()

    def operator(self) -> OperatorClient:
        """Whoever has the hub's own token."""
        believed = HttpTransport(tls=hub_context((self._home / "authority.pem").read_text()))
        return OperatorClient(believed, self.url, token=(self._home / "operator.token").read_text().strip())

    def devices(self, count: int) -> list[Home]:
        """A publisher's root, and so many devices that enrol by one token, each with a certificate."""
        operator, clock = self.operator(), SystemClock()
        online: Any = operator.online_key()
        root, targets = SigningKey.generate(), SigningKey.generate()
        operator.upload_root(
            create_root(
                root=[root],
                targets=[targets.public],
                online=PublicKey.from_json(online, where="online"),
                expires=clock.now() + _YEAR,
            )
        )
        token = operator.join_token(uses=count)
        settings = Settings(leaves="features", labels={})
        return [
            join(self._folder / f"d{number}", hub=self.url, token=token, name=f"d{number}", settings=settings)
            for number in range(count)
        ]
