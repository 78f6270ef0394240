"""The supervisor's threads: a bug in one of them must not make a device deaf."""

from __future__ import annotations

import threading
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import pytest
from device_worlds import World, target

from edgestill.core.clock import SystemClock
from edgestill.core.errors import UnreachableError
from edgestill.core.oip import Tensor
from edgestill.core.wire import Health
from edgestill.device.events import Assigned, Booted, Watched
from edgestill.device.frames import Frame
from edgestill.device.installer import Installer
from edgestill.device.processes import listening
from edgestill.device.supervisor import Pace, Supervisor

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.jsonio import JsonObject
    from edgestill.device.events import Event
    from edgestill.device.outbox import Outbox
    from edgestill.device.state import SlotName, Target


class Hub:
    """Fails at first, and ends the supervisor after some calls."""

    def __init__(self, error: Exception) -> None:
        self.error = error
        self.polls = self.deliveries = 0
        self.enough = threading.Event()

    def poll(self, *, seen: int) -> tuple[Assigned | None, float]:
        """Fails once."""
        self.polls += 1
        if self.polls == 1:
            raise self.error
        self._look()
        return None, 0.01

    def forget(self) -> None:
        """Nothing to forget."""

    def deliver(self, outbox: Outbox) -> bool:
        """Fails once."""
        self.deliveries += 1
        if self.deliveries == 1:
            raise self.error
        self._look()
        return True

    def _look(self) -> None:
        if self.polls >= 3 and self.deliveries >= 3:
            self.enough.set()


