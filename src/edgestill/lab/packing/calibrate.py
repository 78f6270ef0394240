"""The policy of a bundle, fitted on data neither teacher nor student was trained on.

Held-out data is split in three: one part fits the temperatures and alpha and compares measures of confidence, one chooses
the threshold, one reports. What
counts when fitting are the groups (people, devices), not the samples: few of them stay near the prior. The
threshold comes from Learn-then-Test on the loss "the teacher is right and the fused answer is wrong" where the
samples are independent; where several belong to one group (a person), that promise would be false: the threshold then
only keeps the escalation budget, and the policy says that it promises nothing and why. So it does where nobody knows what the
teacher says.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, get_args

import numpy as np

from edgestill.core.errors import ClassCountError, DataError
from edgestill.infer.bands import Voices, fit_weights
from edgestill.infer.calibration import (
    expected_calibration_error,
    fit_alpha,
    fit_temperature,
    negative_log_likelihood,
)
from edgestill.infer.confidence import certain_by, confidence_of, softmax
from edgestill.infer.escalation import FIRST, best_measure, compare_measures, gains
from edgestill.infer.fusion import fuse, weights
from edgestill.infer.policy import Measure
from edgestill.infer.risk import choose_threshold, threshold_for_share

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.infer.policy import Policy

EPSILON: Final = 0.05
DELTA: Final = 0.1
_PARTS: Final = 3
FEWEST: Final = 30
"""Held-out samples that something can be fitted on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Heldout:
    """What teacher and student say about held-out data.

    Attributes:
        student: logits `[N, C]`.
        teacher: logits `[N, C]`; None where there is none to ask.
        labels: `[N]`.
        groups: `[N]`.
        leverage: `[N]`, of the student's features, relative to the reference samples; None where they are not known.
    """

    student: NDArray[np.float32]
    teacher: NDArray[np.float32] | None
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    leverage: NDArray[np.floating] | None = None

    def __post_init__(self) -> None:
        if self.teacher is not None and self.student.shape != self.teacher.shape:
            raise ClassCountError(
                "teacher and student answer differently many classes",
                where="held-out answers",
                expected=self.teacher.shape,
                got=self.student.shape,
                fix="give a student with as many outputs as the teacher",
            )

    def part(self, index: NDArray[np.int64]) -> Heldout:
        """These samples only."""
        return Heldout(
            student=self.student[index],
            teacher=None if self.teacher is None else self.teacher[index],
            labels=self.labels[index],
            groups=self.groups[index],
            leverage=None if self.leverage is None else self.leverage[index],
        )


def calibrate(heldout: Heldout, wanted: Policy, *, seed: int = 0) -> Policy:
    """Fits temperatures, measure of confidence, alpha and threshold.

    Args:
        heldout: at least 30 samples.
        wanted: what is not fitted: labels, budgets, what may leave; and the measure, where it is another than
            `max_probability`, which gives way to one that is shown to find more of the inputs worth asking about.
        seed: of the split.

    Raises:
        DataError: fewer than 30 samples.
    """
    if len(heldout.labels) < FEWEST:
        raise DataError(
            "too little held-out data to calibrate",
            where="validation",
            expected=f"at least {FEWEST} samples",
            got=len(heldout.labels),
            fix="hold more samples out of training",
        )
    fit, choose, report = _thirds(heldout, seed)
    units = len(np.unique(fit.groups))
    policy = replace(wanted, temperature=fit_temperature(fit.student, fit.labels, units=units))
    shown: JsonObject = {}
    if fit.teacher is not None:
        policy = replace(policy, teacher_temperature=fit_temperature(fit.teacher, fit.labels, units=units))
        policy, shown = _with_weights(policy, fit)
    groups = len(np.unique(heldout.groups))
    policy, promise = _with_threshold(policy, choose, independent=groups == len(heldout.labels))
    return replace(policy, evidence=promise | shown | {"report": _report(policy, report)})


def kept_budget(heldout: Heldout, wanted: Policy, why: str) -> Policy:
    """The policy with a threshold that keeps its escalation budget, and no promise.

    Args:
        heldout: the student's answers; nothing else of it is looked at.
        wanted: with the temperature to be used.
        why: nothing is promised.
    """
    confidence = _confidence(wanted, heldout, softmax(heldout.student, wanted.temperature))
    evidence: JsonObject = {"promised": False, "n": len(confidence), "why": why}
    threshold = threshold_for_share(confidence, wanted.escalation_share)
    return replace(wanted, threshold=threshold, evidence=evidence)


def asking_text(policy: Policy) -> str:
    """Whom a device with this policy asks, and how often, for people to read."""
    if policy.asks == "nothing":
        return "Asks nobody."
    who = "the teacher" if policy.asks == "raw" else "its adapter"
    return f"Asks {who} for at most {policy.escalation_share:.0%} of its inputs; alpha = {policy.alpha:.2f}."


