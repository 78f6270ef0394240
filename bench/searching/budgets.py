"""Random budgets: are they kept when measured again, and is the student better than the uniform one?

A budget draws a latency and a size, each evenly in its logarithm, between those of a narrow and a wide uniform student. All are searched for in one search, which takes up for one budget what was best for another. What is picked is
packed as its user would, and its file is measured again, in turns with the others. It is compared with the uniform student within the same
size that is as fast: uniform students of many widths, in int8 and in floats, are timed in turns with it, in one go, so that whatever disturbs the
machine disturbs them alike, and the widest that takes no longer than `ALIKE` times as long is trained by the recipe that the search was given. Both are trained
anew from other seeds beside the search's own, and told by the data that no choice has seen.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import inf
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from edgestill.core.budget import Budget
from edgestill.core.digest import Digest
from edgestill.core.errors import SettingError
from edgestill.core.jsonio import canonical
from edgestill.core.manifest import MODEL
from edgestill.lab.fits import as_source
from edgestill.lab.forward import weights_digest
from edgestill.lab.score import scores
from edgestill.lab.searching.draft import PRECISIONS, Shape
from edgestill.lab.searching.halves import halves
from edgestill.lab.searching.search import search
from edgestill.lab.searching.settings import Search
from edgestill.lab.searching.shape import UNIFORM
from edgestill.lab.searching.workshop import workshop
from edgestill.lab.teacher.asking import Asking
from edgestill.lab.training.train import Lesson, train_
from searching.measured import p95_of
from searching.teachers import world

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.lab.recipe import Recipe
    from edgestill.lab.searching.draft import Draft
    from edgestill.lab.searching.found import Found, Point
    from edgestill.lab.searching.workshop import Workshop
    from searching.teachers import World

SLOWER: Final = 1.10
"""A budget's latency may be exceeded by so much when it is measured again, on a machine that never stands still."""
ALIKE: Final = 1.03
"""Times the latency of what was picked, in favour of uniform students: two files that take as long are measured to differ by so much."""
SCALES: Final = tuple(np.geomspace(0.03, 1.0, 24))
"""Of the uniform students that are timed, each in both precisions."""
SEEDS: Final = (1,)
"""Of the comparisons: other than the search's own, under which its choice was lucky."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How much is spent.

    Attributes:
        budgets: random ones, for each teacher.
        trials: students that are tried for each.
    """

    budgets: int = 10
    trials: int = 10


EFFORTS: Final = {"reference": Effort(trials=7), "resnet20": Effort(trials=4)}
"""A student of the second teacher takes twice as long to train."""
QUICK: Final = Effort(budgets=2, trials=2)
_NARROW, _WIDE = 0.12, 0.7
"""Scales of the uniform students that budgets lie between."""


def measured(name: str, data: Path, folder: Path, *, quick: bool) -> dict[str, Any]:
    """One teacher's front, the random budgets, and the comparisons."""
    folder = folder / "quick" if quick else folder
    folder.mkdir(parents=True, exist_ok=True)
    effort, one = QUICK if quick else EFFORTS[name], world(name, data, folder, quick=quick)
    if quick:
        one = replace(one, recipe=replace(one.recipe, epochs=1, views=1))
    settings = Search(trials=effort.trials, judged=0.3, recipe=one.tried)
    shop = workshop(
        one.teacher,
        one.train,
        halves(one.heldout, settings.judged, one.recipe.seed)[0],
        budgets=(),
        recipe=one.recipe,
        folder=folder,
    )
    budgets = _drawn(shop, effort.budgets)
    found = search(
        one.teacher,
        one.train,
        validation=one.heldout,
        folder=folder,
        budgets=budgets,
        recipe=one.recipe,
        settings=settings,
        augment=one.augment,
    )
    packed = _Packed(found)
    answers = [(budget, _picked(found, budget)) for budget in budgets]
    picked = {point.name: point for _, point in answers if point is not None}
    times = p95_of({name: packed.model(point) for name, point in picked.items()}, one.heldout.inputs[:32])
    gains = _Gains(one, found, shop, folder)
    return {
        "title": one.title,
        "effort": asdict(effort),
        "teacher": float(scores(one.teacher, as_source(found.unseen, "unseen")).mean()),
        "latencies": found.profile.sentence if found.profile else None,
        "front": [point.as_json() for point in found.front],
        "points": {point.name: point.as_json() for point in found.points},
        "budgets": [
            {"size": budget.size, "latency": budget.latency}
            | (
                {"picked": None, "kept": True, "gain": None}
                if point is None
                else {
                    "picked": point.name,
                    "size_found": packed.size(point),
                    "latency_found": times[point.name],
                    "kept": _kept(budget, packed.size(point), times[point.name]),
                }
                | gains.of(budget, point, packed.model(point))
            )
            for budget, point in answers
        ],
    }


class _Packed:
    """Each picked student's bundle, once."""

    def __init__(self, found: Found) -> None:
        self._found, self._made = found, {}

    def _of(self, point: Point) -> Any:
        if point.name not in self._made:
            self._made[point.name] = self._found.run(point, Budget(size="1 GB")).pack()
        return self._made[point.name]

    def model(self, point: Point) -> bytes:
        """Its file."""
        return bytes(self._of(point).blobs[MODEL])

    def size(self, point: Point) -> int:
        """Of its bundle."""
        return int(self._of(point).manifest.size)


