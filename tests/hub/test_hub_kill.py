"""A hub that is killed outright while a fleet talks to it: what it has acknowledged, it still knows.

Real processes, real sockets, SIGKILL in the midst of the load, and a new process on the same folder.
"""

from __future__ import annotations

import json
import signal
import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pytest
from hub_processes import Process
from hub_worlds import CLASS, DAY, esb

from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError
from edgestill.core.protocols import Request
from edgestill.core.release import target_name
from edgestill.core.wire import Enrol, Enrolled, Health, Report, reports_to_bytes
from edgestill.link.http import HttpTransport
from edgestill.trust.keys import PublicKey, SigningKey
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.repository import sign_targets
from edgestill.trust.root import create_root

if TYPE_CHECKING:
    from pathlib import Path

R1 = "watch/1.0.0"
FLEET = 3
ENOUGH = 15
PATIENCE = 60.0


@dataclass
class Line:
    """Real requests of one caller, wherever the hub listens at the moment."""

    url: str
    secret: str = ""
    transport: HttpTransport = field(default_factory=HttpTransport)

    def call(self, method: str, path: str, body: bytes = b"") -> tuple[int, Any]:
        """Status and body.

        Raises:
            EdgestillError: no answer, or not the whole of it.
        """
        headers = {"authorization": f"Bearer {self.secret}"} if self.secret else {}
        response = self.transport.send(Request(method, self.url + path, headers, body), timeout=20)
        data = b"".join(response.chunks())
        return response.status, json.loads(data) if data else None


@dataclass
class Talker:
    """A device that reports as fast as it can, and remembers which reports the hub has acknowledged."""

    line: Line
    name: str
    sent: list[Report] = field(default_factory=list)
    acknowledged: set[str] = field(default_factory=set)
    stopped: bool = False

    def talk(self) -> None:
        """Until the hub is gone."""
        while not self.stopped:
            report = health(f"{self.name}-{len(self.sent)}")
            self.sent.append(report)
            try:
                status, _ = self.line.call("POST", "/v1/reports", reports_to_bytes([report]))
            except EdgestillError:
                return
            assert status == 200
            self.acknowledged.add(report.id)


def health(id_: str) -> Report:
    """One answer."""
    return Report(
        id=id_, at=1.0, bundle=str(Digest.of(b"x")), release=R1, health=Health(answers=1, escalated=1)
    )


def founded(hub: Process) -> tuple[Line, list[Talker]]:
    """Publisher, release, rollout to all, and the devices."""
    url = hub.url()
    operator = Line(url, (hub.home / "operator.token").read_text().strip())
    key, now = SigningKey.generate(), SystemClock().now()
    online = PublicKey.from_json(operator.call("GET", "/v1/admin/online-key")[1])
    root = create_root(root=[key], targets=[key.public], online=online, expires=now + DAY)
    archive = esb()
    listed = {target_name("watch", "1.0.0", CLASS): TargetInfo(len(archive), Digest.of(archive))}
    targets = sign_targets(previous=None, add=listed, remove=(), keys=[key], expires=now + DAY)
    assert operator.call("POST", "/v1/admin/root", root)[0] == 200
    assert operator.call("PUT", "/v1/admin/blobs", archive)[0] == 201
    assert operator.call("POST", "/v1/admin/targets", targets)[0] == 200
    _, told = operator.call("POST", "/v1/admin/join-tokens", json.dumps({"uses": FLEET}).encode())
    talkers = []
    for number in range(FLEET):
        message = Enrol(join_token=told["token"], device=f"d{number}", hardware_class=CLASS)
        status, enrolled = Line(url).call("POST", "/v1/enrol", message.to_bytes())
        assert status == 201
        credential = Enrolled.from_bytes(json.dumps(enrolled).encode()).credential
        talkers.append(Talker(Line(url, credential), f"d{number}"))
    body = json.dumps({"release": R1, "stages": [1], "gates": {"silent_after": 1e6}}).encode()
    assert operator.call("POST", "/v1/admin/rollouts", body)[0] == 201
    return operator, talkers


