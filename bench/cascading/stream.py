"""A stream through the real cascade, input by input: the student on its engine, the teacher by the answers that it gave."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, final

import numpy as np

from edgestill.core.answer import Answer
from edgestill.core.clock import SystemClock
from edgestill.infer.cascade import Cascade
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.fusion import fuse, weights
from edgestill.infer.student import Student

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from cascading.sets import Part


@final
class Replayed:
    """A `Predict`: the teacher's answer to the input in hand, as it was given before."""

    def __init__(self, probabilities: NDArray[np.float32]) -> None:
        self.at = 0
        self._probabilities = probabilities

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:  # noqa: ARG002  # a `Predict`
        """Of the input whose number is `at`."""
        row = self._probabilities[self.at : self.at + len(batch)]
        return Answer(probabilities=row, confidence=row.max(axis=1), decided_by=("teacher",) * len(row))


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Alone:
    """What both say without each other, and fused everywhere.

    Attributes:
        student: calibrated probabilities `[N, C]`.
        teacher: likewise.
        fused: likewise.
        confidence: the student's, `[N]`.
    """

    student: NDArray[np.float32]
    teacher: NDArray[np.float32]
    fused: NDArray[np.float32]
    confidence: NDArray[np.float32]


def alone(part: Part) -> Alone:
    """Of a part's own inputs."""
    said = Student(OnnxEngine(part.model), part.policy, clock=SystemClock()).predict(part.inputs)
    teacher = softmax(part.teacher, part.policy.teacher_temperature)
    return Alone(
        student=said.probabilities,
        teacher=teacher,
        fused=fuse(teacher, said.probabilities, weights(part.policy, said.confidence)),
        confidence=said.confidence,
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Walked:
    """What became of a stream of T inputs.

    Attributes:
        answers: the class that was answered, `[T]`.
        asked: whether the teacher was, `[T]`.
    """

    answers: NDArray[np.int64]
    asked: NDArray[np.bool_]


def walk(part: Part, order: NDArray[np.int64], *, seed: int, share: float) -> Walked:
    """The inputs of these numbers, one by one; those from N on are of the shifted world."""
    own = len(part.inputs)
    inputs = (part.inputs, part.shifted)
    teacher = Replayed(
        softmax(np.concatenate([part.teacher, part.shifted_teacher]), part.policy.teacher_temperature)
    )
    policy = replace(part.policy, escalation_share=share, audit_share=min(part.policy.audit_share, share))
    cascade = Cascade(
        Student(OnnxEngine(part.model), policy, clock=SystemClock()),
        teacher,
        policy,
        clock=SystemClock(),
        random=np.random.default_rng(seed).random,
    )
    answers, asked = np.zeros(len(order), np.int64), np.zeros(len(order), np.bool_)
    for place, number in enumerate(order.tolist()):
        teacher.at = number
        world, at = (0, number) if number < own else (1, number - own)
        answer = cascade.predict(inputs[world][at : at + 1])
        answers[place] = answer.probabilities[0].argmax()
        asked[place] = answer.teacher is not None
    return Walked(answers=answers, asked=asked)
