"""What a device or a gateway serves: a bundle's student, a cascade of it and a larger model elsewhere, or a running agent."""

from __future__ import annotations

import logging
import threading
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import EdgestillError, MessageError, NotFoundError, within
from edgestill.core.jsonio import Fields
from edgestill.core.manifest import MODEL, POLICY
from edgestill.device.client import LocalClient
from edgestill.device.neighbours import INPUT, Neighbours
from edgestill.infer.adapter import ADAPTER
from edgestill.infer.cascade import Cascade
from edgestill.infer.engines import engine_of
from edgestill.infer.policy import MAX_LABELS, Policy
from edgestill.infer.remembering import Remembering
from edgestill.infer.serving.served import FEATURES, of_predict
from edgestill.infer.student import Student
from edgestill.infer.tiers import Bounded, Tier, Tiers

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.core.bundle import Bundle
    from edgestill.core.protocols import Clock, Predict
    from edgestill.device.memory import Memory
    from edgestill.device.neighbours import Upstream
    from edgestill.infer.serving.served import Served
    from edgestill.link.inference import RemoteModel

log = logging.getLogger(__name__)

CURRENT: Final = "current"
"""The version of what an agent serves, whichever bundle that is."""

QUESTIONS: Final = 32
"""Under way at once to the larger model."""
KEEP_EVERY: Final = 10.0
"""Seconds between two states of a gateway's policy on disk."""
_VERSION_DIGITS: Final = 12
_MAX_RANK: Final = 8


def of_bundle(
    bundle: Bundle,
    *,
    name: str = "",
    engine: str = "",
    threads: int = 1,
    upstream: Upstream | None = None,
    neighbours: Neighbours | None = None,
    memory: Memory | None = None,
    clock: Clock,
    random: Callable[[], float],
) -> Served:
    """A bundle's student; with a larger model behind it, the cascade of both.

    Args:
        bundle: was verified.
        name: under which it is served; empty for the bundle's own.
        engine: that runs it; empty for that of its hardware class.
        threads: that share one operator.
        upstream: is asked where the bundle's policy says so, with what that lets go.
        neighbours: are asked before it, with inputs; of no use without one.
        memory: keeps over restarts how the policy stands; None begins anew.
        clock: for latencies and deadlines.
        random: for audits.

    Raises:
        MessageError, SettingError: the policy is malformed.
        ModelError, EngineError, MissingExtraError: the model cannot be run.
    """
    with within(POLICY):
        policy = Policy.from_bytes(bundle.read(POLICY))
    runs = engine_of(bundle.read(MODEL), engine or bundle.manifest.hardware_class, threads=threads)
    student = Student(runs, policy, clock=clock)
    predict: Predict = student
    close: Callable[[], None] = _nothing
    if upstream is not None:
        teacher = upstream.connect(policy, student.input[0], clock=clock, random=random)
        by_features = policy.asks == "features"
        near = neighbours or Neighbours()
        if by_features and neighbours is not None:
            log.warning("neighbours are not asked: of this bundle nothing but features may leave")
        bounded = Bounded(teacher, at_once=QUESTIONS)
        escalation: Predict = Tiers((Tier(ADAPTER, bounded),), clock=clock)  # why one fails is logged there
        meters: tuple[RemoteModel, ...] = ()
        if not by_features:
            escalation, meters = near.before(bounded, policy, student.input[0], clock=clock, random=random)
        predict = cascade = Cascade(
            student,
            Remembering(
                Bounded(escalation, at_once=QUESTIONS) if meters else escalation,
                clock=clock,
                deputies=by_features,
            ),
            policy,
            state=None if memory is None else memory.policy_state(policy),
            clock=clock,
            random=random,
            auditor=bounded,
            names=(ADAPTER,) if by_features else near.names,
            meters=(*meters, teacher),
        )
        if memory is not None:
            predict = kept = Kept(cascade, memory, clock=clock)
            close = kept.keep
    return of_predict(
        predict,
        name=name or bundle.manifest.name,
        version=bundle.manifest.digest.hex[:_VERSION_DIGITS],
        takes=student.input,
        labels=policy.labels,
        features=_width(runs.outputs.get(FEATURES)),
        alone=upstream is None,
        close=close,
    )


