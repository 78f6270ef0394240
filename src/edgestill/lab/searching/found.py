"""What a search has found: students with their figures, which of them no other beats in everything, and which to take."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from edgestill.core.errors import SettingError
from edgestill.core.footprint import slacks
from edgestill.lab.measure import mean_figure, share_figure
from edgestill.lab.models import load_weights_
from edgestill.lab.packing.gate import Gate
from edgestill.lab.packing.material import labelled
from edgestill.lab.run import Run
from edgestill.lab.searching.school import right

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from torch import nn

    from edgestill.core.budget import Budget
    from edgestill.core.footprint import Footprint
    from edgestill.core.hardware import HardwareClass
    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import Source
    from edgestill.lab.measure import Figure
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.searching.draft import Shape
    from edgestill.lab.searching.profile import Profile
    from edgestill.lab.searching.settings import Search
    from edgestill.lab.searching.shape import Space


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Point:
    """A student that was trained to the end.

    Attributes:
        name: `STUDY/TRIAL`.
        budget: that it was searched for.
        shape: its measures.
        widths: units of each width.
        recipe: that it was trained with.
        uniform: whether it is the uniform student of that budget.
        footprint: what it takes.
        judged: share that its file tells right of the data that students were chosen on, which flatters the chosen.
        unseen: the same of the data that no choice has seen; None where nobody looked.
        over_uniform: unseen share minus the uniform student's of the same budget, paired by sample; None where nobody
            looked.
        weights: file of the trained student.
    """

    name: str
    budget: Budget
    shape: Shape
    widths: dict[str, int]
    recipe: Recipe
    uniform: bool
    footprint: Footprint
    judged: float
    unseen: Figure | None = None
    over_uniform: Figure | None = None
    weights: Path

    @property
    def file(self) -> Path:
        """The ONNX file that would be shipped, unless the bundle's gate on int8 asks for another."""
        return self.weights.with_suffix(".onnx")

    def fits(self, budget: Budget) -> bool:
        """Whether it keeps every bound."""
        return all(one.kept for one in slacks(budget, self.footprint))

    def as_json(self) -> JsonObject:
        """As JSON."""
        told: dict[str, Any] = {
            "name": self.name,
            "shape": self.shape.as_json(),
            "widths": self.widths,
            "recipe": self.recipe.as_json(),
            "uniform": self.uniform,
            "footprint": self.footprint.as_json(),
            "judged": self.judged,
            "unseen": None if self.unseen is None else self.unseen.as_json(),
            "over_uniform": None if self.over_uniform is None else self.over_uniform.as_json(),
            "weights": str(self.weights),
        }
        return told


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What came of a search.

    Attributes:
        teacher: unchanged.
        space: the students there are.
        train: what they were shown.
        judge: held-out data that students were chosen on, and that their bundles are calibrated on.
        unseen: held-out data that nothing was chosen or fitted on.
        augment: made views of `train`, where it is samples.
        recipe: how they were trained, but for what the search chose.
        settings: of the search.
        profile: latencies that were predicted from; None where none were.
        hardware_class: where the students will run.
        points: all students that were trained to the end.
    """

    teacher: nn.Module = field(repr=False)
    space: Space = field(repr=False)
    train: Samples | Source = field(repr=False)
    judge: Samples | Source = field(repr=False)
    unseen: Samples | Source = field(repr=False)
    augment: Augment | None = field(repr=False)
    recipe: Recipe
    settings: Search
    profile: Profile | None = field(repr=False)
    hardware_class: HardwareClass
    points: tuple[Point, ...]

    @property
    def front(self) -> tuple[Point, ...]:
        """Those that no other beats in everything, the smallest first."""
        return front(self.points)

    def pick(self, budget: Budget) -> Point:
        """The best that fits; errors as the function `pick`."""
        return pick(self.points, budget)

    def fitting(self, budget: Budget) -> list[Point]:
        """All that fit, the best first."""
        found = [one for one in self.points if one.fits(budget)]
        return sorted(found, key=lambda one: (-one.judged, _costs(one)))

    def student(self, point: Point) -> nn.Module:
        """As it was trained.

        Raises:
            PathError: its weights are not there, as where another machine has trained it.
        """
        student = self.space.built(point.shape.direction, point.shape.scale, seed=self.recipe.seed)
        load_weights_(student, point.weights)
        return student.eval()

    def run(self, point: Point, budget: Budget | None = None) -> Run:
        """A student with everything that its bundle needs; calibrated, and looked at for int8, on the data that chose it.

        Args:
            point: of this search.
            budget: that the bundle is held against; by default the one that it was searched for.
        """
        return Run(
            student=self.student(point),
            teacher=self.teacher,
            index_map=None,
            recipe=point.recipe,
            train=self.train,
            validation=self.judge,
            augment=self.augment,
            budget=budget or point.budget,
            hardware_class=self.hardware_class,
            gate=Gate(int8=point.shape.precision == "int8"),
        )

    def as_json(self) -> JsonObject:
        """For the report: the front, all points, and what latencies rest on."""
        told: dict[str, Any] = {
            "front": [one.name for one in self.front],
            "points": {one.name: one.as_json() for one in self.points},
            "latencies": None if self.profile is None else self.profile.sentence,
            "search": self.settings.as_json(),
            "recipe": self.recipe.as_json(),
        }
        return told

    def told(self) -> Found:
        """With what the unseen data says of each point, and of the gain over the uniform student of its budget."""
        unseen = labelled(self.unseen, "validation")
        each = {one.name: right(one.file.read_bytes(), unseen, self.hardware_class) for one in self.points}
        uniform = {one.budget: one.name for one in sorted(self.points, key=_comparable) if one.uniform}

        def told(one: Point) -> Point:
            own, other = each[one.name], uniform.get(one.budget)
            gain = None if other is None else mean_figure(own - each[other], unseen.groups)
            return replace(one, unseen=share_figure(own > 0, unseen.groups), over_uniform=gain)

        return replace(self, points=tuple(map(told, self.points)))


def front(points: Sequence[Point]) -> tuple[Point, ...]:
    """Those that no other beats: smaller, faster or better than each, the smallest first (Pareto).

    Of equals the first is taken.
    """
    found: list[Point] = []
    for one in sorted(points, key=lambda point: (*_costs(point), -point.judged)):
        if not any(
            other.judged >= one.judged
            and all(a <= b for a, b in zip(_costs(other), _costs(one), strict=True))
            for other in found
        ):
            found.append(one)
    return tuple(found)


def pick(points: Sequence[Point], budget: Budget) -> Point:
    """The best that fits.

    Raises:
        SettingError: none fits; the text names the bound and what comes nearest.
    """
    if not points:
        raise SettingError(
            "no student was trained to the end",
            where="search",
            expected="at least one",
            got="none",
            fix="look into the journal for why; a lower learning rate, or more trials",
        )
    fitting = [one for one in points if one.fits(budget)]
    if fitting:
        return max(fitting, key=lambda one: (one.judged, [-cost for cost in _costs(one)]))
    nearest = min(points, key=lambda one: -slacks(budget, one.footprint)[0].share)
    binding = slacks(budget, nearest.footprint)[0]
    raise SettingError(
        f"no student that was found fits: the {binding.name} is bound too tightly",
        where=f"budget: {binding.name}",
        expected=", ".join(str(one) for one in slacks(budget, nearest.footprint)),
        got=nearest.name,
        fix=f"allow more {binding.name}, or search for this budget",
    )


def _comparable(point: Point) -> tuple[bool, float]:
    """Of several uniform students of one budget the last is compared with: the best that keeps it, as far as one does."""
    return point.fits(point.budget), point.judged


def _costs(point: Point) -> tuple[float, float]:
    return (point.footprint.size, point.footprint.latency or 0.0)
