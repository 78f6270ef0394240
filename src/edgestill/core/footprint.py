"""What a model takes of a device, measured or predicted, and how far that is from its budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

from edgestill.core.units import format_duration, format_size

if TYPE_CHECKING:
    from edgestill.core.budget import Budget
    from edgestill.core.jsonio import JsonObject

Source = Literal["measured", "predicted"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Spread:
    """A figure that was taken several times.

    Attributes:
        value: the median of the rounds.
        low: their first quartile.
        high: their third.
    """

    value: float
    low: float
    high: float

    def __post_init__(self) -> None:
        if not self.low <= self.value <= self.high:
            msg = f"{self.low}, {self.value}, {self.high} are in no order"
            raise ValueError(msg)


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Seconds for one answer, batch 1.

    Attributes:
        p50: half of the answers come within it.
        p95: 95 of 100 do.
        threads: that share one operator.
        rounds: of which the spreads are.
        runs: in each round.
    """

    p50: Spread
    p95: Spread
    threads: int
    rounds: int
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """What one model takes.

    Attributes:
        size: bytes of the bundle without `train.onnx`.
        latency: seconds for one answer, 95 of 100 times; None where nobody looked.
        memory: bytes that loading the model and answering add to a process; None where nobody looked.
        update: bytes of the patch from the bundle that it follows; None where it follows none, or nobody looked.
        hardware_class: where that is so.
        source: whether the latency was measured there, or predicted from measurements there.
    """

    size: int
    latency: float | None = None
    memory: int | None = None
    update: int | None = None
    hardware_class: str
    source: Source = "measured"

    def as_json(self) -> JsonObject:
        """As JSON."""
        return asdict(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class Slack:
    """How far one figure is from its bound.

    Attributes:
        name: as in `Budget`.
        bound: what is allowed.
        value: what it takes.
    """

    name: str
    bound: float
    value: float

    @property
    def share(self) -> float:
        """Of the bound that is left over; below 0 where it is exceeded."""
        if self.bound == 0:
            return 0.0 if self.value == 0 else float("-inf")
        return 1 - self.value / self.bound

    @property
    def kept(self) -> bool:
        """Whether the bound is kept."""
        return self.value <= self.bound

    def __str__(self) -> str:
        show = format_duration if self.name == "latency" else format_size
        return f"{self.name} {show(self.value)} of {show(self.bound)}"

    def as_json(self) -> dict[str, Any]:
        """As JSON."""
        return {"bound": self.bound, "value": self.value, "slack": round(self.share, 4), "kept": self.kept}


def slacks(budget: Budget, footprint: Footprint) -> tuple[Slack, ...]:
    """Of every bound of the budget that the footprint has a figure for, the tightest first."""
    pairs = (
        ("size", budget.size, footprint.size),
        ("latency", budget.latency, footprint.latency),
        ("memory", budget.memory, footprint.memory),
        ("update", budget.update, footprint.update),
    )
    found = [
        Slack(name=name, bound=bound, value=value)
        for name, bound, value in pairs
        if bound is not None and value is not None
    ]
    return tuple(sorted(found, key=lambda one: one.share))
