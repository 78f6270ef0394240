"""A budget in, a student out: drafts, a profile of latencies, a hunt for each budget, and what came of them, measured.

- Held-out data is cut in two: students are chosen on one part, and the winners are told by the other.
- Latencies are predicted while searching and measured at the end, on a machine that does nothing else then. Where the best
  student of a budget turns out slower or faster than was predicted, it is made anew at the scale that fits.
- Whatever is done stays done: the same call in the same folder goes on. Another teacher, data set, recipe or budget is another
  search, which may share the folder.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

import numpy as np

from edgestill.core.budget import Budget
from edgestill.core.digest import Digest
from edgestill.core.errors import SettingError
from edgestill.core.jsonio import canonical
from edgestill.lab.data.source import ArraySource
from edgestill.lab.fits import as_source, check_data, check_model
from edgestill.lab.forward import model_digest
from edgestill.lab.packing.material import labelled, shown_inputs, spread
from edgestill.lab.progress import Progress, shown
from edgestill.lab.recipe import Recipe
from edgestill.lab.searching.choices import Choices
from edgestill.lab.searching.draft import PRECISIONS, Shape
from edgestill.lab.searching.found import Found, Point
from edgestill.lab.searching.halves import halves
from edgestill.lab.searching.hunt import Hunt, storage_in
from edgestill.lab.searching.school import School
from edgestill.lab.searching.settings import Search
from edgestill.lab.searching.shape import UNIFORM
from edgestill.lab.searching.workshop import workshop
from edgestill.lab.teacher.asking import Asking

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager
    from pathlib import Path

    from optuna.storages import BaseStorage
    from torch import nn

    from edgestill.core.hardware import HardwareClass
    from edgestill.infer.policy import Policy
    from edgestill.lab.data.augment import Augment
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import Source
    from edgestill.lab.progress import Show
    from edgestill.lab.searching.hunt import Finished
    from edgestill.lab.searching.profile import Profile
    from edgestill.lab.searching.shape import Space
    from edgestill.lab.searching.workshop import Workshop
    from edgestill.lab.teacher.asking import When

_NARROW, _WIDE = 0.12, 0.7
_MENDINGS: Final = 2
_SHOWN: Final = 256


def search(
    teacher: nn.Module,
    train: Samples | Source,
    *,
    validation: Samples | Source,
    folder: Path,
    budgets: Sequence[Budget] = (),
    recipe: Recipe | None = None,
    settings: Search | None = None,
    space: Space | None = None,
    augment: Augment | None = None,
    ask: When = "cached",
    profile: Profile | None = None,
    hardware_class: HardwareClass | None = None,
    policy: Policy | None = None,
    storage: str = "",
    helpers: AbstractContextManager[object] | None = None,
    measure: bool = True,
    progress: Show | None = None,
) -> Found:
    """The best students within some budgets.

    Args:
        teacher: as for `distill`.
        train: as for `distill`.
        validation: held-out data with labels, of which one part chooses and the other tells.
        folder: for trials, weights and the teacher's answers; the same call goes on in it.
        budgets: each bounds size, latency or memory; by default latencies and sizes by turns, from small to large.
        recipe: how students are trained to the end; by default as `distill`'s.
        settings: how hard is searched.
        space: the students; by default those that can be carved out of the teacher.
        augment: as for `distill`.
        ask: as for `distill`.
        profile: latencies of the hardware class, where that is not this machine's; by default they are taken here.
        hardware_class: where the students will run; by default this machine's, or the profile's.
        policy: of the bundles, for their size.
        storage: address of a database that many machines share; by default a journal in the folder.
        helpers: other processes that take part: entered before the first trial, left after the last, when they must be
            done, since latencies are measured then.
        measure: False in such a process, which then comes back with what is known so far.
        progress: called with how far each phase is.

    Raises:
        SettingError: a budget that no student fits, or that bounds nothing a search can keep. DataError: too little
            held-out data. Whatever `distill` raises before it trains.
    """
    recipe, settings = recipe or Recipe(epochs=30, soft_weight=0.7), settings or Search()
    source, heldout = as_source(train, "train", augment), as_source(validation, "validation")
    check_data(source, heldout)
    check_model("teacher", teacher, source, heldout)
    judge, unseen = halves(validation, settings.judged, recipe.seed)
    folder.mkdir(parents=True, exist_ok=True)
    shop = workshop(
        teacher,
        train,
        judge,
        budgets=budgets,
        recipe=recipe,
        folder=folder,
        space=space,
        profile=profile,
        hardware_class=hardware_class,
        policy=policy,
        progress=shown(progress, "profiling"),
    )
    asking = Asking(teacher=teacher, when=ask, cache=folder / "cache")
    with asking.guide(source, _asks(recipe, settings), progress=shown(progress, "asking")) as guide:
        school = School(
            space=shop.drafts.space,
            source=source,
            guide=guide,
            judge=labelled(judge, "validation"),
            recipe=recipe,
            shown=spread(shown_inputs(train, "train"), _SHOWN),
            hardware_class=shop.drafts.hardware_class,
        )
        searching = _Searching(
            shop=shop,
            school=school,
            settings=settings,
            folder=folder,
            storage=storage_in(folder, storage),
            identity=_identity(school, teacher, settings, shop),
            progress=progress,
        )
        with helpers or nullcontext():
            hunts = searching.hunted(budgets or searching.ladder())
        points = searching.points(hunts, measure=measure and shop.measures)
    if measure and not points:
        raise SettingError(
            "no student was trained to the end",
            where="search",
            expected="at least one",
            got="; ".join(dict.fromkeys(why for hunt in hunts for why in hunt.reasons))[:400] or "none",
            fix="lower the learning rate, or allow more trials",
        )
    found = Found(
        teacher=teacher,
        space=shop.drafts.space,
        train=train,
        judge=judge,
        unseen=unseen,
        augment=augment,
        recipe=recipe,
        settings=settings,
        profile=shop.profile,
        hardware_class=shop.drafts.hardware_class,
        points=tuple(one for one in points if one.weights.exists()),
    )
    return found.told() if measure else found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Searching:
    """The hunts, one budget after the other."""

    shop: Workshop
    school: School
    settings: Search
    folder: Path
    storage: BaseStorage
    identity: Digest
    progress: Show | None

    @property
    def _choices(self) -> Choices:
        return Choices(self.shop.drafts.space, self.settings.recipe)

    def ladder(self) -> list[Budget]:
        """Latencies and sizes of the uniform student by turns, from narrow to wide: a student may be fast and large, or small and slow."""
        assert self.shop.profile is not None
        precisions = [one for one in PRECISIONS if one in self.shop.profile.tables]
        found = []
        for at, scale in enumerate(np.geomspace(_NARROW, _WIDE, self.settings.budgets).tolist()):
            drafts = [
                self.shop.drafts.of(Shape(direction=UNIFORM, scale=scale, precision=one))
                for one in precisions
            ]
            if at % 2:
                found.append(Budget(size=min(one.size for one in drafts)))
            else:
                found.append(Budget(latency=min(map(self.shop.profile.seconds, drafts))))
        return found

    def hunted(self, budgets: Sequence[Budget]) -> list[Hunt]:
        """The hunts of all budgets; what was best for the last two is tried early for the next."""
        hunts: list[Hunt] = []
        count = len(budgets) * self.settings.trials
        for at, budget in enumerate(budgets):
            hunt = self._hunt(budget)
            hints = [one.values for other in hunts[-1:-3:-1] for one in other.finished()[:1]]
            hunt.run(hints, progress=_counted(self.progress, at * self.settings.trials, count))
            hunts.append(hunt)
        return hunts

    def points(self, hunts: list[Hunt], *, measure: bool) -> tuple[Point, ...]:
        """What came of them; where it is measured, the best of each budget is made to fit as measured."""
        if measure:
            for hunt in hunts:
                self._mend(hunt)
        return self._told([(hunt, one) for hunt in hunts for one in hunt.finished()], measure=measure)

    def _hunt(self, budget: Budget) -> Hunt:
        fitting = self.shop.fitting(budget)
        name = ",".join(
            f"{key}={value!r}"
            for key, value in (("size", budget.size), ("latency", budget.latency), ("memory", budget.memory))
            if value is not None
        )
        directions = map(self._choices.direction, self._choices.designs())
        return Hunt(
            f"{self.identity.hex[:8]}-{name}",
            self.storage,
            fitting=fitting,
            precision=fitting.precision(directions),
            choices=self._choices,
            school=self.school,
            settings=self.settings,
            folder=self.folder / "students",
        )

    def _mend(self, hunt: Hunt) -> None:
        """Makes the best student anew, and the uniform one, where it is measured to take more than its budget, or a good deal less.

        Once for each: measured again it might be a little off again, and a search that is called again shall find what it
        has found.
        """
        for one in _worth_mending(hunt.finished()):
            now: Finished | None = one
            for _ in range(_MENDINGS):
                wanted = None
                if now is not None:
                    wanted = self.shop.corrected(hunt.fitting.budget, self.shop.drafts.of(now.shape))
                if now is None or wanted is None:
                    break
                now = hunt.again(now, self.shop.fitting(wanted))

    def _told(self, finished: list[tuple[Hunt, Finished]], *, measure: bool) -> tuple[Point, ...]:
        drafts = [self.shop.drafts.of(one.shape) for _, one in finished]
        footprints = [
            hunt.fitting.footprint(draft) for (hunt, _), draft in zip(finished, drafts, strict=True)
        ]
        if measure and drafts:
            footprints = [
                replace(one, latency=seconds, source="measured")
                for one, seconds in zip(footprints, self.shop.measured(drafts), strict=True)
            ]
        return tuple(
            Point(
                name=f"{hunt.name}/{one.number}",
                budget=hunt.fitting.budget,
                shape=one.shape,
                widths=draft.widths,
                recipe=self.school.recipe_of(self.school.recipe.epochs, self._choices.recipe(one.values)),
                uniform=one.uniform,
                footprint=footprint,
                judged=one.score,
                weights=one.weights,
            )
            for (hunt, one), draft, footprint in zip(finished, drafts, footprints, strict=True)
        )


def _worth_mending(finished: list[Finished]) -> list[Finished]:
    """The best student and the uniform one, unless they were made anew already."""
    mended = {one.mends for one in finished}
    first = [one for one in finished if one.mends is None]
    return [one for one in first if (one is first[0] or one.uniform) and one.number not in mended]


def _asks(recipe: Recipe, settings: Search) -> Recipe:
    """The recipe, with a teacher where any that is tried has one."""
    tried = settings.recipe.get("soft_weight", ())
    return recipe if recipe.distils else replace(recipe, soft_weight=max((recipe.soft_weight, *tried)))


def _identity(school: School, teacher: nn.Module, settings: Search, shop: Workshop) -> Digest:
    """Of everything that trials must have in common to be compared; not of how many there are."""
    told = settings.as_json() | {"trials": None, "budgets": None}
    data, judge = school.source, ArraySource.of(school.judge)
    space = shop.drafts.space
    parts = (
        model_digest(teacher),
        space.identity,
        data.digest,
        data.views_digest,
        judge.digest,
        school.recipe.digest,
        shop.drafts.hardware_class,
    )
    return Digest.of("|".join([*map(str, parts), canonical(told).decode()]).encode())


def _counted(show: Show | None, before: int, of: int) -> Callable[[int, int], None] | None:
    """Trials over all budgets."""
    if show is None:
        return None
    return lambda done, _: show(Progress(phase="searching", done=before + done, of=of))
