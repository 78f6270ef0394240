"""The supervisor's threads: a bug in one of them must not make a device deaf."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest
from device_worlds import World

from edgestill.core.clock import SystemClock
from edgestill.core.errors import UnreachableError
from edgestill.device.installer import Installer
from edgestill.device.processes import listening
from edgestill.device.supervisor import Pace, Supervisor

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.device.events import Assigned
    from edgestill.device.outbox import Outbox


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
