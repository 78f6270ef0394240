"""The one data budget of a device: updates, questions and evidence spend from it together, and nothing is begun that does not fit."""

from __future__ import annotations

import json
import re
import socket
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from device_bundles import (
    HERE,
    HttpHub,
    MemoryResponse,
    MemoryTransport,
    TinyHub,
    batches,
    policy_of,
    release_name,
    tiny_bundle,
)

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, SpentError
from edgestill.core.wire import Report
from edgestill.delta.codec import diff
from edgestill.device import engine_work, processes
from edgestill.device.arrays import to_tensor
from edgestill.device.courier import Courier
from edgestill.device.events import Download, Downloaded, Hindered
from edgestill.device.frames import Frame, send
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.installer import Installer
from edgestill.device.main import main
from edgestill.device.mirrors import Mirrors, Nearby
from edgestill.device.model import Serving
from edgestill.device.outbox import Outbox
from edgestill.device.privacy import Permissions
from edgestill.device.slots import Slots
from edgestill.device.spending import fetching_within, ledger_of
from edgestill.device.state import Target
from edgestill.device.status import read_status
from edgestill.device.teachers import teachers_of
from edgestill.link.control import ControlClient
from edgestill.link.ledger import Ledger
from edgestill.link.metered import Metered
from edgestill.testing.clock import FakeClock
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.protocols import Request

URL = "http://127.0.0.1:1"
DAY = 86_400.0
OLD, NEW = tiny_bundle("1.0.0"), tiny_bundle("1.1.0")
PATCH = diff(OLD, NEW)


def listed(version: str, archive: bytes) -> Target:
    """The target that the publisher lists."""
    return Target(name=release_name(version), digest=Digest.of(archive), size=len(archive))


