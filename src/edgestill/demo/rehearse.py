"""The same route without a fleet: one fold in one process, for intervals over people.

Everything that decides is the real thing (student, cascade, policy, learner, evidence, re-distillation); only hub,
network and device processes are left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.clock import SystemClock
from edgestill.demo.workshop import Workshop, engine_of, learn, next_student, teach
from edgestill.device.learning import Learner
from edgestill.device.model import Current
from edgestill.infer.cascade import Cascade, Escalation
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.student import Student
from edgestill.lab.measure import run_model
from edgestill.lab.packing.assemble import REFERENCE
from edgestill.lab.redistil import Evidence
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from numpy.typing import NDArray

    from edgestill.core.protocols import Engine
    from edgestill.demo.scenario import Scenario, Stream
    from edgestill.lab.data.samples import Samples


_LOOK: Final = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Who was right on each sample of those who shared nothing, float64 `[N]` of 0 and 1, with their groups.

    Attributes:
        teacher: before the change.
        teacher_after: after it.
        fp32: the student as trained, before the change.
        student: the student as shipped (int8), before the change.
        shifted: the same after the change.
        recovered: the next student after the change.
        control: the next student made without evidence, after the change.
        kept: the next student before the change: what it forgot.
        before: groups of those before the change.
        after: groups of those after it.
        personal: the students of those who shared, each with what it learned by itself, on data nothing was learned from.
        personal_without: the same with the bundle as shipped.
        later: groups of these two.
    """

    teacher: NDArray[np.float64]
    teacher_after: NDArray[np.float64]
    fp32: NDArray[np.float64]
    student: NDArray[np.float64]
    shifted: NDArray[np.float64]
    recovered: NDArray[np.float64]
    control: NDArray[np.float64]
    kept: NDArray[np.float64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]
    personal: NDArray[np.float64]
    personal_without: NDArray[np.float64]
    later: NDArray[np.int64]


def rehearse(scenario: Scenario) -> Outcome:
    """Walks one fold."""
    workshop = learn(scenario, teach(scenario))
    devices = [Device(stream, workshop, number) for number, stream in enumerate(sharing(scenario))]
    for device in devices:
        device.meet(device.stream.before)
        device.meet(device.stream.after)
    evidence = gather(devices)
    alone = {device.stream.device: device.meet(one) for device in devices if (one := device.stream.later)}
    following = next_student(workshop, evidence, version="1.1.0", parent=workshop.packed.manifest.digest)
    control = next_student(workshop, None, version="1.1.0", parent=workshop.packed.manifest.digest)
    return compare(workshop, engine_of(following), engine_of(control), alone)


def sharing(scenario: Scenario) -> list[Stream]:
    """Of the devices whose answers may be asked of the teacher."""
    return [stream for stream in scenario.streams if stream.shares]


def compare(
    workshop: Workshop, following: Engine, control: Engine, alone: Mapping[str, NDArray[np.int64]]
) -> Outcome:
    """Scores every model on the streams that shared nothing, and what each sharing device learned by itself.

    Args:
        workshop: whose student was shipped.
        following: the next student.
        control: the one made without evidence.
        alone: by sharing device, the class that its student named of each of its later inputs.
    """
    quiet = [stream for stream in workshop.scenario.streams if not stream.shares]
    before, after = quiet[0].before, quiet[0].after
    for stream in quiet[1:]:
        before, after = before + stream.before, after + stream.after
    fp32, teacher = OnnxEngine(workshop.packed.model_fp32), OnnxEngine(workshop.teacher_onnx)
    student = engine_of(workshop.packed)
    later = {one.device: one.later for one in sharing(workshop.scenario) if one.later}
    return Outcome(
        teacher=right(teacher, before),
        teacher_after=right(teacher, after),
        fp32=right(fp32, before),
        student=right(student, before),
        shifted=right(student, after),
        recovered=right(following, after),
        control=right(control, after),
        kept=right(following, before),
        before=before.groups,
        after=after.groups,
        personal=_joined([hits(alone[name], one) for name, one in later.items()]),
        personal_without=_joined([right(student, one) for one in later.values()]),
        later=_joined([one.groups for one in later.values()]).astype(np.int64),
    )


class Device:
    """A device that shares, without hub, network and process: cascade, learner and evidence are the real ones.

    Args:
        stream: what it sees.
        workshop: who made its bundle, and whose teacher it asks.
        number: seeds its coin; a rehearsal repeats itself.
    """

    def __init__(self, stream: Stream, workshop: Workshop, number: int) -> None:
        policy, self._clock = workshop.packed.policy, SystemClock()
        self.stream = stream
        self.told: list[Escalation] = []
        self._engine, self._policy = engine_of(workshop.packed), policy
        self._current = Current(Student(self._engine, policy, clock=self._clock))
        self._learner = Learner(
            bundle=workshop.packed.manifest.digest,
            reference=Statistics.from_bytes(workshop.packed.blobs[REFERENCE]),
            policy=policy,
            clock=self._clock,
        )
        self._cascade = Cascade(
            self._current,
            Student(
                OnnxEngine(workshop.teacher_onnx),
                replace(policy, temperature=policy.teacher_temperature),
                clock=self._clock,
            ),
            policy,
            clock=self._clock,
            random=random.Random(number).random,  # noqa: S311  # no secret
            observe=self._observe,
        )

    def meet(self, samples: Samples) -> NDArray[np.int64]:
        """Answers inputs one by one, and learns; the class that the student alone named, `[N]`."""
        named = []
        for number, inputs in enumerate(samples.inputs):
            answer = self._cascade.predict(inputs[None])
            alone = answer.probabilities if answer.student is None else answer.student
            named.append(int(alone.argmax()))
            if number % _LOOK == _LOOK - 1:
                self._learn()
        self._learn()
        return np.array(named, dtype=np.int64)

    def _observe(self, told: Escalation) -> None:
        self.told.append(told)
        self._learner.observe(told, threshold=self._cascade.state.threshold)

    def _learn(self) -> None:
        overlay = self._learner.consider()
        if overlay is not None:
            policy = replace(self._policy, temperature=overlay.temperature)
            head = (overlay.head.weight, overlay.head.bias)
            self._current.student = Student(self._engine, policy, head=head, clock=self._clock)


def gather(devices: Sequence[Device]) -> Evidence:
    """What the devices have asked so far, and were answered."""
    heard = [(one.stream.device, told) for one in devices for told in one.told if told.heard.any()]
    return Evidence(
        inputs=np.concatenate([told.batch for _, told in heard]),
        teacher=np.concatenate([np.log(np.maximum(_teacher(told), 1e-9)) for _, told in heard]).astype(
            np.float32
        ),
        audit=np.concatenate([told.audited for _, told in heard]),
        devices=tuple(name for name, _ in heard),
    )


def hits(named: NDArray[np.int64], samples: Samples) -> NDArray[np.float64]:
    """1 where the class named is the label, else 0."""
    found: NDArray[np.float64] = (named == samples.labels).astype(np.float64)
    return found


def right(engine: Engine, samples: Samples) -> NDArray[np.float64]:
    """1 where the model names the label, else 0."""
    return hits(run_model(engine, samples.inputs)[0].argmax(1), samples)


def _joined(parts: list[NDArray[Any]]) -> NDArray[Any]:
    return np.concatenate(parts) if parts else np.empty(0)


def _teacher(one: Escalation) -> NDArray[np.float32]:
    assert one.answer.teacher is not None
    return one.answer.teacher
