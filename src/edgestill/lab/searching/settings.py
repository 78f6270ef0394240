"""How hard is searched."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Final

from edgestill.core.errors import SettingError
from edgestill.lab.recipe import Recipe
from edgestill.lab.settings import check_types, nearest

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject

RUNGS: Final = 3
THIRD: Final = 3
"""Of the students on a rung go on to the next, with so many times the epochs."""

_FIXED: Final = frozenset(
    {"epochs", "seed", "views", "top_k", "hint", "hint_channels", "hint_weight", "inherit"}
)
"""Keys of a recipe that are the same for all students: they decide what the teacher is asked, or which units are kept."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """How hard is searched, and for what.

    Attributes:
        trials: students that are tried for each budget.
        budgets: that a front is made of where none is asked for: so many, latencies and sizes by turns, from small to large.
        judged: share of the held-out data that students are chosen on, more than 0 and less than 1; the rest is kept for
            the winners, which are told by it.
        recipe: key of the recipe -> values that are tried, the usual one first.
        arguments: argument of the student's callable -> its smallest and largest value, where the student is named and not
            carved.
        seed: of what is proposed; the recipe's is that of the training.
    """

    trials: int = 24
    budgets: int = 5
    judged: float = 0.5
    recipe: dict[str, Any] = field(default_factory=dict)
    arguments: dict[str, Any] = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        check_types(self, what="a search")
        for name, holds, expected in (
            ("trials", 1 <= self.trials <= 10_000, "1 to 10,000"),
            ("budgets", 1 <= self.budgets <= 100, "1 to 100"),
            ("judged", 0 < self.judged < 1, "more than 0, less than 1"),
            ("seed", 0 <= self.seed < 2**32, "0 to 2^32 - 1"),
        ):
            if not holds:
                raise SettingError(
                    "a search's value is out of range",
                    where=name,
                    expected=expected,
                    got=getattr(self, name),
                    fix="leave it out where you are unsure",
                )
        for key, values in self.recipe.items():
            _check_values(key, values)

    def as_json(self) -> JsonObject:
        """As JSON."""
        return {one.name: getattr(self, one.name) for one in fields(self)}

    def rungs(self, recipe: Recipe) -> list[int]:
        """Epochs of each rung; the last has the recipe's."""
        found = {max(1, round(recipe.epochs / THIRD**left)) for left in range(RUNGS)}
        return sorted(found)


def _check_values(key: str, values: object) -> None:
    """Raises SettingError where these are no values of that key of a recipe."""
    known = {one.name: None for one in fields(Recipe) if one.name not in _FIXED}
    if key not in known:
        raise SettingError(
            "unknown key of a recipe",
            where=f"search: recipe: {key}",
            expected=", ".join(known),
            got=repr(key),
            fix=nearest(key, known),
        )
    if not isinstance(values, list) or not values:
        raise SettingError(
            "no values to try",
            where=f"search: recipe: {key}",
            expected="a list, the usual value first",
            got=repr(values)[:80],
            fix=f"write {key} = [first, second]",
        )
    for one in values:
        Recipe(**{key: one})
