"""Engine children under a supervisor's eyes: real processes, and a clock that moves only when told."""

from __future__ import annotations

import os
import queue
import signal
import sys
from typing import TYPE_CHECKING

import pytest
from device_bundles import HERE, batches, release_name, tiny_bundle

from edgestill.core.digest import Digest
from edgestill.core.jsonio import Fields
from edgestill.core.wire import Health
from edgestill.device import asking
from edgestill.device.arrays import answer_from_frame, to_tensor
from edgestill.device.engines import LEAVE_SECONDS, SILENT_SECONDS, START_SECONDS, Engines
from edgestill.device.events import EngineDied, EngineReady
from edgestill.device.frames import Frame
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.processes import EngineProcess, listening
from edgestill.device.slots import Slots
from edgestill.device.state import Target
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.device.state import SlotName

EVERY = 5.0


class Stage:
    """A device's folder with a bundle in each slot, its children, and what they said."""

    def __init__(
        self, folder: Path, engines: Engines, heard: queue.SimpleQueue[tuple[EngineProcess, Frame | None]]
    ) -> None:
        self.socket = folder / "s"
        self.engines = engines
        self.heard = heard

    def hear(self) -> tuple[EngineProcess, Frame | None]:
        """What a child says next."""
        return self.heard.get(timeout=20)

    def bring_up(self, slot: SlotName, target: Target) -> EngineProcess:
        """Wants a bundle, starts its child, and lets it take over."""
        assert self.engines.serve(slot, target, pause=0) is None
        assert self.engines.tick(EVERY) is None
        child, frame = self.hear()
        while frame is None or frame.header["op"] != "ready":
            child, frame = self.hear()
        assert self.engines.ready(child) == EngineReady(slot)
        assert self.engines.serving is child
        return child

    def hear_the_end(self, child: EngineProcess) -> None:
        """Waits until a child is gone."""
        while self.hear() != (child, None):
            pass


@pytest.fixture
def clock() -> FakeClock:
    """For pauses and patience."""
    return FakeClock()


@pytest.fixture
def targets() -> dict[str, Target]:
    """What the slots hold."""
    found = {}
    for slot, version in (("a", "1.0.0"), ("b", "1.1.0")):
        data = tiny_bundle(version)
        found[slot] = Target(name=release_name(version), digest=Digest.of(data), size=len(data))
    return found


@pytest.fixture
def stage(tmp_path: Path, clock: FakeClock, targets: dict[str, Target]) -> Iterator[Stage]:
    """Everything set up, and all children ended afterwards."""
    identity = Identity(
        device="d1", credential="c", hub="http://127.0.0.1:9", hardware_class=HERE, interval=1.0
    )
    home = Home.create(
        tmp_path / "h", identity=identity, settings=Settings(leaves="nothing", labels={}), root=b"{}"
    )
    slots = Slots.open(home.slots)
    names: tuple[SlotName, SlotName] = ("a", "b")
    for slot, version in zip(names, ("1.0.0", "1.1.0"), strict=True):
        slots.archive(slot, targets[slot]).write_bytes(tiny_bundle(version))
    heard: queue.SimpleQueue[tuple[EngineProcess, Frame | None]] = queue.SimpleQueue()
    with listening(tmp_path / "s") as listener:
        engines = Engines(
            home.path,
            slots,
            listener=listener,
            clock=clock,
            hear=lambda child, frame: heard.put((child, frame)),
        )
        yield Stage(tmp_path, engines, heard)
        engines.stop()


def test_a_child_is_started_when_its_pause_is_over(
    stage: Stage, clock: FakeClock, targets: dict[str, Target]
) -> None:
    """Growing pauses keep a child that dies at once from eating the machine."""
    assert stage.engines.serve("a", targets["a"], pause=3) is None
    clock.advance(2.9)
    stage.engines.tick(EVERY)
    assert stage.heard.empty()
    clock.advance(0.2)
    stage.engines.tick(EVERY)
    child, frame = stage.hear()
    assert frame is not None
    assert (child.slot, frame.header["op"]) == ("a", "ready")


def test_a_successor_takes_over_before_the_old_one_leaves(
    stage: Stage, clock: FakeClock, targets: dict[str, Target]
) -> None:
    """The old one hands in its last figures, dated before its successor's first report; its end is no death."""
    old = stage.bring_up("a", targets["a"])
    with asking.connect(stage.socket, timeout=20) as stream:
        asked = Frame({"op": "predict"}, (to_tensor("input", batches(3, 1)),))
        answer = asking.ask(stream, asked, timeout=20)
        assert answer is not None
        assert len(answer_from_frame(answer)) == 3
    left = clock.now()
    new = stage.bring_up("b", targets["b"])
    clock.advance(1)
    child, frame = stage.hear()
    assert child is old
    assert frame is not None
    assert Health.from_fields(Fields(frame.header, "x").inner("health")).answers == 3
    assert (old.left_at, new.left_at) == (left, None)
    stage.hear_the_end(old)
    assert stage.engines.ended(old) is None
    assert stage.engines.answered(old) == 0


