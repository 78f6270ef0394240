"""What is needed before anything fits a budget: drafts of students, and how long such models take where they will run."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import SettingError
from edgestill.core.files import read_plain
from edgestill.core.footprint import slacks
from edgestill.core.hardware import HardwareClass
from edgestill.core.jsonio import parse_object
from edgestill.core.units import format_duration
from edgestill.infer.engines import engine_of, runs_here
from edgestill.infer.outlines import MAX_BYTES
from edgestill.infer.policy import Policy
from edgestill.infer.timing import time_engines
from edgestill.lab.fits import as_source, first_inputs
from edgestill.lab.forward import model_digest
from edgestill.lab.packing.gate import Gate
from edgestill.lab.packing.material import shown_inputs
from edgestill.lab.packing.wrapping import wrapping_of
from edgestill.lab.searching.bounds import Fitting
from edgestill.lab.searching.draft import Drafts, Shape
from edgestill.lab.searching.profile import Profile, taken_here
from edgestill.lab.searching.shape import UNIFORM, CarvedSpace

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from torch import nn

    from edgestill.core.budget import Budget
    from edgestill.lab.data.samples import Samples
    from edgestill.lab.data.source import Source
    from edgestill.lab.recipe import Recipe
    from edgestill.lab.searching.draft import Draft
    from edgestill.lab.searching.shape import Direction, Space

SHAPE: Final = "shape.json"
_SHOWN: Final = 32
_LOOSE: Final = 0.08
"""Of a budget that may be left over."""
_LOOKS: Final = 3
_HALF: Final = 0.5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Workshop:
    """Drafts, and their latencies.

    Attributes:
        drafts: of the students there are.
        profile: of where they will run; None where no latency is bounded and nobody has timed anything.
        measures: whether it is this machine that they are made for. A device of the same class may be many times as slow: who
            brings a profile wants that device's figures.
    """

    drafts: Drafts
    profile: Profile | None
    measures: bool

    def fitting(self, budget: Budget) -> Fitting:
        """What fits a budget, as far as is predicted."""
        return Fitting(self.drafts, self.profile, budget)

    def measured(self, drafts: Sequence[Draft]) -> list[float]:
        """Seconds within which 95 of 100 answers of each come on this machine; they take turns."""
        engines = {
            str(at): engine_of(one.model, self.drafts.hardware_class.name) for at, one in enumerate(drafts)
        }
        found = time_engines(engines, self.drafts.shown, clock=SystemClock())
        return [found[str(at)].p95.value for at in range(len(drafts))]

    def corrected(self, budget: Budget, draft: Draft) -> Budget | None:
        """The budget to ask for, so that students like this one take what the budget allows as measured.

        None where this one does already: no bound is exceeded, and little of the tightest is left.
        """
        if budget.latency is None or self.profile is None or not self.measures:
            return None
        measured = self.measured([draft])[0]
        footprint = replace(self.fitting(budget).footprint(draft), latency=measured)
        if 0 <= slacks(budget, footprint)[0].share <= _LOOSE:
            return None
        return budget.with_latency(budget.latency * self.profile.seconds(draft) / measured)

    def fitted(self, budget: Budget, direction: Direction = UNIFORM) -> Draft:
        """The largest student of a direction that fits, measured where this machine can.

        Raises:
            SettingError: none does.
        """
        draft = self._fitted(budget, direction)
        for _ in range(_LOOKS):
            wanted = self.corrected(budget, draft)
            if wanted is None:
                break
            draft = self._fitted(wanted, direction, asked=budget)
        return draft

    def _fitted(self, budget: Budget, direction: Direction, *, asked: Budget | None = None) -> Draft:
        """Where a narrower one is wanted than there is, the error tells what was asked for."""
        fitting = self.fitting(budget)
        try:
            precision = fitting.precision([direction])
        except SettingError as error:
            if asked is not None:
                error.got = (
                    f"{format_duration(asked.latency or 0)}, and the narrowest was measured to take more"
                )
            raise
        found = fitting.largest(direction, precision)
        assert found is not None  # or there would be no precision
        return found


def workshop(
    teacher: nn.Module,
    train: Samples | Source,
    heldout: Samples | Source,
    *,
    budgets: Sequence[Budget],
    recipe: Recipe,
    timed: bool | None = None,
    folder: Path | None = None,
    space: Space | None = None,
    profile: Profile | None = None,
    hardware_class: HardwareClass | None = None,
    policy: Policy | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Workshop:
    """Sets one up; a profile that the folder holds is used again.

    Args:
        teacher: that students are carved out of, where there is no other `space`.
        train: inputs of it are shown to the quantiser.
        heldout: a few of it are packed, to see what a bundle adds to its model.
        budgets: whose bounds it is for; none for any.
        recipe: which units students keep; for the lineage.
        timed: whether latencies are asked for; by default where a budget bounds one, or there is none.
        folder: for the profile, by family; None keeps none.
        space: the students.
        profile: of other hardware.
        hardware_class: where students will run; by default the profile's, or this machine's.
        policy: of the bundles.
        progress: called with (models made, models) while a profile is taken.

    Raises:
        SettingError: a budget that bounds nothing, or a latency that nobody can tell; a model there are no bundles of.
        DataError: too few held-out samples.
    """
    where = hardware_class or (HardwareClass(profile.hardware_class) if profile else HardwareClass.here())
    _check_bounds(budgets)
    if timed is None:
        timed = not budgets or any(one.latency is not None for one in budgets)
    if timed:
        _check_profile(where, profile)
    source = as_source(train, "train")
    space = space or CarvedSpace(teacher, first_inputs(source, 1), selection=recipe.inherit)
    policy = policy or Policy(labels=tuple(f"class {one}" for one in range(source.outputs)))
    wrapping = wrapping_of(
        space.built(UNIFORM, _HALF).eval(),
        teacher,
        train=train,
        heldout=heldout,
        policy=policy,
        recipe=recipe,
        hardware_class=where,
    )
    drafts = Drafts(space, shown_inputs(train, "train")[:_SHOWN], where, wrapping)
    measures = profile is None and runs_here(where.name)
    if profile is None and timed:
        family = Digest.of(f"{model_digest(teacher)}|{space.identity}".encode())
        path = None if folder is None else folder / f"profile-{family.hex[:8]}.json"
        profile = _kept(path, drafts, recipe.seed, progress)
    return Workshop(drafts=drafts, profile=profile, measures=measures)


def needed(budget: Budget | None) -> Budget:
    """The budget. Raises SettingError where there is none, and no student either."""
    if budget is None:
        raise SettingError(
            "neither a student nor a budget for one",
            where="student",
            expected="a student, or a budget that bounds its size, latency or memory",
            got="none of the two",
            fix="write for instance size=120kB,latency=1.5ms",
        )
    return budget


def fitted_student(
    teacher: nn.Module,
    train: Samples | Source,
    heldout: Samples | Source,
    *,
    budget: Budget | None,
    recipe: Recipe,
    folder: Path | None = None,
    hardware_class: HardwareClass | None = None,
    policy: Policy | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Callable[[int], nn.Module], Gate]:
    """The largest uniform part of the teacher that keeps a budget, by seed, and whether it does so in int8.

    Args are those of `workshop`.

    Raises:
        SettingError: no budget, or one that no student keeps; and as `workshop`.
    """
    budget = needed(budget)
    shop = workshop(
        teacher,
        train,
        heldout,
        budgets=[budget],
        recipe=recipe,
        folder=folder,
        hardware_class=hardware_class,
        policy=policy,
        progress=progress,
    )
    shape = _kept_shape(folder, _key(shop, teacher, budget), lambda: shop.fitted(budget).shape)
    return lambda seed: shop.drafts.space.built(shape.direction, shape.scale, seed=seed), Gate(
        int8=shape.precision == "int8"
    )


def _kept_shape(folder: Path | None, key: str, make: Callable[[], Shape]) -> Shape:
    """The shape that the folder holds for this key, or a new one: measured anew it might be another, and no run would go on."""
    path = None if folder is None else folder / SHAPE
    if path is not None and path.exists():
        told = parse_object(
            read_plain(path, what="a shape", at_most=MAX_BYTES), where=SHAPE, max_bytes=MAX_BYTES
        )
        if told.get("key") == key:
            return Shape.from_json(told)
    shape = make()
    if path is not None:
        write_whole(path, json.dumps({"key": key} | shape.as_json(), indent=1).encode(), mode=PUBLIC)
    return shape


def _key(shop: Workshop, teacher: nn.Module, budget: Budget) -> str:
    bundle = shop.drafts.of(
        Shape(direction=UNIFORM, scale=_HALF, precision="floats")
    ).size  # its labels count
    told = (
        f"{model_digest(teacher)}|{shop.drafts.space.identity}|{budget}|{shop.drafts.hardware_class}|{bundle}"
    )
    return str(Digest.of(told.encode()))


def _check_bounds(budgets: Sequence[Budget]) -> None:
    for budget in budgets:
        if budget.size is None and budget.latency is None and budget.memory is None:
            raise SettingError(
                "a budget that no student is too large for",
                where="budget",
                expected="a bound on size, latency or memory",
                got="none of these",
                fix="write for instance size=120kB,latency=1.5ms",
            )


def _check_profile(where: HardwareClass, profile: Profile | None) -> None:
    known = runs_here(where.name) if profile is None else where.name == profile.hardware_class
    if not known:
        raise SettingError(
            "latencies of other hardware than this",
            where="profile",
            expected=f"a profile of {where}",
            got="none" if profile is None else f"one of {profile.hardware_class}",
            fix="take one on such a device with `edgestill device profile`",
        )


def _kept(
    path: Path | None, drafts: Drafts, seed: int, progress: Callable[[int, int], None] | None
) -> Profile:
    """That of the file, or a new one."""
    if path is not None and path.exists():
        return Profile.from_bytes(read_plain(path, what="a profile", at_most=MAX_BYTES), where=str(path))
    found = taken_here(drafts, SystemClock(), seed=seed, progress=progress)
    if path is not None:
        write_whole(path, found.to_bytes(), mode=PUBLIC)
    return found
