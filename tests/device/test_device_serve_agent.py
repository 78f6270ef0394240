"""A bridge from HTTP to the agent that runs on a device: the real engine's answers over its socket."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from device_bundles import HERE, batches, logits_of, tiny_bundle
from device_worlds import target

from edgestill.core.bundle import Bundle
from edgestill.core.clock import SystemClock
from edgestill.core.errors import NotFoundError
from edgestill.device.home import Home, Identity, Settings, choose_socket
from edgestill.device.memory import Memory
from edgestill.device.model import Serving
from edgestill.device.outbox import Outbox
from edgestill.device.privacy import Permissions
from edgestill.device.processes import listening
from edgestill.device.serve.models import CURRENT, of_agent
from edgestill.device.serving import Server
from edgestill.device.slots import Slots
from edgestill.device.state import State
from edgestill.infer.policy import Policy
from edgestill.infer.serving.batching import Batcher
from edgestill.infer.serving.waiting import Capacity
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture
def home(tmp_path: Path) -> Iterator[Home]:
    """A device whose engine answers at its socket."""
    identity = Identity(
        device="d1", credential="c", hub="http://127.0.0.1:9", hardware_class=HERE, interval=1.0
    )
    made = Home.create(
        tmp_path / "home", identity=identity, settings=Settings(leaves="nothing", labels={}), root=b"{}"
    )
    Slots.open(made.slots).save(State(active="a", a=target(1), seen=1, counter=1))
    Outbox.open(made.outbox).close()
    archive = tmp_path / "tiny.esb"
    archive.write_bytes(tiny_bundle())
    bundle = Bundle.open(archive)
    serving = Serving(
        bundle,
        memory=Memory(made.learned, bundle.manifest.digest),
        permissions=Permissions.of("nothing", Policy(labels=("any",))),
        clock=SystemClock(),
        random=lambda: 0.5,
        teachers=None,
    )
    listener = listening(choose_socket(made.path))
    server = Server(listener, serving.answer, clock=SystemClock())
    server.start()
    yield made
    server.stop(seconds=5)
    listener.close()


def test_the_agents_answers_are_served_whatever_bundle_it_runs(home: Home) -> None:
    """Input and labels are what the engine tells; answers come over its socket, from several threads."""
    served = of_agent(home.path, name="camera", clock=SystemClock())
    assert (served.name, served.version) == ("camera", CURRENT)
    assert (served.input.datatype, served.input.shape) == ("FP32", (None, 4))
    assert served.outputs[0].labels == ("low", "middle", "high")
    batcher = Batcher(served, capacity=Capacity(threads=2), clock=SystemClock())
    for future, batch in [(batcher.submit(one), one) for one in (batches(3, seed) for seed in range(6))]:
        found = future.result(30).outputs["probabilities"]
        np.testing.assert_array_equal(found.argmax(axis=1), logits_of(1, batch).argmax(axis=1))
    batcher.close()


def test_without_an_agent_there_is_nothing_to_serve(tmp_path: Path) -> None:
    """The text says what is missing."""
    with pytest.raises(NotFoundError):
        of_agent(tmp_path / "nobody", name="camera", clock=FakeClock())
