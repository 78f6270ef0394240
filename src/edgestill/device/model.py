"""A bundle that serves: student, teacher, policy and learner, put together for one device."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import asdict, replace
from datetime import UTC, datetime
from random import SystemRandom
from typing import TYPE_CHECKING, Self, final

from edgestill.core.bundle import Bundle
from edgestill.core.errors import DeadlineError, EdgestillError, EvidenceError, MessageError, SettingError
from edgestill.core.jsonio import Fields
from edgestill.core.manifest import MODEL, POLICY, REFERENCE
from edgestill.core.oip import Tensor
from edgestill.device.arrays import answer_to_frame, as_labels, to_array
from edgestill.device.frames import Frame
from edgestill.device.keeping import Keeping, plan_of
from edgestill.device.learning import Learner
from edgestill.device.memory import Memory
from edgestill.device.neighbours import TEACHER
from edgestill.device.privacy import Permissions
from edgestill.device.samplekey import erase, is_plain, key_to_keep
from edgestill.device.sending import Sender
from edgestill.device.teachers import teachers_of
from edgestill.device.trained import Trained
from edgestill.infer.cascade import Cascade
from edgestill.infer.engines import engine_of
from edgestill.infer.policy import Policy
from edgestill.infer.student import Student
from edgestill.learn.privacy import SystemNormals
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock
    from edgestill.device.home import Home
    from edgestill.device.learning import Prepare
    from edgestill.device.teachers import Teachers
    from edgestill.infer.cascade import Escalation
    from edgestill.learn.overlay import Overlay
    from edgestill.learn.tuned import Tuned

log = logging.getLogger(__name__)


@final
class Current:
    """The student that serves now: the bundle's own, or the same with a learned head.

    Args:
        student: to begin with.
    """

    def __init__(self, student: Student) -> None:
        self.student = student

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """As `infer.student.Student.predict`."""
        return self.student.predict(batch, deadline=deadline)


@final
class Serving:
    """Answers frames, learns, and hands out figures. May be asked from several threads.

    Args:
        bundle: what serves.
        memory: what is kept over restarts.
        permissions: what may leave the device.
        clock: for deadlines and windows.
        random: uniform in [0, 1), tossed for audits.
        teachers: asked about escalations and about audits; None where nothing may be asked.
        noise: where the noise of sums comes from; None takes it from the system.
        trained: weights that the device trained of this bundle; None where it brings no training step.
        keeping: keeps inputs to train on; None keeps none.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        memory: Memory,
        permissions: Permissions,
        clock: Clock,
        random: Callable[[], float],
        teachers: Teachers | None,
        noise: np.random.Generator | None = None,
        trained: Trained | None = None,
        keeping: Keeping | None = None,
    ) -> None:
        policy = Policy.from_bytes(bundle.read(POLICY))
        self._policy = policy
        self._engine = engine_of(bundle.read(MODEL), bundle.manifest.hardware_class)
        self._clock = clock
        self._memory = memory
        self._permissions = permissions
        self._asks = () if teachers is None else teachers.names
        self._failure = "" if teachers is None else teachers.failure
        self._ledger = None if teachers is None else teachers.ledger
        student = Student(self._engine, policy, clock=clock)
        self._takes = student.input[1:]
        self._current = Current(student)
        self._sender = sender_of(bundle, policy, memory, noise)
        self._learner = learner_of(
            bundle,
            policy,
            clock,
            raise_audits=self._raise_audits,
            prepare=None if self._sender is None or not self._sender.is_private else self._sender.prepared,
        )
        self._overlay: Overlay | None = None
        self._hardware = bundle.manifest.hardware_class
        self._trained = trained
        self._keeping = keeping
        self._room: tuple[Path, int, Path | None, Path | None] | None = None
        self._locked_out = self._begun_anew = ""
        self._tuned: Tuned | None = None
        self._stamp = 0
        self._cascade = Cascade(
            self._current,
            None if teachers is None else teachers.escalation,
            policy.limited_to(permissions.asks),
            state=memory.policy_state(policy),
            clock=clock,
            random=random,
            auditor=None if teachers is None else teachers.audit,
            names=(TEACHER,) if teachers is None else teachers.names,
            meters=() if teachers is None else teachers.meters,
            observe=self._observe,
        )
        self._recall(memory)
        self._take_up()

    @classmethod
    def open(cls, home: Home, archive: Path, *, clock: Clock, random: Callable[[], float]) -> Self:
        """Loads a bundle for the device that lives in `home`.

        Raises:
            BundleError, ModelError, EngineError, SettingError and others: it does not serve.
        """
        bundle = Bundle.open(archive)
        policy = Policy.from_bytes(bundle.read(POLICY))
        permissions = Permissions.of(home.settings.leaves, policy)
        made = cls(
            bundle,
            memory=Memory(home.learned, bundle.manifest.digest),
            permissions=permissions,
            clock=clock,
            random=random,
            teachers=teachers_of(home, policy, permissions, clock=clock, random=random),
            trained=Trained.of(bundle, home.learned),
        )
        if home.settings.keeps:
            made.keep_in(home.samples, home.settings.keeps, home.settings.seal, home.settings.seal_anew_on)
        return made

    def keep_in(self, path: Path, size: int, seal: Path | None = None, anew_on: Path | None = None) -> None:
        """Keeps inputs to train on in a file of at most so many bytes, from now on; while another engine still does, from when that has ended.

        Args:
            path: of the file.
            size: bytes at most.
            seal: file of the key that seals it; None leaves it plain. Without the key nothing is kept, until it is there.
            anew_on: the file system in memory that the key is made anew on (`samplekey.key_to_keep`).
        """
        self._room, before, self._locked_out = (path, size, seal, anew_on), self._locked_out, ""
        try:
            if seal is not None and is_plain(path):
                if not erase(path):  # of the engine that this one takes over from, which ends soon
                    return
                self._begun_anew = "what was kept in the clear is overwritten"
                log.warning("%s", self._begun_anew)
            key = None if seal is None else key_to_keep(seal, anew_on)
        except EdgestillError as error:
            self._locked_out = str(error)
            if self._locked_out != before:
                log.warning("nothing is kept to train on: %s", error)
            return
        self._keeping = Keeping.open(
            path,
            plan_of(self._takes, len(self._policy.labels), size),
            clock=self._clock,
            random=SystemRandom(),
            audit_share=self._policy.audit_share,
            key=key,
            begun_anew=self._begun_anew,
        )

    def answer(self, frame: Frame) -> Frame:
        """The answer to an application's question.

        Raises:
            EdgestillError: what goes back to the asker.
        """
        match frame.header.get("op"):
            case "predict":
                deadline = self._deadline(frame)
                batch = to_array(_tensor(frame, "input"))
                return answer_to_frame(self._cascade.predict(batch, deadline=deadline))
            case "teach":
                self._teach(to_array(_tensor(frame, "input")), to_array(_tensor(frame, "labels")))
                return Frame({"ok": True})
            case "status":
                return Frame(self.status())
            case other:
                raise MessageError(
                    "an unknown question", where="op", expected="predict, teach or status", got=other
                )

    def status(self) -> JsonObject:
        """What serves, and what was learned."""
        overlay, learner = self._overlay, self._learner
        datatype, shape = self._takes
        return {
            "pid": os.getpid(),
            "takes": {"datatype": datatype, "shape": [-1 if dim is None else dim for dim in shape]},
            "labels": list(self._policy.labels),
            "escalates": self._permissions.asks != "nothing",
            "sends": self._permissions.asks,
            "asks": list(self._asks),
            "neighbours_failure": self._failure,
            "threshold": self._cascade.state.threshold,
            # what was promised of the bundle's own head says nothing of a learned one
            "promise_is_void": self._cascade.promise_is_void
            or overlay is not None
            or self._tuned is not None,
            "drift": "none" if learner is None else learner.drift,
            "change": _change(learner),
            "audits_raised_for": self._cascade.state.raised,
            "privacy": None if self._sender is None else self._sender.told(),
            "kept": None if self._keeping is None else self._keeping.told(),
            "not_kept": self._locked_out or None,
            "trained": None
            if self._tuned is None
            else {
                "samples": self._tuned.n,
                "beta": self._tuned.beta,
                "agreement_before": self._tuned.agreement_before,
                "agreement_after": self._tuned.agreement_after,
            },
            "learned": None
            if overlay is None
            else {
                "samples": overlay.n,
                "agreement_before": overlay.agreement_before,
                "agreement_after": overlay.agreement_after,
            },
        }

    def learn(self) -> None:
        """Adopts a better head where there is one, and weights that were trained meanwhile."""
        self._take_up()
        if self._keeping is None and self._room is not None:
            self.keep_in(*self._room)
        if self._learner is None:
            return
        try:
            overlay = self._learner.consider()
            if overlay is not None:
                self._memory.keep_overlay(overlay)
                self._adopt(overlay)
        except (EdgestillError, OSError) as error:
            log.warning("%s", error)

    def collect(self) -> Frame:
        """Figures since the last time, and statistics where they may leave and there are new ones; keeps what is learned."""
        learner = self._learner
        told = learner is not None and "report" in self._policy.on_drift.do
        drift = learner.drift if learner is not None and told else "none"
        leverage = 0.0 if learner is None else learner.mean_leverage()
        health = self._cascade.take_health(drift=drift, leverage=leverage)
        self.keep()
        header: JsonObject = {"op": "collected", "health": asdict(health)}
        try:
            found = self._message()
        except (EdgestillError, OSError) as error:
            log.warning("%s", error)
            found = None
        if found is None:
            return Frame(header)
        key, body = found
        return Frame(header | {"statistics": key}, (Tensor("statistics", "UINT8", (len(body),), body),))

    def _message(self) -> tuple[str, bytes] | None:
        """What may leave of the sums now, under its key; None for nothing. With noise it is paid for first."""
        learner, sender = self._learner, self._sender
        if learner is None or sender is None or not self._permissions.statistics:
            return None
        least = self._policy.statistics.least
        if not sender.is_private:
            current = learner.statistics(least=least)
            return None if current is None else (sender.key(current), sender.message(current))
        if (turned := sender.turned_back(learner.window)) is not None:
            learner.forget_future()
            self._memory.keep_account(turned)
        account = sender.account
        if account is None or not sender.may_pay():
            return None
        window = learner.finished(after=account.window)
        while window is not None and window.n < least:
            window = learner.finished(after=window.window)
        if window is None:
            return None
        self._memory.keep_account(sender.pay(window.window))
        return sender.key(window), sender.message(window)

    def keep(self) -> None:
        """Writes down what must outlive a restart; what cannot be written is learned again.

        How the policy stands is read after what was noticed, and written before it: a change that is kept has its audits
        raised, and one that a kill forgets is noticed again.
        """
        if self._keeping is not None:
            self._keeping.flush()
        try:
            progress = None if self._learner is None else self._learner.progress()
            self._memory.keep_policy_state(self._cascade.state)
            if self._learner is not None and progress is not None:
                windows = self._learner.keep()
                self._memory.keep_statistics(windows)
                self._memory.keep_progress(progress)
                clips = None if self._sender is None else self._sender.clips
                if windows is not None and clips is not None:
                    self._memory.keep_clipped(clips, self._learner.keep_prepared())
        except (EdgestillError, OSError) as error:
            log.warning("%s", error)

    def close(self) -> None:
        """Keeps what must outlive a restart, and gives back what was counted ahead of the data budget; nothing is asked any more."""
        self.keep()
        if self._keeping is not None:
            self._keeping.close()
        if self._ledger is not None:
            self._ledger.settle()

    def _raise_audits(self) -> bool:
        return self._cascade.raise_audits()

    def _deadline(self, frame: Frame) -> float | None:
        """The asker's; monotonic time is the same for all processes of a machine."""
        fields = Fields(frame.header, "question")
        if not fields.has("until"):
            return None
        until = fields.number("until")
        if until <= self._clock.monotonic():
            raise DeadlineError(
                "the question waited too long",
                where="engine",
                expected="an asker who waits",
                got="one who has given up",
            )
        return until

    def _observe(self, told: Escalation) -> None:
        if self._keeping is not None:
            self._keeping.observe(told, threshold=self._cascade.state.threshold)
        learner = self._learner  # which may come to rest meanwhile
        if learner is None:
            return
        try:
            learner.observe(told, threshold=self._cascade.state.threshold)
        except EdgestillError as error:
            log.warning("%s", error)

    def _teach(self, batch: NDArray[np.generic], labels: NDArray[np.generic]) -> None:
        classes = as_labels(labels)
        answer, learner = self._current.predict(batch), self._learner
        if self._keeping is not None:
            self._keeping.teach(batch, classes, len(self._policy.labels))
        if learner is None and (self._keeping is not None or self._tuned is not None):
            return
        if learner is None or answer.features is None:
            raise MessageError(
                "this bundle cannot be taught",
                where="teach",
                expected=f"a model with features, and a blob {REFERENCE}",
                got="a bundle without one of them",
            )
        named = answer.probabilities.argmax(axis=1)
        learner.teach(answer.features, classes, named)

    def _recall(self, memory: Memory) -> None:
        if self._learner is None:
            return
        # noise is for samples that were clipped so: what another policy clipped otherwise, or not at all, must not be among them
        clipped = memory.clipped(None if self._sender is None else self._sender.clips)
        self._learner.recall(memory.statistics(), memory.progress(), prepared=clipped)
        overlay = memory.overlay()
        if overlay is None:
            return
        try:
            self._adopt(overlay)
        except EdgestillError as error:
            log.warning("%s", error)
            with suppress(OSError):  # it stays, and is passed over at every start
                memory.drop_overlay()

    def _take_up(self) -> None:
        """Serves with weights that the device has trained, once they may serve.

        Features are others then than those that sums, leverage and a learned head are about: these rest.
        """
        if self._trained is None or self._trained.stamp() == self._stamp:
            return
        self._stamp = self._trained.stamp()
        tuned = self._trained.read()
        if tuned is None:
            return
        try:
            engine = engine_of(self._trained.model(tuned.weights), self._hardware)
            calibrated = replace(self._policy, temperature=tuned.temperature)
            self._current.student = Student(engine, calibrated, clock=self._clock)
        except EdgestillError as error:
            log.warning("%s", error)
            return
        self._engine, self._tuned, self._overlay, self._learner = engine, tuned, None, None

    def _adopt(self, overlay: Overlay) -> None:
        calibrated = replace(self._policy, temperature=overlay.temperature)
        self._current.student = Student(
            self._engine, calibrated, head=(overlay.head.weight, overlay.head.bias), clock=self._clock
        )
        self._overlay = overlay


