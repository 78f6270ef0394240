"""The same route without a fleet: one fold in one process, for intervals over people.

Everything that decides is the real thing (student, cascade, policy, evidence, re-distillation); only hub, network and
device processes are left out.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.clock import SystemClock
from edgestill.demo.workshop import Workshop, engine_of, learn, next_student, teach
from edgestill.infer.cascade import Cascade, Escalation
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.student import Student
from edgestill.lab.measure import run_model
from edgestill.lab.redistil import Evidence

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from edgestill.core.protocols import Engine
    from edgestill.demo.scenario import Scenario
    from edgestill.lab.data.samples import Samples


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcome:
    """Who was right on each sample of those who shared nothing, float64 `[N]` of 0 and 1, with their groups.

    Attributes:
        teacher: before the change.
        fp32: the student as trained, before the change.
        student: the student as shipped (int8), before the change.
        shifted: the same after the change.
        recovered: the next student after the change.
        control: the next student made without evidence, after the change.
        kept: the next student before the change: what it forgot.
        before: groups of the first three and of `kept`.
        after: groups of the others.
    """

    teacher: NDArray[np.float64]
    fp32: NDArray[np.float64]
    student: NDArray[np.float64]
    shifted: NDArray[np.float64]
    recovered: NDArray[np.float64]
    control: NDArray[np.float64]
    kept: NDArray[np.float64]
    before: NDArray[np.int64]
    after: NDArray[np.int64]


def rehearse(scenario: Scenario) -> Outcome:
    """Walks one fold."""
    workshop = learn(scenario, teach(scenario))
    evidence = gather(workshop)
    following = next_student(workshop, evidence, version="1.1.0", parent=workshop.packed.manifest.digest)
    control = next_student(workshop, None, version="1.1.0", parent=workshop.packed.manifest.digest)
    return compare(workshop, engine_of(following), engine_of(control))


def compare(workshop: Workshop, following: Engine, control: Engine) -> Outcome:
    """Scores every model on the streams that shared nothing."""
    quiet = [stream for stream in workshop.scenario.streams if not stream.shares]
    before, after = quiet[0].before, quiet[0].after
    for stream in quiet[1:]:
        before, after = before + stream.before, after + stream.after
    fp32 = OnnxEngine(workshop.packed.model_fp32)
    student = engine_of(workshop.packed)
    return Outcome(
        teacher=right(OnnxEngine(workshop.teacher_onnx), before),
        fp32=right(fp32, before),
        student=right(student, before),
        shifted=right(student, after),
        recovered=right(following, after),
        control=right(control, after),
        kept=right(following, before),
        before=before.groups,
        after=after.groups,
    )


def gather(workshop: Workshop) -> Evidence:
    """What the sharing devices escalate after the change, each through a cascade of its own."""
    policy, clock = workshop.packed.policy, SystemClock()
    student = Student(engine_of(workshop.packed), policy, clock=clock)
    teacher = Student(
        OnnxEngine(workshop.teacher_onnx),
        replace(policy, temperature=policy.teacher_temperature),
        clock=clock,
    )
    told: list[tuple[str, Escalation]] = []

    def listener(name: str) -> Callable[[Escalation], None]:
        return lambda one: told.append((name, one))

    for index, stream in enumerate(one for one in workshop.scenario.streams if one.shares):
        coin = random.Random(index)  # noqa: S311  # a rehearsal repeats itself
        cascade = Cascade(
            student,
            teacher,
            policy,
            clock=clock,
            random=coin.random,
            observe=listener(stream.device),
        )
        for inputs in stream.after.inputs:
            cascade.predict(inputs[None])
    heard = [(name, one) for name, one in told if one.heard.any()]
    return Evidence(
        inputs=np.concatenate([one.batch for _, one in heard]),
        teacher=np.concatenate([np.log(np.maximum(_teacher(one), 1e-9)) for _, one in heard]).astype(
            np.float32
        ),
        audit=np.concatenate([one.audited for _, one in heard]),
        devices=tuple(name for name, _ in heard),
    )


def right(engine: Engine, samples: Samples) -> NDArray[np.float64]:
    """1 where the model names the label, else 0."""
    named = run_model(engine, samples.inputs)[0].argmax(1)
    hits: NDArray[np.float64] = (named == samples.labels).astype(np.float64)
    return hits


def _teacher(one: Escalation) -> NDArray[np.float32]:
    assert one.answer.teacher is not None
    return one.answer.teacher