def killed_while_they_talk(hub: Process, talkers: list[Talker]) -> None:
    """Kills the hub once every device has something acknowledged."""
    threads = [threading.Thread(target=one.talk) for one in talkers]
    already = [len(one.acknowledged) for one in talkers]
    for thread in threads:
        thread.start()
    clock = SystemClock()
    until = clock.monotonic() + PATIENCE
    while any(len(one.acknowledged) < ENOUGH + before for one, before in zip(talkers, already, strict=True)):
        if clock.monotonic() > until or not any(thread.is_alive() for thread in threads):
            break
        threads[0].join(0.01)
    hub.stop(signal.SIGKILL)
    for one, thread in zip(talkers, threads, strict=True):
        one.stopped = True
        thread.join(PATIENCE)
        one.stopped = False
    for one, before in zip(talkers, already, strict=True):
        assert len(one.acknowledged) >= ENOUGH + before


def assert_nothing_lost(operator: Line, talkers: list[Talker]) -> None:
    """All that was acknowledged is known already; all that was not is taken now, or was; and each counts once."""
    for one in talkers:
        known = [report for report in one.sent if report.id in one.acknowledged]
        unsure = [report for report in one.sent if report.id not in one.acknowledged]
        for start in range(0, len(known), 100):
            batch = known[start : start + 100]
            _, told = one.line.call("POST", "/v1/reports", reports_to_bytes(batch))
            assert told == {"accepted": 0, "duplicates": len(batch)}
        _, told = one.line.call("POST", "/v1/reports", reports_to_bytes(unsure))
        assert told["accepted"] + told["duplicates"] == len(unsure) <= 1
        one.acknowledged |= {report.id for report in unsure}
    _, fleet = operator.call("GET", "/v1/admin/fleet")
    sums = {one["device"]: one["health"]["answers"] for one in fleet["devices"]}
    assert sums == {one.name: len(one.sent) for one in talkers}


def assignments(talkers: list[Talker]) -> dict[str, tuple[int, str]]:
    """Counter and target of each device."""
    told = {}
    for one in talkers:
        signed = one.line.call("GET", "/v1/poll")[1]["assignment"]["signed"]
        told[one.name] = (signed["counter"], signed["target"])
    return told


def kill_and_start_again(folder: Path, rounds: int) -> None:
    """So many kills."""
    hub = Process(folder)
    try:
        operator, talkers = founded(hub)
        told = assignments(talkers)
        for _ in range(rounds):
            killed_while_they_talk(hub, talkers)
            hub.ready.unlink()
            hub = Process(folder)
            url = hub.url()
            operator.url = url
            for one in talkers:
                one.line.url = url
            assert assignments(talkers) == told
            assert_nothing_lost(operator, talkers)
        assert hub.stop()[0] == 0
    finally:
        hub.stop(signal.SIGKILL)


def test_what_was_acknowledged_outlives_a_kill(tmp_path: Path) -> None:
    """No report is lost, none counts twice, and every assignment has the counter it had."""
    kill_and_start_again(tmp_path, rounds=1)


@pytest.mark.slow
def test_what_was_acknowledged_outlives_many_kills(tmp_path: Path) -> None:
    """Six times over on the same folder."""
    kill_and_start_again(tmp_path, rounds=6)


def test_a_kill_in_the_midst_of_an_upload_leaves_no_archive(tmp_path: Path) -> None:
    """Half an archive is no archive: after the next start it is gone, and the whole one is taken."""
    import socket

    archive = esb()
    hub = Process(tmp_path)
    try:
        url = hub.url()
        token = (hub.home / "operator.token").read_text().strip()
        host, _, port = url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as stream:
            head = (
                f"PUT /v1/admin/blobs HTTP/1.1\r\nhost: {host}\r\nauthorization: Bearer {token}\r\n"
                f"content-length: {len(archive)}\r\n\r\n"
            )
            stream.sendall(head.encode() + archive[:5_000])
            clock = SystemClock()
            until = clock.monotonic() + PATIENCE
            while not list((hub.home / "blobs" / "incoming").iterdir()):
                assert clock.monotonic() < until
                threading.Event().wait(0.01)
            hub.stop(signal.SIGKILL)
        assert list((hub.home / "blobs" / "incoming").iterdir())
        kept = [one for one in (hub.home / "blobs").rglob("*") if one.is_file()]
        assert {one.parent.name for one in kept} == {"incoming"}
        hub.ready.unlink()
        hub = Process(tmp_path)
        operator = Line(hub.url(), token)
        assert list((hub.home / "blobs" / "incoming").iterdir()) == []
        status, told = operator.call("PUT", "/v1/admin/blobs", archive)
        assert (status, told["digest"]) == (201, str(Digest.of(archive)))
        (tmp_path / "back.esb").write_bytes(archive)
        Bundle.open(tmp_path / "back.esb").verify()
    finally:
        hub.stop(signal.SIGKILL)
