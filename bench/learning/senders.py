"""Devices that send sums as an agent does, and devices that are dead.

A living device keeps what it sends in its outbox (`device.outbox`) and hands it over by its courier (`device.courier`) over its own TLS connection: again
under the same id until the hub has acknowledged it. Features are small whole numbers, so that every sum is exact, in whatever order it is made.

A dead device holds a connection, with its certificate, over which nothing comes, or the first half of a message and then nothing; or it hangs up in the
midst of one, again and again.
"""

from __future__ import annotations

import random
import socket
import threading
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import numpy as np

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, RefusedError
from edgestill.core.jsonio import parse_object
from edgestill.core.protocols import Request
from edgestill.core.wire import ID_HEADER, SEQUENCE_HEADER
from edgestill.device.courier import Courier
from edgestill.device.outbox import Outbox
from edgestill.device.papers import Papers, hub_transport
from edgestill.learn.statistics import Statistics
from edgestill.link.control import ControlClient, bearer
from edgestill.link.exchange import accepted, exchange
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.device.home import Home
    from edgestill.device.outbox import Statistics as Sent

BACKBONES: Final = tuple(Digest.of(f"killed {number}".encode()) for number in range(2))
WINDOWS: Final = 4
FEATURES: Final = 32
CLASSES: Final = 10
MOST_SAMPLES: Final = 4
"""That a sum grows by."""
RETRY: Final = 0.5
"""Seconds between two tries."""
TIMEOUT: Final = 20.0
_PATH: Final = "/v1/evidence/statistics"
_DAY: Final = 86_400.0


class Ack(NamedTuple):
    """A hub's answer that a device got whole: when it asked, and when it had it, by the monotonic clock."""

    device: str
    id: str
    began: float
    ended: float
    changed: bool


class Acks:
    """All answers to all devices."""

    def __init__(self) -> None:
        self._came = threading.Condition()
        self._all: list[Ack] = []
        self.refused: list[str] = []

    def add(self, ack: Ack) -> None:
        """One more."""
        with self._came:
            self._all.append(ack)
            self._came.notify_all()

    def all(self) -> list[Ack]:
        """Those that came until now."""
        with self._came:
            return list(self._all)

    def first_after(self, moment: float, seconds: float) -> Ack | None:
        """The first answer to what was asked after a moment; None where none comes within so many seconds."""
        end = time.monotonic() + seconds
        with self._came:
            while (left := end - time.monotonic()) > 0:
                found = [one for one in self._all if one.began > moment]
                if found:
                    return min(found, key=lambda one: one.ended)
                self._came.wait(left)
        return None


class _Heard:
    """A control line that notes what was acknowledged, when, and what was refused."""

    def __init__(self, line: ControlClient, device: str, acks: Acks) -> None:
        self._line, self._device, self._acks = line, device, acks

    def statistics(self, id: str, message: bytes, *, sequence: int | None = None) -> bool:  # noqa: A002  # the wire's own word
        """As `ControlClient.statistics`."""
        began = time.monotonic()
        try:
            changed = self._line.statistics(id, message, sequence=sequence)
        except RefusedError as error:
            self._acks.refused.append(f"{self._device}: {error}")
            raise
        self._acks.add(Ack(self._device, id, began, time.monotonic(), changed))
        return changed


