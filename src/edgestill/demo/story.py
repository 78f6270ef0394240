"""What came of a demonstration: figures with n and intervals, one row a device, and what went over the wire."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.lab.measure import Figure, mean_figure, recovered_share

if TYPE_CHECKING:
    from collections.abc import Sequence

    from edgestill.core.jsonio import JsonObject
    from edgestill.demo.rehearse import Outcome

_ACCURACIES: Final = ("teacher", "student", "int8", "shifted", "updated", "control", "kept")
_OUTCOME: Final = dict(
    zip(_ACCURACIES, ("teacher", "fp32", "student", "shifted", "recovered", "control", "kept"), strict=True)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One device of the live fleet.

    Attributes:
        device: its name.
        shares: whether it asked the teacher and its evidence was used.
        answers: it gave.
        before: its accuracy before the change.
        shifted: after the change, with version 1.0.0.
        updated: after the change, with version 1.1.0.
        escalated: share of its inputs that it asked the teacher about.
        bytes_up: it sent for that.
        drift: what it noticed.
        learned: whether it adopted a head of its own.
        latency_ms: median, as the application saw it, of answers given alone.
    """

    device: str
    shares: bool
    answers: int
    before: float
    shifted: float
    updated: float
    escalated: float
    bytes_up: int
    drift: str
    learned: bool
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
        personal: accuracy of the sharing devices on their later data, with what they learned by themselves.
        personal_without: the same with the bundle as it was shipped.
        bundle_bytes: of version 1.1.0.
        patch_bytes: that the devices fetched instead; None where they fetched it whole.
        model_bytes: of the model file alone.
        teacher_bytes: of the teacher's fp32 file.
    """

    rows: tuple[Row, ...]
    escalated: Figure
    fused_before: float
    alone_before: float
    fused_shifted: float
    alone_shifted: float
    evidence: int
    statistics_bytes: int
    head_accuracy: float | None
    personal: float
    personal_without: float
    bundle_bytes: int
    patch_bytes: int | None
    model_bytes: int
    teacher_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Absorption:
    """Parameter fusion of the student back into the teacher.

    Attributes:
        alpha: chosen on held-out data; 0 means that nothing was kept.
        before: the teacher's accuracy on the measured devices' data.
        after: the fused teacher's there.
    """

    alpha: float
    before: float
    after: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Story:
    """The end of it.

    Attributes:
        scenario: its name.
        told: one sentence on the data, one on the change.
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
    told: tuple[str, str]
    outcomes: Sequence[Outcome]
    live: Live
    absorption: Absorption
    alpha: float
    promise: str
    size_ratio: float
    wall_s: float
    steps: dict[str, float] = field(default_factory=dict)

    def accuracies(self) -> dict[str, Figure]:
        """Over all folds, on devices that shared nothing."""
        return {name: self._pooled(_OUTCOME[name]) for name in _ACCURACIES}

    def recovered(self) -> Figure:
        """The share of the loss that the update won back, there."""
        return self._won_back("recovered")

    def recovered_by_control(self) -> Figure:
        """The share that the same training without evidence won back."""
        return self._won_back("control")

    def _pooled(self, name: str) -> Figure:
        before = name in {"teacher", "fp32", "student", "kept"}
        groups = [one.before if before else one.after for one in self.outcomes]
        return mean_figure(
            np.concatenate([getattr(one, name) for one in self.outcomes]), np.concatenate(groups)
        )

    def _won_back(self, name: str) -> Figure:
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
        figures: JsonObject = {}
        named = {f"{name}_accuracy": one for name, one in self.accuracies().items()}
        named |= {"recovered_share": self.recovered(), "control_recovered_share": self.recovered_by_control()}
        named |= {"escalated_share": self.live.escalated}
        for name, one in named.items():
            figures[name] = round(one.value, 4)
            figures[f"{name}_n"] = one.n
            figures[f"{name}_groups"] = one.groups
            figures[f"{name}_ci95"] = [round(one.low, 4), round(one.high, 4)]
        figures |= {"size_ratio": round(self.size_ratio, 2), "wall_s": round(self.wall_s, 1)}
        return {
            "scenario": self.scenario,
            "figures": figures,
            "live": self._live(),
            "parameter_fusion": {
                "alpha": self.absorption.alpha,
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
            "fused_accuracy_before": live.fused_before,
            "alone_accuracy_before": live.alone_before,
            "fused_accuracy_shifted": live.fused_shifted,
            "alone_accuracy_shifted": live.alone_shifted,
            "evidence_samples": live.evidence,
            "statistics_bytes": live.statistics_bytes,
            "shared_head_accuracy": live.head_accuracy,
            "personal_accuracy": live.personal,
            "personal_accuracy_without_learning": live.personal_without,
            "bundle_bytes": live.bundle_bytes,
            "patch_bytes": live.patch_bytes,
            "model_bytes": live.model_bytes,
            "teacher_bytes": live.teacher_bytes,
        }
