"""What an idle agent takes, what asking for news costs, and how far a bad model comes: a real hub and real agents, each a process.

- The agent has confirmed a bundle, whose engine is a process of its own, and nobody asks it; its resident memory is looked at with each of some polls,
  which the hub holds for twenty seconds each; the most counts.
- Polls are counted as bytes of HTTP in both directions by a relay between agent and hub; there is nothing new.
- The bad model can be installed: its golden answers are its own. It agrees with the teacher as often as chance does, on audited answers. It is published to
  devices that serve a good one, in stages of a tenth, a half and all, and gated on agreement.
"""

from __future__ import annotations

import math
import socket
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from statistics import median
from typing import Any, Final, Self

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "device"))
from device_bundles import model, tiny_bundle
from device_fleet import Fleet, until

from edgestill.core.release import Gates

GOOD, BAD = 1, 5
POLLS: Final = 6
STAGES: Final = (0.1, 0.5, 1.0)
LONG: Final = 300.0


def idle(*, quick: bool) -> dict[str, Any]:
    """Of one device that has nothing to do."""
    with (
        tempfile.TemporaryDirectory() as name,
        Fleet(Path(name), model(GOOD)) as fleet,
        Relay(fleet.url) as relay,
    ):
        fleet.publisher.publish("1.0.0", tiny_bundle("1.0.0", seed=GOOD))
        fleet.url = relay.url
        fleet.join("d1")
        rollout = fleet.roll_out("1.0.0")
        until(lambda: fleet.state(rollout) == "done", seconds=LONG)
        relay.exchanges.clear()
        resident = []
        for count in range(1, (2 if quick else POLLS) + 1):
            until(lambda: len(relay.polls()) > count, seconds=LONG)  # noqa: B023  # it is asked at once
            resident.append(_resident_mb(fleet.agents["d1"].pid))
        polls = relay.polls()[:-1]  # the last one may be under way
        return {
            "rss_mb": max(resident),
            "poll_bytes": max(map(sum, polls)),
            "poll_bytes_up": median(up for up, _ in polls),
            "poll_bytes_down": median(down for _, down in polls),
            "polls": len(polls),
            "connections": relay.connections,
        }


def exposed(*, quick: bool) -> dict[str, Any]:
    """How many devices were given the bad model, whether the first of them served it, and why and when it was stopped."""
    devices = [f"d{number}" for number in range(1, (3 if quick else 10) + 1)]
    with tempfile.TemporaryDirectory() as name, Fleet(Path(name), model(GOOD)) as fleet:
        for device in devices:
            fleet.join(device)
        for version, seed in (("1.0.0", GOOD), ("1.1.0", BAD)):
            fleet.publisher.publish(version, tiny_bundle(version, seed=seed))
        gates = Gates(min_agreement=0.8, min_audits=50)
        with fleet.asked():
            first = fleet.roll_out("1.0.0", stages=STAGES, gates=gates)
            until(lambda: fleet.state(first) == "done", seconds=LONG)
            started = time.monotonic()
            bad = fleet.roll_out("1.1.0", stages=STAGES, gates=gates)
            served = set()
            while (state := fleet.state(bad)) not in {"paused", "done"}:
                served |= {one for one in devices if fleet.serving(one) == "tiny/1.1.0"}
                if time.monotonic() - started > LONG:
                    raise AssertionError(state)
            stopped = time.monotonic() - started
            touched = [one for one, state in fleet.members(bad).items() if state != "waiting"]
            told = fleet.operator.rollout(bad)
            if told["state"] == "paused":
                fleet.operator.rollback(bad)
                until(lambda: all(fleet.serving(one) == "tiny/1.0.0" for one in devices), seconds=LONG)
    return {
        "devices": len(devices),
        "touched": len(touched),
        "served": sorted(served),
        "stopped": told["state"] == "paused"
        and "agreement" in str(told["reason"])
        and len(touched) == math.ceil(STAGES[0] * len(devices))
        and served == set(touched),
        "seconds": stopped,
        "reason": told["reason"],
    }


def _resident_mb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    (kilobytes,) = (int(line.split()[1]) for line in status if line.startswith("VmRSS"))
    return kilobytes * 1024 / 1e6


class Relay:
    """Passes bytes between one address and another, and counts them by request and answer.

    Args:
        target: `http://HOST:PORT`.

    Attributes:
        url: where it listens.
        exchanges: of each request its first line, bytes sent and bytes received, in their order.
        connections: how many came.
    """

    def __init__(self, target: str) -> None:
        host, _, port = target.removeprefix("http://").rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.exchanges: list[tuple[bytes, list[int]]] = []
        self.connections = 0

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.close()

    def polls(self) -> list[tuple[int, int]]:
        """(bytes sent, bytes received) of each poll."""
        return [(sizes[0], sizes[1]) for line, sizes in list(self.exchanges) if b"/v1/poll" in line]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                server = socket.create_connection(self._target)
                last: list[list[int]] = []
                threading.Thread(target=self._up, args=(client, server, last), daemon=True).start()
                threading.Thread(target=self._down, args=(server, client, last), daemon=True).start()

    def _up(self, client: socket.socket, server: socket.socket, last: list[list[int]]) -> None:
        with suppress(OSError):
            while piece := client.recv(65_536):
                if not last or last[-1][1]:  # an answer came since: a new request
                    sizes = [0, 0]
                    last.append(sizes)
                    self.exchanges.append((piece.partition(b"\r\n")[0], sizes))
                last[-1][0] += len(piece)
                server.sendall(piece)
            server.shutdown(socket.SHUT_WR)

    def _down(self, server: socket.socket, client: socket.socket, last: list[list[int]]) -> None:
        with suppress(OSError):
            while piece := server.recv(65_536):
                last[-1][1] += len(piece)
                client.sendall(piece)
            client.shutdown(socket.SHUT_WR)