def _tensor(frame: Frame, name: str) -> Tensor:
    tensor = frame.tensor(name)
    if tensor is None:
        raise MessageError("a tensor is missing", where="question", expected=name, got="none of that name")
    return tensor


def sender_of(
    bundle: Bundle, policy: Policy, memory: Memory, rng: np.random.Generator | None
) -> Sender | None:
    """What makes messages of sums; None where the bundle brings no statistics, or none that have the policy's coordinates.

    Raises:
        MessageError: its statistics are damaged.
    """
    if REFERENCE not in bundle.manifest.blobs:
        return None
    reference = Statistics.from_bytes(bundle.read(REFERENCE))
    source = SystemNormals() if rng is None else rng
    try:
        return Sender(reference, policy.statistics, account=memory.account(), rng=source)
    except (EvidenceError, SettingError) as error:
        log.warning("no sums will be sent: %s", error)
        return None


def _change(learner: Learner | None) -> JsonObject | None:
    change = None if learner is None else learner.change
    if change is None:
        return None
    return change.as_json() | {"at": f"{datetime.fromtimestamp(change.at, UTC):%Y-%m-%dT%H:%M:%SZ}"}


def learner_of(
    bundle: Bundle,
    policy: Policy,
    clock: Clock,
    *,
    raise_audits: Callable[[], bool] = lambda: False,
    prepare: Prepare | None = None,
) -> Learner | None:
    """What learns beside a bundle, and raises audits so; None where the bundle brings no statistics to begin with.

    Raises:
        MessageError, EvidenceError: its statistics are damaged.
    """
    if REFERENCE not in bundle.manifest.blobs:
        return None
    reference = Statistics.from_bytes(bundle.read(REFERENCE))
    return Learner(
        bundle=bundle.manifest.digest,
        reference=reference,
        policy=policy,
        clock=clock,
        raise_audits=raise_audits,
        prepare=prepare,
    )