@pytest.mark.parametrize("error", [UnreachableError("offline"), ZeroDivisionError("a bug of ours")])
def test_whatever_goes_wrong_on_the_way_to_the_hub_is_tried_again(
    error: Exception, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Both threads go on after an error of ours, and after a bug."""
    world = World(tmp_path / "home")
    hub = Hub(error)
    supervisor = Supervisor(
        tmp_path / "home",
        agent=world.agent,
        slots=world.slots,
        outbox=world.outbox,
        installer=Installer(
            world.slots, fetch=lambda *_, **__: None, probe=lambda *_: None, hardware_class="any"
        ),
        hub=hub,
        clock=SystemClock(),
    )
    ready = tmp_path / "ready"
    with listening(tmp_path / "s") as listener:
        thread = threading.Thread(
            target=lambda: supervisor.run(listener=listener, pace=Pace(0.01, 0.01, 0.01), ready=ready)
        )
        thread.start()
        assert hub.enough.wait(20)
        supervisor.stop()
        thread.join(20)
    assert not thread.is_alive()
    assert ready.read_text(encoding="utf-8") == f"{tmp_path / 's'}\n"
    assert str(error) in caplog.text
    world.close()


class Child:
    """An engine child as the supervisor hears it: what became of it."""

    def __init__(self, slot: SlotName, target: Target) -> None:
        self.slot = slot
        self.target = target
        self.left_at: float | None = None
        self.killed = False

    def kill(self) -> None:
        """It is ended."""
        self.killed = True


class Engines:
    """Children that have served for five seconds."""

    def answered(self, _: object) -> float:
        """The seconds that the figures cover."""
        return 5.0


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """A device that serves version 1."""
    made = World(tmp_path / "home")
    made.let(Booted())
    made.let(Assigned(1, target(1)))
    made.watch()
    made.outbox.delivered(one.id for one in made.outbox.waiting())
    yield made
    made.close()


def supervisor_of(world: World, folder: Path) -> Supervisor:
    """Its supervisor, which is not running."""
    return Supervisor(
        folder / "home",
        agent=world.agent,
        slots=world.slots,
        outbox=world.outbox,
        installer=Installer(
            world.slots, fetch=lambda *_, **__: None, probe=lambda *_: None, hardware_class="any"
        ),
        hub=Hub(UnreachableError("offline")),
        clock=world.clock,
    )


def collected(statistics: bytes | None = b"sums", **figures: Any) -> Frame:
    """What a child hands in."""
    header: JsonObject = {"op": "collected", "health": asdict(Health(answers=7)) | figures}
    if statistics is None:
        return Frame(header)
    tensor = Tensor("statistics", "UINT8", (len(statistics),), statistics)
    return Frame(header | {"statistics": "backbone-1"}, (tensor,))


def heard(world: World, folder: Path, frame: Frame) -> tuple[Child, Event | None]:
    """What the supervisor makes of it."""
    child = Child("a", target(1))
    event = supervisor_of(world, folder)._collected(Engines(), child, frame)  # type: ignore[arg-type]  # all it looks at
    return child, event


def test_figures_and_statistics_are_kept_for_the_hub(world: World, tmp_path: Path) -> None:
    """Both wait in the outbox, and the machine hears how long the slot has served."""
    child, event = heard(world, tmp_path, collected())
    assert event == Watched("a", 5.0, 7, 0)
    (report,) = world.outbox.waiting()
    assert report.health == Health(answers=7)
    waiting = world.outbox.statistics()
    assert waiting is not None
    assert (waiting.body, waiting.sequence >= int(world.clock.now() * 1000)) == (b"sums", True)
    assert not child.killed


def test_statistics_of_a_window_begun_anew_replace_those_that_wait(world: World, tmp_path: Path) -> None:
    """Smaller or the same again: what was told last is sent, once."""
    for body in (b"many", b"few", b"many"):
        heard(world, tmp_path, collected(body))
    waiting = world.outbox.statistics()
    assert waiting is not None
    assert waiting.body == b"many"
    world.outbox.statistics_delivered(waiting.id)
    assert world.outbox.statistics() is None


def test_an_outbox_that_cannot_be_written_costs_no_engine(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A full disk is not the child's fault: it serves on, its trial goes on, and only the figures are lost."""
    world.outbox._connection.execute("PRAGMA query_only = ON")
    child, event = heard(world, tmp_path, collected())
    assert not child.killed
    assert event == Watched("a", 5.0, 7, 0)
    assert caplog.text.count("cannot use the outbox") == 2
    world.outbox._connection.execute("PRAGMA query_only = OFF")
    heard(world, tmp_path, collected())
    assert (world.outbox.count(), world.outbox.statistics() is not None) == (1, True)


@pytest.mark.parametrize(
    "frame",
    [
        Frame({"op": "collected"}),
        Frame({"op": "collected", "health": []}),
        collected(answers=-1),
        collected(agreed=9),
        collected(drift="perhaps"),
        Frame(collected().header | {"statistics": 7}, collected().tensors),
        Frame(collected().header | {"statistics": "k" * 300}, collected().tensors),
    ],
)
def test_attack_a_child_that_hands_in_nonsense_is_ended(world: World, tmp_path: Path, frame: Frame) -> None:
    """A model that has taken over its process can say anything: it is not believed, and counts as dead."""
    child, event = heard(world, tmp_path, frame)
    assert (child.killed, event) == (True, None)
    assert (world.outbox.count(), world.outbox.statistics()) == (0, None)


def test_figures_of_a_bundle_that_has_gone_are_told_but_not_counted(world: World, tmp_path: Path) -> None:
    """The slot holds another one by now: its trial must not be lengthened or shortened by its predecessor."""
    child = Child("a", target(9))
    child.left_at = 3.0
    event = supervisor_of(world, tmp_path)._collected(Engines(), child, collected(None))  # type: ignore[arg-type]  # as above
    assert event is None
    (report,) = world.outbox.waiting()
    assert (report.release, report.at) == ("watch/1.0.9", 3.0)


def test_idle_figures_are_not_told(world: World, tmp_path: Path) -> None:
    """A device that nobody asks does not fill its outbox."""
    heard(world, tmp_path, Frame({"op": "collected", "health": asdict(Health())}))
    assert world.outbox.count() == 0
