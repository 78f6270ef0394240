"""Drafts within a budget: how much of it one takes, and the largest of a direction that fits."""

from __future__ import annotations

from functools import lru_cache
from math import inf
from typing import TYPE_CHECKING, final

from edgestill.core.errors import SettingError
from edgestill.core.footprint import Footprint, slacks
from edgestill.infer.memory import memory_of
from edgestill.lab.searching.draft import LEAST_SCALE, PRECISIONS, Shape
from edgestill.lab.searching.fit import fitting_scale

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgestill.core.budget import Budget
    from edgestill.core.footprint import Slack
    from edgestill.lab.searching.draft import Draft, Drafts, Precision
    from edgestill.lab.searching.profile import Profile
    from edgestill.lab.searching.shape import Direction


@final
class Fitting:
    """Finds what fits a budget.

    Args:
        drafts: of the space.
        profile: that latencies are predicted from; None where the budget has no bound on them.
        budget: what is bounded.
    """

    def __init__(self, drafts: Drafts, profile: Profile | None, budget: Budget) -> None:
        self._drafts, self._profile, self.budget = drafts, profile, budget

    def footprint(self, draft: Draft) -> Footprint:
        """What a draft takes, as far as the budget asks; the latency is predicted."""
        budget = self.budget
        latency = None
        if budget.latency is not None and self._profile is not None:
            latency = self._profile.seconds(draft)
        return Footprint(
            size=draft.size,
            latency=latency,
            memory=None if budget.memory is None else _memory(draft.model),
            hardware_class=self._drafts.hardware_class.name,
            source="predicted",
        )

    def share(self, draft: Draft) -> float:
        """Of the budget that it takes: of the bound that binds it most."""
        return max((_taken(one) for one in self._slacks(draft)), default=0.0)

    def largest(
        self, direction: Direction, precision: Precision, *, begin: float | None = None
    ) -> Draft | None:
        """The largest student of a direction that fits; None where even the narrowest does not."""

        def cost(scale: float) -> float:
            return self.share(self._drafts.of(Shape(direction=direction, scale=scale, precision=precision)))

        scale = fitting_scale(cost, least=LEAST_SCALE, **({} if begin is None else {"begin": begin}))
        if scale is None:
            return None
        return self._drafts.of(Shape(direction=direction, scale=scale, precision=precision))

    def precision(self, directions: Iterable[Direction]) -> Precision:
        """In which more of a student fits: of the first of these directions that does.

        Raises:
            SettingError: no student fits.
        """
        tried = list(directions)
        for direction in tried:
            found = {one: self.largest(direction, one) for one in self._precisions}
            scales = {one: draft.shape.scale for one, draft in found.items() if draft is not None}
            if scales:
                return max(scales, key=lambda one: scales[one])
        raise self._impossible(tried)

    @property
    def _precisions(self) -> tuple[Precision, ...]:
        if self.budget.latency is None or self._profile is None:
            return PRECISIONS
        return tuple(one for one in PRECISIONS if one in self._profile.tables)

    def _impossible(self, tried: list[Direction]) -> SettingError:
        """Names the bound that is in the way, and what the smallest student of these directions takes."""
        smallest = [
            self._drafts.of(Shape(direction=one, scale=LEAST_SCALE, precision=precision))
            for one in tried
            for precision in self._precisions
        ]
        nearest = self._slacks(min(smallest, key=self.share))
        binding = nearest[0]
        return SettingError(
            f"no student fits: the bound on {binding.name} is too tight",
            where=f"budget: {binding.name}",
            expected=f"at least {_room(nearest)}, which the smallest student takes",
            got=str(binding).partition(" of ")[2],
            fix=f"allow more {binding.name}, or bring a teacher or student with fewer operators",
        )

    def _slacks(self, draft: Draft) -> tuple[Slack, ...]:
        return slacks(self.budget, self.footprint(draft))


@lru_cache(maxsize=64)
def _memory(model: bytes) -> int:
    """Measured in processes of its own, once for each file."""
    return int(memory_of(model).value)


def _room(found: tuple[Slack, ...]) -> str:
    return ", ".join(str(one).partition(" of ")[0] for one in found)


def _taken(slack: Slack) -> float:
    if slack.bound == 0:
        return 0.0 if slack.value == 0 else inf
    return slack.value / slack.bound