class Device:
    """A device whose budget is on disk, and a hub in memory."""

    def __init__(self, folder: Path, bytes_per_day: int | None, *, hub: str = URL) -> None:
        self.clock = FakeClock(now=SystemClock().now() // DAY * DAY + DAY / 2)
        self.hub = TinyHub(clock=self.clock, assigned=("1.0.0", 1))
        self.hub.publish("1.0.0", OLD)
        self.hub.publish("1.1.0", NEW)
        self.transport = MemoryTransport(self.hub)
        identity = Identity(
            device="d1", credential=self.hub.secret, hub=hub, hardware_class=HERE, interval=3.0
        )
        self.home = Home.create(
            folder / "home",
            identity=identity,
            settings=Settings(leaves="raw", labels={}, bytes_per_day=bytes_per_day),
            root=self.hub.repository.root,
        )
        self.nearby: Nearby | None = None
        self.restart()

    def restart(self) -> None:
        """As a new process: nothing but the home is left."""
        self.ledger = ledger_of(self.home, self.clock)
        control = ControlClient(
            Metered(self.transport, self.ledger),
            self.home.identity.hub,
            credential=self.hub.secret,
            timeout=5,
        )
        trusted = TrustedClient(
            KeptMetadata(self.home.tuf),
            root=self.home.root,
            fetch=fetching_within(self.ledger, control.artefact),
            clock=self.clock,
        )
        self.courier = Courier(
            self.home.identity,
            control=control,
            trusted=trusted,
            transport=self.transport,
            clock=self.clock,
            nearby=self.nearby,
            ledger=self.ledger,
        )

    def fetch(self, version: str, *, base: bool = False) -> Path:
        """Brings a bundle; where it lies."""
        to = self.home.path / f"{version}.esb"
        known = None
        if base:
            path = self.home.path / "old.esb"
            path.write_bytes(OLD)
            known = (listed("1.0.0", OLD), path)
        archive = {"1.0.0": OLD, "1.1.0": NEW}[version]
        self.courier.fetch(listed(version, archive), to=to, base=known)
        return to

    def leave(self, count: int) -> Ledger:
        """Spends all of today's budget but so many bytes."""
        left = self.ledger.left()
        assert left is not None
        self.ledger.charge(left - count)
        self.ledger.settle()
        return self.ledger

    def served(self, kind: str) -> int:
        """How often something of a kind was asked for."""
        return sum(path.startswith(f"/{kind}/") for path in self.hub.served)


def test_a_download_that_does_not_fit_waits_for_the_next_day(tmp_path: Path) -> None:
    """Not a byte is asked for; `status` says what waits; the next day it is brought."""
    device = Device(tmp_path, 2 * len(NEW))
    device.leave(len(NEW) - 1)
    with pytest.raises(SpentError, match="does not fit into the data budget of today"):
        device.fetch("1.1.0")
    assert device.served("targets") == 0
    said = read_status(device.home.path)["budget"]
    assert isinstance(said, dict)
    assert (said["waiting"], said["needs"], said["left"]) == ("tiny/1.1.0", len(NEW), len(NEW) - 1)
    device.clock.advance(DAY)
    device.restart()
    assert device.fetch("1.1.0").read_bytes() == NEW
    assert device.ledger.account().waiting == ""
    assert device.ledger.left() == len(NEW)


def test_a_download_that_broke_off_waits_and_is_gone_on_with(tmp_path: Path) -> None:
    """What came before the line broke is kept; its rest does not fit today, and tomorrow only that is asked for."""
    device = Device(tmp_path, 2 * len(NEW))
    part = device.home.path / "1.1.0.esb.part"
    part.write_bytes(NEW[:1_000])
    device.leave(len(NEW) - 1_001)
    with pytest.raises(SpentError):
        device.fetch("1.1.0")
    assert part.read_bytes() == NEW[:1_000]
    device.clock.advance(DAY)
    device.restart()
    assert device.fetch("1.1.0").read_bytes() == NEW
    assert device.hub.ranges[-1] == "bytes=1000-"
    assert device.ledger.left() == len(NEW) + 1_000


def test_a_download_larger_than_any_day_is_brought_in_pieces(tmp_path: Path) -> None:
    """It could never be had otherwise; each day's part is kept over a restart, and no day is overrun by more than a piece under way."""
    device = Device(tmp_path, len(NEW) // 3)
    days = 0
    while not (device.home.path / "1.1.0.esb").exists():
        assert days < 5
        try:
            device.fetch("1.1.0")
        except SpentError:
            assert device.ledger.left() == 0
            device.clock.advance(DAY)
            device.restart()
            days += 1
    assert days >= 1
    assert (device.home.path / "1.1.0.esb").read_bytes() == NEW


def test_a_patch_is_brought_where_the_file_would_not_fit(tmp_path: Path) -> None:
    """It is shorter; and one that does not fit waits, rather than that the whole file is fetched."""
    device = Device(tmp_path, 2 * len(NEW))
    old, new = listed("1.0.0", OLD), listed("1.1.0", NEW)
    device.hub.patches[f"patches/{old.digest.hex}/{new.digest.hex}"] = PATCH
    device.leave(len(PATCH) - 1)
    with pytest.raises(SpentError, match="a patch that does not fit into the data budget of today"):
        device.fetch("1.1.0", base=True)
    assert device.served("targets") == 0
    device.clock.advance(DAY)
    device.restart()
    device.leave(len(PATCH) + 2_000)
    assert len(PATCH) + 2_000 < len(NEW)
    assert device.fetch("1.1.0", base=True).read_bytes() == NEW
    assert device.served("targets") == 0


def until_it_is_there(device: Device, spent_first: int, *, base: bool = False) -> int:
    """Days until the new bundle is there, where polls take so much of each before it is asked for."""
    for days in range(12):
        device.restart()
        device.ledger.charge(spent_first)
        try:
            assert device.fetch("1.1.0", base=base).read_bytes() == NEW
        except SpentError:
            device.ledger.settle()
            device.clock.advance(DAY)
        else:
            return days
    pytest.fail("it never comes")


def test_a_patch_that_fits_into_no_day_does_not_lock_a_device_out(tmp_path: Path) -> None:
    """It waits for one day; then the whole file comes in pieces."""
    device = Device(tmp_path, 6_000)
    old, new = listed("1.0.0", OLD), listed("1.1.0", NEW)
    device.hub.patches[f"patches/{old.digest.hex}/{new.digest.hex}"] = bytes(7_000)
    assert 1 <= until_it_is_there(device, 1_000, base=True) <= 4
    assert device.served("targets") >= 1


def test_an_archive_comes_from_nearby_where_a_patch_does_not_fit(tmp_path: Path) -> None:
    """A mirror costs nothing, so nothing waits while it has the bundle."""
    device = Device(tmp_path, 2 * len(NEW))
    old, new = listed("1.0.0", OLD), listed("1.1.0", NEW)
    device.hub.patches[f"patches/{old.digest.hex}/{new.digest.hex}"] = bytes(8_000)

    class Mirror(MemoryTransport):
        """Has archives, and no patches."""

        def send(self, request: Request, *, timeout: float) -> MemoryResponse:
            path = request.url if "/targets/" in request.url else f"{URL}/targets/nothing"
            return super().send(replace(request, url=path), timeout=timeout)

    device.nearby = Nearby(
        Mirrors(("http://10.0.0.2:8000",)), transport=Mirror(device.hub), clock=device.clock
    )
    device.restart()
    device.leave(7_000)
    assert device.fetch("1.1.0", base=True).read_bytes() == NEW
    assert (device.ledger.left() or 0) > 6_000


def test_an_archive_just_below_a_days_budget_comes_though_polls_cost(tmp_path: Path) -> None:
    """It waits for one day, and over restarts that is known; then it takes what there is."""
    assert until_it_is_there(Device(tmp_path, len(NEW) + 50), 100) == 1


def test_a_list_longer_than_a_days_budget_is_fetched_on_a_fresh_day(tmp_path: Path) -> None:
    """Where less than half of the day is left it waits, and an owner who allows nothing gets nothing."""
    device = Device(tmp_path, 10_000)
    fetched: list[tuple[str, int]] = []

    def fetching(path: str, at_most: int) -> bytes:
        fetched.append((path, at_most))
        return b""

    fetch = fetching_within(device.ledger, fetching)
    fetch("metadata/2.targets.json", 20_000)
    device.leave(4_999)
    with pytest.raises(SpentError):
        fetch("metadata/2.targets.json", 20_000)
    assert len(fetched) == 1
    nothing = Ledger(tmp_path / "none.json", bytes_per_day=0, clock=device.clock)
    with pytest.raises(SpentError):
        fetching_within(nothing, lambda *_: b"")("metadata/2.targets.json", 1)


def test_statistics_longer_than_a_days_budget_do_not_block_those_behind_them(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are dropped with a line in the log; what is a little shorter is sent, though polls have cost something."""
    device = Device(tmp_path, 10_000)
    outbox = Outbox.open(device.home.outbox)
    for name, size in (("long", 10_001), ("short", 9_999)):
        outbox.put_statistics(name, bytes(size), at=1.0)
    device.leave(9_000)
    assert not device.courier.deliver(outbox)
    assert "fit into no day's data budget, and are dropped" in caplog.text
    assert not device.courier.deliver(outbox)
    assert list(device.hub.statistics.values()) == [bytes(9_999)]
    assert device.courier.deliver(outbox)
    outbox.close()


def test_mirrors_cost_nothing(tmp_path: Path) -> None:
    """They are nearby: a bundle comes from one though nothing is left of the day."""
    device = Device(tmp_path, 2 * len(NEW))
    device.nearby = Nearby(Mirrors(("http://10.0.0.2:8000",)), transport=device.transport, clock=device.clock)
    device.restart()
    device.leave(0)
    assert device.fetch("1.1.0").read_bytes() == NEW
    assert device.ledger.left() == 0
    device.clock.advance(DAY)
    assert device.ledger.left() == 2 * len(NEW)


def test_what_waits_is_no_failure_of_the_release(tmp_path: Path) -> None:
    """The installer calls it a hindrance that does not count, however often it is tried; then it goes on."""
    device = Device(tmp_path, 2 * len(NEW))
    device.leave(10)
    slots = Slots.open(device.home.slots)
    installer = Installer(slots, fetch=device.courier.fetch, probe=lambda *_: None, hardware_class=HERE)
    work = Download("a", listed("1.1.0", NEW), None)
    for _ in range(10):
        event = installer.perform(work)
        assert isinstance(event, Hindered)
        assert not event.counts
        assert "[budget-spent]" in event.reason
    device.clock.advance(DAY)
    assert isinstance(installer.perform(work), Downloaded)


def test_polls_and_reports_go_on_and_are_counted(tmp_path: Path) -> None:
    """A device that has spent everything is still told what to do, as far as that needs no list, and says how it fares."""
    device = Device(tmp_path, 100_000)
    device.courier.poll(seen=0)
    spent = device.ledger.account().allowance.spent
    assert spent > 1_000
    device.leave(0)
    assert device.courier.poll(seen=1) == (None, 0.05)
    outbox = Outbox.open(device.home.outbox)
    report = Report(id="a", at=1.0, bundle=str(Digest.of(OLD)), release="tiny/1.0.0", state="staged")
    outbox.add([report])
    outbox.put_statistics("w", b"sums" * 100, at=1.0)
    assert not device.courier.deliver(outbox)
    assert list(device.hub.reports) == ["a"]
    with pytest.raises(SpentError):
        device.courier.deliver(outbox)
    assert device.hub.statistics == {}
    assert device.ledger.account().allowance.spent > 100_000
    device.clock.advance(DAY)
    device.hub.repository.freshen()
    assert not device.courier.deliver(outbox)
    assert list(device.hub.statistics.values()) == [b"sums" * 100]
    assert device.ledger.account().allowance.spent > 400
    outbox.close()


def test_lists_that_do_not_fit_wait_and_the_timestamp_does_not(tmp_path: Path) -> None:
    """A new assignment is looked at when its lists can be had; what is known stays known."""
    device = Device(tmp_path, 100_000)
    assert device.courier.poll(seen=0)[0] is not None
    device.hub.publish("1.2.0", tiny_bundle("1.2.0"))
    device.hub.assigned = ("1.2.0", 2)
    device.leave(1)
    device.hub.served.clear()
    with pytest.raises(SpentError):
        device.courier.poll(seen=1)
    assert [path for path in device.hub.served if "metadata" in path] == [
        "/metadata/2.root.json",
        "/metadata/timestamp.json",
    ]
    device.clock.advance(DAY)
    device.hub.repository.freshen()
    found, _ = device.courier.poll(seen=1)
    assert found is not None
    assert found.target.release == "tiny/1.2.0"


def test_a_kill_in_the_midst_of_a_download_forgets_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power that fails at any piece: the count on disk is never below what came."""

    class Killed(BaseException):
        """The power fails."""

    class Dying(MemoryTransport):
        """Dies within a body."""

        def send(self, request: object, *, timeout: float) -> object:  # type: ignore[override]  # it answers with less
            answer = super().send(request, timeout=timeout)  # type: ignore[arg-type]  # as it came
            body = answer.body

            class _Broken:
                status, headers = answer.status, answer.headers

                def chunks(self) -> object:
                    yield body[:1_500]
                    raise Killed

                def close(self) -> None:
                    """Nothing is closed by a kill."""

            return _Broken()

    device = Device(tmp_path, 3 * len(NEW))
    device.transport = Dying(device.hub)
    device.restart()
    with monkeypatch.context() as patch:
        patch.setattr(Ledger, "settle", lambda _: None)  # a kill runs no `finally`
        with pytest.raises(Killed):
            device.fetch("1.1.0")
    spent = ledger_of(device.home, device.clock).account().allowance.spent
    assert 1_500 <= spent <= len(NEW)


def test_questions_and_downloads_spend_from_one_budget(tmp_path: Path) -> None:
    """In one order and the other: escalations that used up the day keep a download waiting, and a download the escalations."""
    hub = TinyHub(clock=SystemClock(), assigned=("1.0.0", 1))
    hub.publish("1.0.0", OLD)
    with HttpHub(hub) as served:
        device = Device(tmp_path, 100_000, hub=served.url)
        clock = SystemClock()
        ledger = ledger_of(device.home, clock)
        policy = policy_of()
        teachers = teachers_of(
            device.home, policy, Permissions.of("raw", policy), clock=clock, random=lambda: 0.5
        )
        assert teachers is not None
        teachers.audit.predict(batches(4, 1))
        asked = len(hub.asked)
        assert asked >= 1
        spent = ledger.account().allowance.spent
        assert spent >= 4 * 4 * 4
        left = ledger.left()
        assert left is not None
        ledger.charge(left)
        with pytest.raises(SpentError):
            teachers.audit.predict(batches(5_000, 2))
        assert len(hub.asked) == asked
        with pytest.raises(SpentError):
            Courier(
                device.home.identity,
                control=ControlClient(device.transport, URL, credential=hub.secret),
                trusted=None,  # type: ignore[arg-type]  # nothing is looked up here
                transport=device.transport,
                clock=clock,
                ledger=ledger,
            ).fetch(listed("1.1.0", NEW), to=tmp_path / "x.esb", base=None)
        assert np.isfinite(spent)


def test_an_engine_that_ends_in_order_gives_back_what_it_had_ahead(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it has asked stays counted, and no more: each restart would cost a share of the day otherwise."""
    hub = TinyHub(clock=SystemClock())
    with HttpHub(hub) as served, monkeypatch.context() as patch:
        device = Device(tmp_path, 3_200_000, hub=served.url)
        archive = tmp_path / "x.esb"
        archive.write_bytes(OLD)
        serving = Serving.open(device.home, archive, clock=SystemClock(), random=lambda: 0.9)
        serving.answer(Frame({"op": "predict"}, (to_tensor("input", batches(4, 1)),)))
        assert len(hub.asked) == 1
        ahead = device.ledger.account().allowance.spent
        patch.setattr(Serving, "open", lambda *_, **__: serving)
        ours, theirs = socket.socketpair()
        with ours, theirs, processes.listening(tmp_path / "s") as listener:
            send(ours, Frame({"op": "stop"}))
            engine_work.serve(device.home, archive, theirs, listener)
    spent = device.ledger.account().allowance.spent
    assert ahead >= 50_000
    assert 100 < spent < 10_000


def test_the_owner_sets_the_budget(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By a verb of the agent; today's bytes stay spent; a number that is none is refused."""
    device = Device(tmp_path, None)
    home = str(device.home.path)
    assert main(["settings", "--home", home, "--bytes-per-day", "2 MB"]) == 0
    assert re.search(r"bytes_per_day +2 MB\n", capsys.readouterr().out)
    assert Home.open(device.home.path).settings == replace(device.home.settings, bytes_per_day=2_000_000)
    ledger_of(Home.open(device.home.path), SystemClock()).charge(500_000)
    assert main(["status", "--home", home, "--json"]) == 0
    said = json.loads(capsys.readouterr().out)["budget"]
    assert said["bytes_per_day"] == 2_000_000
    assert 500_000 <= said["spent"] <= 565_536
    assert main(["settings", "--home", home, "--bytes-per-day", "much"]) == 1
    assert main(["settings", "--home", home, "--bytes-per-day", "unlimited"]) == 0
    assert Home.open(device.home.path).settings.bytes_per_day is None
    capsys.readouterr()
    device.home.budget.write_bytes(b"nonsense")
    assert main(["status", "--home", home, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["budget"]["left"] is None


@pytest.mark.parametrize("wrong", [b'"1 MB"', b"-1", b"1.5", b"true"])
def test_a_damaged_budget_is_told(wrong: bytes) -> None:
    """Rather than read as none."""
    with pytest.raises(EdgestillError):
        Settings.from_bytes(b'{"leaves": "raw", "labels": {}, "bytes_per_day": ' + wrong + b"}")