class Living:
    """A device that sends.

    Args:
        home: enrolled.
        acks: of all devices.
        seed: of its samples.

    Attributes:
        made: every message by its id.
        newest: the last one by what it is a sum of.
    """

    def __init__(self, home: Home, acks: Acks, seed: int) -> None:
        self.name = home.identity.device
        self._home, self._rng, self._clock = home, np.random.default_rng(seed), SystemClock()
        self._transport = hub_transport(home, self._clock)
        line = ControlClient(
            self._transport, home.identity.hub, credential=home.identity.credential, timeout=TIMEOUT
        )
        self._courier = Courier(
            home.identity,
            control=cast("Any", _Heard(line, self.name, acks)),
            trusted=TrustedClient(
                KeptMetadata(home.tuf), root=home.root, fetch=line.artefact, clock=self._clock
            ),
            transport=self._transport,
            clock=self._clock,
        )
        self._outbox = Outbox.open(home.outbox)
        self._sums: dict[tuple[Digest, int], Statistics] = {}
        self.made: dict[str, Sent] = {}
        self.newest: dict[tuple[Digest, int], Sent] = {}
        self.failures = 0

    def close(self) -> None:
        """Lets its outbox go."""
        self._outbox.close()

    def learn(self) -> None:
        """A few samples more in one of its sums, which waits from then on in place of the one before."""
        today = int(self._clock.now() // _DAY)
        backbone = BACKBONES[self._rng.integers(len(BACKBONES))]
        window = today - int(self._rng.integers(WINDOWS))
        before = self._sums.get((backbone, window)) or Statistics.empty(
            backbone=backbone, window=window, classes=CLASSES, features=FEATURES
        )
        count = int(self._rng.integers(1, MOST_SAMPLES + 1))
        features = self._rng.integers(0, 8, (count, FEATURES)).astype(np.float64)
        targets = np.eye(CLASSES)[self._rng.integers(0, CLASSES, count)]
        one = self._sums[backbone, window] = before.add(features, targets)
        key = f"{backbone.hex[:32]}-{window}"
        sent = self._outbox.put_statistics(key, one.to_bytes("float32"), at=self._clock.now())
        self.made[sent.id] = self.newest[backbone, window] = sent

    def deliver(self) -> bool:
        """Hands over what waits; False where the hub did not take all of it."""
        try:
            while not self._courier.deliver(self._outbox):
                pass
        except EdgestillError:
            self.failures += 1
            return False
        return True

    def live(self, ending: threading.Event, pause: float) -> None:
        """Learns and delivers every `pause` seconds on average, until it shall end."""
        spread = random.Random(self.name)  # noqa: S311  # it spreads devices over time
        while not ending.wait(pause * spread.uniform(0.5, 1.5)):
            self.learn()
            while not self.deliver() and not ending.wait(RETRY):
                pass

    def asks_again(self, id_: str) -> str:
        """What the hub says of a message that is sent once more under its id: the reason why it counts no further; empty where it counts now.

        Raises:
            EdgestillError: no answer.
        """
        one = self.made[id_]
        headers = bearer(self._home.identity.credential) | {
            ID_HEADER: one.id,
            SEQUENCE_HEADER: str(one.sequence),
            "content-type": "application/octet-stream",
        }
        request = Request("POST", self._home.identity.hub + _PATH, headers, one.body)
        reply = accepted(exchange(self._transport, request, timeout=TIMEOUT, max_bytes=10_000), request)
        return str(parse_object(reply.body, where="statistics").get("reason", ""))


class Dead:
    """A device of which the hub hears nothing more, connected again whenever the hub comes back.

    Args:
        home: enrolled.
        kind: `silent`, `half` (a message that stops in its midst) or `gone` (one that ends there).

    Attributes:
        connections: that it has made.
    """

    KINDS: Final = ("silent", "half", "gone")

    def __init__(self, home: Home, kind: str) -> None:
        self._home, self._kind = home, kind
        self.connections = 0

    def live(self, ending: threading.Event, _pause: float) -> None:
        """Until it shall end."""
        host, _, port = self._home.identity.hub.removeprefix("https://").rpartition(":")
        context = Papers.of(self._home, SystemClock()).context()
        assert context is not None
        while not ending.wait(RETRY):
            with (
                suppress(OSError),
                socket.create_connection((host, int(port)), timeout=TIMEOUT) as plain,
                context.wrap_socket(plain, server_hostname=host) as stream,
            ):
                self.connections += 1
                self._hold(stream, ending.is_set)

    def _hold(self, stream: socket.socket, is_over: Callable[[], bool]) -> None:
        """Says its half, and waits until the hub hangs up, or is gone."""
        if self._kind != "silent":
            stream.sendall(self._half())
        if self._kind == "gone":
            return
        stream.settimeout(RETRY)
        while not is_over():
            try:
                if not stream.recv(1024):
                    return
            except TimeoutError:
                continue

    def _half(self) -> bytes:
        secret = bearer(self._home.identity.credential)["authorization"]
        head = (
            f"POST {_PATH} HTTP/1.1\r\nhost: hub\r\nauthorization: {secret}\r\n{ID_HEADER}: half-{self.connections}\r\n"
            "content-type: application/octet-stream\r\ncontent-length: 10000\r\n\r\n"
        )
        return head.encode("ascii") + bytes(5_000)
