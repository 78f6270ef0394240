"""A cascade whose teacher is gone, frozen, slow or mad: its caller gets the student's answer in time, and the teacher again soon after.

Student, cascade, remote model, breaker and the serving application are the real ones; only the wire and the clock are not.
"""

from __future__ import annotations

from contextlib import contextmanager
from random import Random
from typing import TYPE_CHECKING

import numpy as np
import pytest

from edgestill.core.answer import Answer
from edgestill.device.serve.app import Outermost
from edgestill.device.serve.tokens import Anybody
from edgestill.infer.cascade import Cascade
from edgestill.infer.payload import LOSSLESS, Coder
from edgestill.infer.policy import ALWAYS, Policy
from edgestill.infer.serving.app import App
from edgestill.infer.serving.descriptions import About
from edgestill.infer.serving.endpoint import Endpoint
from edgestill.infer.serving.served import of_predict
from edgestill.infer.tiers import Bounded, Tier, Tiers
from edgestill.link.breaker import Breaker, Guard
from edgestill.link.inference import LONGEST_PAUSE, RemoteModel
from edgestill.testing.clock import FakeClock
from edgestill.testing.faults import Fault, FaultyTransport
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

LABELS = ("left", "right")
POLICY = Policy(
    labels=LABELS, threshold=ALWAYS, escalation_share=1.0, audit_share=0.0, alpha=1.0, bytes_per_day=None
)
DEADLINE = 0.05
BATCH = np.full((1, 64), 7, np.uint8)

FAULTS = {
    "killed": Fault(drop=True),
    "frozen": Fault(delay=3600.0),
    "slow": Fault(delay=0.2),
    "dripping": Fault(chunk=1, chunk_delay=0.01),
    "cut": Fault(break_after=40),
    "short": Fault(end_after=40),
    "garbled": Fault(alter_at=0),
    "endless": Fault(endless=True),
    "failing": Fault(status=500),
    "busy": Fault(status=503),
    "refusing": Fault(status=429),
    "locked": Fault(status=401),
    "gone": Fault(status=404),
    "elsewhere": Fault(status=302, headers=(("location", "http://evil.test/"),)),
}


class Sure:
    """A `Predict` that is sure of one class."""

    def __init__(self, best: int) -> None:
        self.best = best

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """At once."""
        p = np.tile(np.eye(2, dtype=np.float32)[self.best], (len(batch), 1))
        return Answer(probabilities=p, confidence=p.max(axis=1), decided_by=("student",) * len(batch))


class World:
    """A device with a student that says `left`, and a cloud that says `right`.

    Attributes:
        fault: what is wrong with the wire now; None for nothing.
    """

    def __init__(self, inner: AsgiTransport) -> None:
        self.clock = FakeClock()
        self.fault: Fault | None = None
        self.wire = FaultyTransport(inner, lambda _: self.fault, clock=self.clock)
        self.guard = Guard(Breaker(longest=LONGEST_PAUSE), clock=self.clock, random=Random(0).random)
        self.remote = RemoteModel(
            self.wire,
            "http://cloud.test",
            model="large",
            output="probabilities",
            clock=self.clock,
            timeout=5.0,
            breaker=self.guard,
            coder=Coder(LOSSLESS, clock=FakeClock()),
        )
        self.cascade = Cascade(
            Sure(0), Bounded(self.remote, at_once=4), POLICY, clock=self.clock, random=lambda: 0.5
        )

    def ask(self) -> tuple[Answer, float]:
        """An answer with a deadline, and the seconds that it took."""
        start = self.clock.monotonic()
        answer = self.cascade.predict(BATCH, deadline=start + DEADLINE)
        return answer, self.clock.monotonic() - start


@pytest.fixture
def there() -> Iterator[World]:
    """A device and its cloud."""
    with cloud() as transport:
        yield World(transport)


@contextmanager
def cloud() -> Iterator[AsgiTransport]:
    """The larger model, served."""
    takes = ("input", "UINT8", (None, 64))
    served = of_predict(Sure(1), name="large", version="1", takes=takes, labels=LABELS, alone=True)
    endpoint = Endpoint([served], about=About(name="cloud", version="1"), clock=FakeClock())
    with AsgiTransport(Outermost(App(endpoint, gate=Anybody()))) as transport:
        yield transport
    endpoint.close()


@pytest.mark.parametrize("name", FAULTS)
def test_the_caller_gets_the_students_answer_in_time(there: World, name: str) -> None:
    """Whatever is wrong with the cloud, no error comes through, and no answer takes longer than its deadline."""
    assert there.ask()[0].decided_by == ("teacher",)
    there.fault = FAULTS[name]
    for _ in range(20):
        answer, seconds = there.ask()
        assert answer.decided_by == ("student",)
        assert answer.probabilities.argmax(axis=1).tolist() == [0]
        assert seconds <= DEADLINE + 1e-9
        there.clock.advance(0.3)


@pytest.mark.parametrize("outage", [2.0, 20.0, 200.0, 3600.0])
@pytest.mark.parametrize("name", ["killed", "frozen", "failing", "garbled"])
def test_the_cloud_is_found_again_within_a_pause(there: World, name: str, outage: float) -> None:
    """After an outage of any length the first answer of the teacher comes within the pause that was kept then, 30 seconds at most."""
    there.ask()
    there.fault = FAULTS[name]
    gone = there.clock.monotonic()
    while there.clock.monotonic() - gone < outage:
        there.ask()
        there.clock.advance(0.25)
    there.fault, interval, back = None, there.guard.interval, there.clock.monotonic()
    while there.ask()[0].decided_by != ("teacher",):
        there.clock.advance(0.05)
    seconds = there.clock.monotonic() - back
    assert seconds <= interval + 0.05 + DEADLINE
    assert seconds <= LONGEST_PAUSE + 0.05 + DEADLINE


def test_a_dead_cloud_costs_hardly_a_question(there: World) -> None:
    """In an hour of four questions a second, fewer than two hundred are put to a cloud that is not there."""
    there.ask()
    there.fault = FAULTS["killed"]
    before = len(there.wire.requests)
    for _ in range(4 * 3600):
        there.ask()
        there.clock.advance(0.25)
    assert len(there.wire.requests) - before < 200


def test_a_frozen_neighbour_does_not_cost_the_clouds_answer(there: World) -> None:
    """With two tiers, the second is asked with the time that the first has left."""
    with cloud() as other:
        frozen = FaultyTransport(other, lambda _: FAULTS["frozen"], clock=there.clock)
        neighbour = RemoteModel(
            frozen, "http://near.test", model="large", output="probabilities", clock=there.clock, timeout=5.0
        )
        tiers = Tiers([Tier("neighbour", neighbour), Tier("cloud", there.remote)], clock=there.clock)
        names = ("neighbour", "cloud")
        device = Cascade(Sure(0), tiers, POLICY, clock=there.clock, random=lambda: 0.5, names=names)
        start = there.clock.monotonic()
        answer = device.predict(BATCH, deadline=start + DEADLINE)
    assert answer.decided_by == ("teacher",)
    assert answer.tiers == ("neighbour", "cloud")
    assert there.clock.monotonic() - start == pytest.approx(DEADLINE / 2)


def test_a_payload_is_what_travels(there: World) -> None:
    """The device codes its input, since the cloud's metadata offer it: fewer bytes than its numbers."""
    there.ask()
    asked = [request for request in there.wire.requests if request.method == "POST"]
    assert b'"codec":"deflate"' in asked[-1].body