def _drawn(shop: Workshop, count: int) -> list[Budget]:
    """Random budgets that some uniform student keeps."""
    draw = np.random.default_rng(2026)
    assert shop.profile is not None
    ends = [
        [
            shop.drafts.of(Shape(direction=UNIFORM, scale=scale, precision=precision))
            for precision in PRECISIONS
        ]
        for scale in (_NARROW, _WIDE)
    ]
    latencies = [min(map(shop.profile.seconds, drafts)) for drafts in ends]
    sizes = [min(draft.size for draft in drafts) for drafts in ends]
    found: list[Budget] = []
    for _ in range(50 * count):
        latency = float(np.exp(draw.uniform(*np.log(latencies))))
        size = int(np.exp(draw.uniform(*np.log(sizes))))
        budget = Budget(latency=latency, size=size)
        try:
            shop.fitting(budget).precision([UNIFORM])
        except SettingError:
            continue
        found.append(budget)
        if len(found) == count:
            break
    return found


def _picked(found: Found, budget: Budget) -> Point | None:
    """None where every student of a budget was measured to take more than it allows: its user is told so, and gets none."""
    try:
        return found.pick(budget)
    except SettingError:
        return None


def _kept(budget: Budget, size: int, latency: float) -> bool:
    fits = budget.size is None or size <= budget.size
    return fits and (budget.latency is None or latency <= SLOWER * budget.latency)


class _Gains:
    """What is picked against the uniform student that is as fast, and no larger than allowed."""

    def __init__(self, one: World, found: Found, shop: Workshop, folder: Path) -> None:
        self._world, self._found, self._shop, self._folder = one, found, shop, folder
        self._unseen = as_source(found.unseen, "unseen")
        self._known: dict[str, list[NDArray[np.float64]]] = {}
        self._uniform = [
            shop.drafts.of(Shape(direction=UNIFORM, scale=float(scale), precision=precision))
            for scale in SCALES
            for precision in PRECISIONS
        ]

    def of(self, budget: Budget, point: Point, model: bytes) -> dict[str, Any]:
        """Points of accuracy over the uniform student, by seed, and the latencies of both; no gain where no uniform one keeps both."""
        uniform, latency, theirs_latency = self._as_fast(budget, model)
        if uniform is None:
            return {"gain": None, "latency_beside": latency, "why": "no uniform student is as fast"}
        ours, theirs = (
            self._scores(point.shape, point.recipe),
            self._scores(uniform.shape, self._found.recipe),
        )
        each = [100 * float((a - b).mean()) for a, b in zip(ours, theirs, strict=True)]
        return {
            "gain": float(np.mean(each)),
            "by_seed": each,
            "score": [float(one.mean()) for one in ours],
            "uniform_score": [float(one.mean()) for one in theirs],
            "uniform_widths": uniform.widths,
            "uniform_size": uniform.size,
            "uniform_precision": uniform.shape.precision,
            "uniform_latency": theirs_latency,
            "latency_beside": latency,
        }

    def _as_fast(self, budget: Budget, model: bytes) -> tuple[Draft | None, float, float]:
        """The widest uniform student within the budget's size that is as fast as this file, and p95 of both, in seconds."""
        small = [one for one in self._uniform if budget.size is None or one.size <= budget.size]
        times = p95_of(
            {"ours": model} | {str(at): one.model for at, one in enumerate(small)}, self._shop.drafts.shown
        )
        fast = [at for at in range(len(small)) if times[str(at)] <= ALIKE * times["ours"]]
        if not fast:
            return None, times["ours"], inf
        best = max(fast, key=lambda at: (small[at].shape.scale, -times[str(at)]))
        return small[best], times["ours"], times[str(best)]

    def _scores(self, shape: Shape, recipe: Recipe) -> list[NDArray[np.float64]]:
        """By seed, `[N]` of the unseen data."""
        key = f"{shape.as_json()} {recipe.as_json()}"
        if key not in self._known:
            self._known[key] = [self._kept(shape, replace(recipe, seed=seed)) for seed in SEEDS]
        return self._known[key]

    def _kept(self, shape: Shape, recipe: Recipe) -> NDArray[np.float64]:
        """Training takes minutes, and a bench may be interrupted."""
        of = {
            "shape": shape.as_json(),
            "recipe": recipe.as_json(),
            "teacher": str(weights_digest(self._world.teacher)),
            "data": str(self._world.train.digest),
        }
        path = self._folder / f"compared-{Digest.of(canonical(of)).hex[:16]}.npy"
        if not path.exists():
            np.save(path, self._score(shape, recipe))
        found: NDArray[np.float64] = np.load(path)
        return found

    def _score(self, shape: Shape, recipe: Recipe) -> NDArray[np.float64]:
        source = as_source(self._world.train, "train", self._world.augment)
        student = self._shop.drafts.space.built(shape.direction, shape.scale, seed=recipe.seed)
        asking = Asking(teacher=self._world.teacher, cache=self._folder / f"cache-{recipe.seed}")
        with asking.guide(source, recipe) as guide:
            train_(student, Lesson(source=source, guide=guide), recipe)
        return scores(student, self._unseen)