def _nothing() -> None:
    """There is nothing to be kept."""


@final
class Kept:
    """A cascade whose policy goes on after a restart: how it stands is written down as it answers, and when it is told to.

    After a pause the first answer writes, then one every `KEEP_EVERY` seconds: a gateway that is killed forgets at most what it
    asked in the `KEEP_EVERY` seconds after the last write.

    Args:
        cascade: answers.
        memory: where it is written; where that fails, answers go on.
        clock: monotonic.
    """

    def __init__(self, cascade: Cascade, memory: Memory, *, clock: Clock) -> None:
        self._cascade, self._memory, self._clock = cascade, memory, clock
        self._due = clock.monotonic()
        self._lock, self._writing = threading.Lock(), threading.Lock()

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """As the cascade does."""
        answer, now = self._cascade.predict(batch, deadline=deadline), self._clock.monotonic()
        with self._lock:
            due, self._due = now >= self._due, now + KEEP_EVERY if now >= self._due else self._due
        if due:  # others need not wait for the disk
            self.keep()
        return answer

    def keep(self) -> None:
        """Writes down how the policy stands."""
        with self._writing:
            try:
                self._memory.keep_policy_state(self._cascade.state)
            except (EdgestillError, OSError) as error:
                log.warning("%s", error)


def of_agent(home: Path, *, name: str, clock: Clock) -> Served:
    """What the running agent of a device serves, whichever bundle that is.

    Raises:
        NotFoundError: no device lives there, its agent does not run, or nothing is installed yet.
    """
    with LocalClient.open(home) as client:
        said = client.status()["engine"]
    if not isinstance(said, dict):
        raise NotFoundError(
            "nothing is served yet",
            where=home,
            expected="an agent with a bundle",
            got="none",
            fix="run: edgestill-agent status --home DIR",
        )
    fields = Fields(said, "engine")
    takes = fields.inner("takes")
    shape = tuple(None if dim == -1 else dim for dim in _whole(takes))
    labels = tuple(map(str, fields.items("labels", at_most=MAX_LABELS)))
    agents = Agents(home, clock=clock)
    return of_predict(
        agents,
        name=name,
        version=CURRENT,
        takes=(INPUT, takes.text("datatype", at_most=16), shape),
        labels=labels,
        close=agents.close,
    )


@final
class Agents:
    """A `Predict` over the agent of a device: a connection for each thread that asks.

    Args:
        home: the device's folder.
        clock: for deadlines.
    """

    def __init__(self, home: Path, *, clock: Clock) -> None:
        self._home = home
        self._clock = clock
        self._clients: dict[int, LocalClient] = {}
        self._lock = threading.Lock()

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """As `device.client.LocalClient.predict`."""
        with self._lock:
            fresh = LocalClient(self._home, clock=self._clock)
            client = self._clients.setdefault(threading.get_ident(), fresh)
        return client.predict(batch, deadline=deadline)

    def close(self) -> None:
        """Hangs up; safe to call twice."""
        with self._lock:
            for client in self._clients.values():
                client.close()
            self._clients.clear()


def _width(features: tuple[str, tuple[int | None, ...]] | None) -> int | None:
    """D of `features` `[N, D]`, where the model tells it."""
    return None if features is None or len(features[1]) != 2 else features[1][1]


def _whole(takes: Fields) -> list[int]:
    dims = takes.items("shape", at_most=_MAX_RANK)
    if not all(isinstance(dim, int) for dim in dims):
        raise MessageError(
            "an engine that tells no shape", where=takes.where, expected="whole numbers", got=dims
        )
    return [dim for dim in dims if isinstance(dim, int)]