def test_what_serves_already_is_ready_at_once(stage: Stage, targets: dict[str, Target]) -> None:
    """Falling back to a child that never left needs no start; the one that was coming up is sent away."""
    serving = stage.bring_up("a", targets["a"])
    stage.engines.serve("b", targets["b"], pause=0)
    stage.engines.tick(EVERY)
    assert stage.engines.serve("a", targets["a"], pause=0) == EngineReady("a")
    said = [stage.hear()]
    while said[-1][1] is not None:
        said.append(stage.hear())
    coming = said[-1][0]
    assert coming.slot == "b"
    assert stage.engines.ready(coming) is None, "being ready too late changes nothing"
    assert stage.engines.ended(coming) is None
    assert stage.engines.serving is serving


def test_a_killed_child_is_a_death_with_its_reason(stage: Stage, targets: dict[str, Target]) -> None:
    """The signal is named."""
    child = stage.bring_up("a", targets["a"])
    os.kill(child.pid, signal.SIGKILL)
    stage.hear_the_end(child)
    assert stage.engines.ended(child) == EngineDied("a", "killed by signal 9")
    assert stage.engines.serving is None


def test_figures_are_asked_for_and_cover_the_time_between(
    stage: Stage, clock: FakeClock, targets: dict[str, Target]
) -> None:
    """Once per interval, and not again before the answer."""
    child = stage.bring_up("a", targets["a"])
    clock.advance(EVERY)
    stage.engines.tick(EVERY)
    stage.engines.tick(EVERY)
    _, frame = stage.hear()
    assert frame is not None
    assert frame.header["op"] == "collected"
    clock.advance(1)
    assert stage.engines.answered(child) == EVERY + 1
    stage.engines.tick(EVERY)
    assert stage.heard.empty()


def test_a_child_that_no_longer_answers_is_killed(
    stage: Stage, clock: FakeClock, targets: dict[str, Target]
) -> None:
    """A process that hangs serves as little as one that is gone."""
    child = stage.bring_up("a", targets["a"])
    os.kill(child.pid, signal.SIGSTOP)
    clock.advance(EVERY)
    stage.engines.tick(EVERY)
    clock.advance(SILENT_SECONDS + 1)
    stage.engines.tick(EVERY)
    stage.hear_the_end(child)
    assert stage.engines.ended(child) == EngineDied("a", "killed by signal 9")


def test_a_child_that_does_not_come_up_is_killed(
    stage: Stage, clock: FakeClock, targets: dict[str, Target]
) -> None:
    """However long it would take."""
    stage.engines.serve("a", targets["a"], pause=0)
    stage.engines.tick(EVERY)
    clock.advance(START_SECONDS + 1)
    stage.engines.tick(EVERY)
    child, frame = stage.hear()
    while frame is not None:
        child, frame = stage.hear()
    assert stage.engines.ended(child) == EngineDied("a", "killed by signal 9")


def test_a_child_that_does_not_leave_is_killed(
    stage: Stage, clock: FakeClock, targets: dict[str, Target]
) -> None:
    """It was replaced; its end is no death."""
    old = stage.bring_up("a", targets["a"])
    os.kill(old.pid, signal.SIGSTOP)
    stage.bring_up("b", targets["b"])
    clock.advance(LEAVE_SECONDS + 1)
    stage.engines.tick(EVERY * 100)
    stage.hear_the_end(old)
    assert stage.engines.ended(old) is None


def test_a_bundle_that_does_not_load_is_a_death(stage: Stage, targets: dict[str, Target]) -> None:
    """Its last word says why, its exit status is 1."""
    stage.engines.serve("a", targets["b"], pause=0)
    stage.engines.tick(EVERY)
    child, frame = stage.hear()
    assert frame is not None
    assert frame.header["op"] == "failed"
    assert "cannot read a bundle" in str(frame.header["reason"])
    stage.hear_the_end(child)
    assert stage.engines.ended(child) == EngineDied("a", "exit status 1")


def test_a_child_that_cannot_be_started_is_a_death(
    stage: Stage, targets: dict[str, Target], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No memory, no interpreter: the machine decides what follows."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    stage.engines.serve("a", targets["a"], pause=0)
    died = stage.engines.tick(EVERY)
    assert isinstance(died, EngineDied)
    assert "cannot be started" in died.reason