def promise_text(policy: Policy) -> str:
    """What the policy promises on the risk, or why it promises nothing, for people to read.

    A promise is of a threshold, and that threshold of a share of inputs asked about: where the budget allows less, it
    does not hold.
    """
    shown = policy.evidence
    if not shown.get("promised"):
        return f"none, since {shown.get('why', 'nothing was calibrated')}"
    needed = float(str(shown.get("escalated", 0.0)))
    if needed > policy.escalation_share:
        return (
            f"none within the budget: it would take asking about {needed:.0%} of the inputs, and {policy.escalation_share:.0%} "
            "are allowed"
        )
    return (
        f"of at most {float(str(shown['epsilon'])):.0%} of inputs the answer is wrong although {'the teacher' if policy.adapter is None else 'the adapter'} knows better; "
        f"true with probability {1 - float(str(shown['delta'])):g}, shown on {shown['n']} samples"
    )


def _with_weights(policy: Policy, part: Heldout) -> tuple[Policy, JsonObject]:
    """The policy with measure and weights, and what they were chosen by."""
    voices = _voices(policy, part)
    student, teacher = voices["student"], voices["teacher"]
    units = len(np.unique(part.groups))
    alpha = fit_alpha(teacher, student, part.labels, units=units)
    right = fuse(teacher, student, alpha).argmax(1) == part.labels
    compared = compare_measures(
        {
            measure: _confidence(replace(policy, measure=measure), part, student)
            for measure in _measures(part)
        },
        gains(student.argmax(1) == part.labels, right),
        policy.escalation_share,
        groups=part.groups,
    )
    if policy.measure == FIRST:
        policy = replace(policy, measure=best_measure(compared))
    found = fit_weights(
        Voices(
            teacher=teacher,
            student=student,
            confidence=_confidence(policy, part, student),
            labels=part.labels,
            groups=part.groups,
        ),
        policy.escalation_share,
    )
    evidence: JsonObject = {
        "measures": {measure: one.as_json() for measure, one in compared.items()},
        "bands": found.as_json(),
    }
    return replace(policy, alpha=found.alpha, bands=found.bands), evidence


def _measures(part: Heldout) -> tuple[Measure, ...]:
    return tuple(one for one in get_args(Measure) if one != "leverage" or part.leverage is not None)


def _confidence(policy: Policy, part: Heldout, student: NDArray[np.float32]) -> NDArray[np.float32]:
    """`[N]`, as the student will tell it."""
    if policy.measure != "leverage" or part.leverage is None:
        return confidence_of(student, policy.measure)
    return certain_by(part.leverage)


def _with_threshold(policy: Policy, part: Heldout, *, independent: bool) -> tuple[Policy, JsonObject]:
    voices = _voices(policy, part)
    student, teacher = voices["student"], voices.get("teacher")
    if teacher is None:
        kept = kept_budget(part, policy, "nobody asked a teacher; the threshold keeps the budget only")
        return kept, kept.evidence
    confidence = _confidence(policy, part, student)
    threshold = threshold_for_share(confidence, policy.escalation_share)
    if not independent:
        groups = len(np.unique(part.groups))
        why = (
            f"{len(part.labels)} samples of {groups} group{'' if groups == 1 else 's'} are not independent; "
            "the threshold keeps the budget only"
        )
        return replace(policy, threshold=threshold), {"promised": False, "n": groups, "why": why}
    right = teacher.argmax(1) == part.labels
    fused = fuse(teacher, student, weights(policy, confidence))
    promise = choose_threshold(
        confidence,
        right & (student.argmax(1) != part.labels),
        escalated_loss=right & (fused.argmax(1) != part.labels),
        epsilon=EPSILON,
        delta=DELTA,
    )
    return replace(policy, threshold=promise.threshold if promise.promised else threshold), promise.as_json()


def _report(policy: Policy, part: Heldout) -> JsonObject:
    voices = _voices(policy, part)
    if "teacher" in voices:
        confidence = _confidence(policy, part, voices["student"])
        voices["fused"] = fuse(voices["teacher"], voices["student"], weights(policy, confidence))
    figures: JsonObject = {
        name: {
            "accuracy": float((voice.argmax(1) == part.labels).mean()),
            "nll": negative_log_likelihood(voice, part.labels),
            "ece": expected_calibration_error(voice, part.labels),
        }
        for name, voice in voices.items()
    }
    if policy.adapter is not None and "teacher" in figures:
        figures["adapter"] = figures.pop("teacher")
    return figures | {"n": len(part.labels)}


def _voices(policy: Policy, part: Heldout) -> dict[str, NDArray[np.float32]]:
    """Calibrated probabilities of the student, and of the teacher where there is one."""
    voices = {"student": softmax(part.student, policy.temperature)}
    if part.teacher is not None:
        voices["teacher"] = softmax(part.teacher, policy.teacher_temperature)
    return voices


def _thirds(heldout: Heldout, seed: int) -> tuple[Heldout, Heldout, Heldout]:
    """Three parts that share no group; of fewer than three groups, parts that share no sample."""
    random = np.random.default_rng(seed)
    names = np.unique(heldout.groups)
    if len(names) >= _PARTS:
        parts = [
            np.flatnonzero(np.isin(heldout.groups, chosen))
            for chosen in np.array_split(random.permutation(names), _PARTS)
        ]
    else:
        parts = np.array_split(random.permutation(len(heldout.labels)), _PARTS)
    first, second, third = (heldout.part(part) for part in parts)
    return first, second, third
