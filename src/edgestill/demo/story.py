"""What came of a demonstration: figures with n and intervals, one row a device, and what went over the wire."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.lab.measure import Figure, recovered_share, share_figure

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.demo.rehearse import Outcome

_OUTCOME: Final = {
    "teacher": ("teacher", "before"),
    "student": ("fp32", "before"),
    "int8": ("student", "before"),
    "shifted": ("shifted", "after"),
    "teacher_after": ("teacher_after", "after"),
    "updated": ("recovered", "after"),
    "control": ("control", "after"),
    "kept": ("kept", "before"),
    "personal": ("personal", "later"),
    "personal_without": ("personal_without", "later"),
}
"""Figure -> the outcome's field and its groups."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One device of the live fleet.

    Attributes:
        device: its name.
        shares: whether it asked the teacher and its evidence was used.
        answers: it gave.
        before: accuracy of its student alone before the change.
        shipped: after the change, with version 1.0.0 as it came; on its later data where there is such, else on all
            after the change.
        own: on the same data, with the head it adopted; None where it adopted none.
        updated: on the same data, with version 1.1.0.
        escalated: share of its inputs that it asked the teacher about.
        bytes_up: it sent for that.
        drift: what it noticed.
        latency_ms: median, as the application saw it, of answers given alone.
    """

    device: str
    shares: bool
    answers: int
    before: float
    shipped: float
    own: float | None
    updated: float
    escalated: float
    bytes_up: int
    drift: str
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Live:
    """What only the live fleet can tell.

    Attributes:
        rows: one a device.
        escalated: over all answers of sharing devices, after the change.
        fused_before: accuracy of the answers given by sharing devices before the change.
        alone_before: what their students alone would have reached.
        fused_shifted: the same after the change.
        alone_shifted: the same after the change.
        evidence: escalated answers the hub kept.
        statistics_bytes: of one device's summed statistics.
        head_accuracy: of a head solved from the summed statistics alone, after the change, on devices that shared
            nothing; None where no statistics came.
        shipped_accuracy: of the student as shipped, on the same data.
        bundle_bytes: of version 1.1.0.
        patch_bytes: that the devices fetched instead; None where they fetched it whole.
        model_bytes: of the model file alone.
        teacher_bytes: of the teacher's fp32 file.
    """

    rows: tuple[Row, ...]
    escalated: Figure
    fused_before: Figure
    alone_before: Figure
    fused_shifted: Figure
    alone_shifted: Figure
    evidence: int
    statistics_bytes: int
    head_accuracy: Figure | None
    shipped_accuracy: Figure
    bundle_bytes: int
    patch_bytes: int | None
    model_bytes: int
    teacher_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorption:
    """Parameter fusion of the student back into the teacher.

    Attributes:
        weight: the student's, chosen on held-out data; 0 means that nothing was kept.
        before: the teacher's accuracy on the measured devices' data.
        after: the fused teacher's there.
    """

    weight: float
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Story:
    """The end of it.

    Attributes:
        scenario: its name.
        about: version, time, seed and machine.
        told: one sentence on the data, one on the change.
        unit: what a group is called, one and many.
        outcomes: of the live fold first, then of the rehearsed ones.
        live: the live fleet.
        absorption: of the live fold.
        alpha: the teacher's weight in fused answers.
        promise: what the policy promises, or why it does not.
        size_ratio: teacher over student.
        wall_s: seconds from start to end.
        steps: name -> seconds.
    """

    scenario: str
    about: JsonObject
    told: tuple[str, str]
    unit: tuple[str, str]
    outcomes: Sequence[Outcome]
    live: Live
    absorption: Absorption
    alpha: float
    promise: str
    size_ratio: float
    wall_s: float
    steps: dict[str, float] = field(default_factory=dict)

    def accuracies(self) -> dict[str, Figure]:
        """Over all folds; the personal ones of devices that shared, the others of devices that shared nothing."""
        figures = {name: self._pooled(*where) for name, where in _OUTCOME.items()}
        return {name: figure for name, figure in figures.items() if figure is not None}

    def recovered(self) -> Figure | None:
        """The share of the loss that the update won back, on devices that shared nothing; None where nothing was lost."""
        return self._won_back("recovered")

    def recovered_by_control(self) -> Figure | None:
        """The share that the same training without evidence won back."""
        return self._won_back("control")

    def _pooled(self, name: str, groups: str) -> Figure | None:
        values, units = (
            np.concatenate([getattr(one, part) for one in self.outcomes]) for part in (name, groups)
        )
        return share_figure(values, units) if len(values) else None

    def _won_back(self, name: str) -> Figure | None:
        parts = {
            key: np.concatenate([getattr(one, key) for one in self.outcomes])
            for key in ("student", "shifted", name, "before", "after")
        }
        return recovered_share(
            parts["student"],
            parts["shifted"],
            parts[name],
            groups_before=parts["before"],
            groups_after=parts["after"],
        )

    def as_json(self) -> JsonObject:
        """`report.json`; `figures` is what benches and tests read."""
        named: dict[str, Figure | None] = {f"{name}_accuracy": one for name, one in self.accuracies().items()}
        named |= {"recovered_share": self.recovered(), "control_recovered_share": self.recovered_by_control()}
        named |= {"escalated_share": self.live.escalated}
        figures: JsonObject = {}
        for name, one in named.items():
            figures |= _plain(name, one)
        figures |= {"size_ratio": round(self.size_ratio, 2), "wall_s": round(self.wall_s, 1)}
        return {
            "scenario": self.scenario,
            "about": self.about,
            "figures": figures,
            "live": self._live(),
            "parameter_fusion": {
                "student_weight": self.absorption.weight,
                "teacher_accuracy": round(self.absorption.before, 4),
                "fused_teacher_accuracy": round(self.absorption.after, 4),
            },
            "policy": {"alpha": round(self.alpha, 3), "promise": self.promise},
            "steps_s": {name: round(seconds, 1) for name, seconds in self.steps.items()},
        }

    def _live(self) -> JsonObject:
        live = self.live
        return {
            "devices": [{name: getattr(row, name) for name in Row.__dataclass_fields__} for row in live.rows],
            **_plain("fused_accuracy_before", live.fused_before),
            **_plain("alone_accuracy_before", live.alone_before),
            **_plain("fused_accuracy_shifted", live.fused_shifted),
            **_plain("alone_accuracy_shifted", live.alone_shifted),
            **_plain("shared_head_accuracy", live.head_accuracy),
            **_plain("shipped_accuracy", live.shipped_accuracy),
            "evidence_samples": live.evidence,
            "statistics_bytes": live.statistics_bytes,
            "bundle_bytes": live.bundle_bytes,
            "patch_bytes": live.patch_bytes,
            "model_bytes": live.model_bytes,
            "teacher_bytes": live.teacher_bytes,
        }


def _plain(name: str, figure: Figure | None) -> JsonObject:
    """A figure as numbers for JSON; null where there is none, or where an end of its interval is not bounded."""
    if figure is None:
        return {name: None, f"{name}_n": 0, f"{name}_groups": 0, f"{name}_ci95": [None, None]}
    ends: list[Json] = [round(one, 4) if math.isfinite(one) else None for one in (figure.low, figure.high)]
    return {
        name: round(figure.value, 4),
        f"{name}_n": figure.n,
        f"{name}_groups": figure.groups,
        f"{name}_ci95": ends,
    }
