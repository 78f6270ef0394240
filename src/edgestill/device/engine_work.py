"""What the process that runs models does: probes one bundle, or serves one until it is told to stop.

- It serves one bundle from one slot and never changes the slot. What it learns lies beside (`device.memory`).
- What may leave the device is asked of `device.privacy` once, in `Serving.open`, and wired accordingly: without
  permission there is no teacher to ask, and no statistics are handed out.
- Figures and statistics are handed to the supervisor, which sends them; only escalations go out from here, because
  they are answers that somebody waits for.
"""

from __future__ import annotations

import random
from typing import TYPE_CHECKING, Final, cast

from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.errors import EdgestillError
from edgestill.core.manifest import GOLDEN, MODEL, POLICY
from edgestill.device.frames import Frame, receive, send
from edgestill.device.model import Serving, learner_of
from edgestill.device.serving import Server
from edgestill.infer.engines import engine_of
from edgestill.infer.golden import probe, read_golden
from edgestill.infer.policy import Policy
from edgestill.infer.student import Student

if TYPE_CHECKING:
    import socket
    from pathlib import Path

    from edgestill.device.home import Home

LEAVE_SECONDS: Final = 3.0


def run_probe(archive: Path) -> None:
    """Asks the bundle its golden questions, and loads whatever else it would serve with.

    Raises:
        ProbeError: it answers wrongly or too slowly.
        BundleError, ModelError, EngineError and others: it does not load.
    """
    clock = SystemClock()
    bundle = Bundle.open(archive)
    engine = engine_of(bundle.read(MODEL), bundle.manifest.hardware_class)
    probe(engine, read_golden(bundle.read(GOLDEN)), clock).check()
    policy = Policy.from_bytes(bundle.read(POLICY))
    Student(engine, policy, clock=clock)
    learner_of(bundle, policy, clock)


def serve(home: Home, archive: Path, control: socket.socket, listener: socket.socket) -> None:
    """Serves the bundle until the supervisor says stop, or is gone.

    Raises:
        EdgestillError: the bundle does not serve.
    """
    clock = SystemClock()
    serving = Serving.open(home, archive, clock=clock, random=random.SystemRandom().random)
    server = Server(listener, serving.answer, clock=clock)
    server.start()
    send(control, Frame({"op": "ready"}))
    try:
        while (said := hear(control)) is not None and said != "stop":
            serving.learn()
            send(control, serving.collect())
    finally:
        server.stop(seconds=LEAVE_SECONDS)
        serving.close()
    if said == "stop":
        send(control, serving.collect())


def hear(control: socket.socket) -> str | None:
    """What the supervisor says next; None where it is gone."""
    try:
        frame = receive(control)
    except EdgestillError:
        return None
    return None if frame is None else cast("str", frame.header.get("op"))
