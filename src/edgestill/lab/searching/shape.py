"""Students that a teacher could have: each is a shape, and every shape with as much of everything as fits a budget.

A *direction* says how wide each width is beside the others, and which blocks are left out. A *shape* is a direction and a scale:
at scale 1 the widest keeps all its units, at smaller ones every width shrinks alike. So whatever a search proposes can be
made to fit a budget by its scale alone, and the uniform student is one direction among the others.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Protocol, final

from edgestill.core.errors import SettingError
from edgestill.lab.inherit import carve
from edgestill.lab.inherit.knobs import droppable, knobs, without_blocks

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from edgestill.core.jsonio import JsonObject
    from edgestill.lab.inherit.knobs import Knob
    from edgestill.lab.inherit.trace import Example
    from edgestill.lab.recipe import Selection


@dataclass(frozen=True, slots=True, kw_only=True)
class Direction:
    """How the parts of a student stand to each other.

    Attributes:
        shares: width -> its share of the teacher's units at scale 1, in (0, 1]; a width that is not named has 1.
        left_out: row of blocks -> how many of those that can be left out are, from the last on.
    """

    shares: Mapping[str, float] = field(default_factory=dict)
    left_out: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, share in self.shares.items():
            if not 0 < share <= 1:
                raise SettingError(
                    "a share is out of range",
                    where=name,
                    expected="more than 0, at most 1",
                    got=share,
                    fix="give the widest width 1",
                )

    def as_json(self) -> JsonObject:
        """As JSON."""
        return {"shares": dict(self.shares), "left_out": dict(self.left_out)}


UNIFORM: Final = Direction()
"""Every width alike, every block kept."""


class Space(Protocol):
    """The students there are.

    Attributes:
        knobs: the widths that can be chosen.
        rows: rows of blocks -> the places of those that can be left out.
        identity: what tells it from other spaces of the same teacher: trials of two are not mixed.
    """

    @property
    def knobs(self) -> tuple[Knob, ...]: ...  # noqa: D102  # told above

    @property
    def rows(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102

    @property
    def identity(self) -> str: ...  # noqa: D102

    def widths(self, direction: Direction, scale: float) -> dict[str, int]:
        """Units of each width; at least one.

        Raises:
            SettingError: the direction names what the space does not have.
        """
        ...

    def built(self, direction: Direction, scale: float, *, seed: int = 0) -> nn.Module:
        """The student, untrained.

        Raises:
            ModelError: there is no such student. SettingError: as `widths`.
        """
        ...


@final
class CarvedSpace:
    """The students that can be carved out of a teacher.

    Args:
        teacher: left as it is.
        example: one batch it takes.
        selection: which units a student keeps.
        keep: widths that stay, by name.

    Raises:
        ModelError: the teacher does not run on the example. SettingError: nothing of it can be cut.
    """

    def __init__(
        self,
        teacher: nn.Module,
        example: Example,
        *,
        selection: Selection = "magnitude",
        keep: tuple[str, ...] = (),
    ) -> None:
        self._teacher, self._example, self._selection = teacher, example, selection
        self.knobs: tuple[Knob, ...] = tuple(one for one in knobs(teacher, example) if one.name not in keep)
        self.rows = droppable(teacher, example)
        self.identity = f"carved by {selection}, keeping {sorted(keep)}"
        if not self.knobs:
            raise SettingError(
                "nothing to search among",
                where="keep" if keep else type(teacher).__name__,
                expected="a width that can be cut",
                got="none",
                fix="keep fewer widths, or bring a student of your own",
            )

    def _check(self, direction: Direction) -> None:
        """Raises SettingError where a direction names what the teacher does not have."""
        names = {one.name for one in self.knobs}
        unknown = [name for name in direction.shares if name not in names]
        unknown += [
            name
            for name, count in direction.left_out.items()
            if not 0 <= count <= len(self.rows.get(name, ()))
        ]
        if unknown:
            rows = ", ".join(f"{name} (up to {len(places)})" for name, places in self.rows.items())
            raise SettingError(
                "a direction of another teacher",
                where=unknown[0],
                expected=f"widths among {', '.join(sorted(names))}; blocks of {rows or 'none'}",
                got=direction.left_out.get(unknown[0], "a width of this name"),
                fix="take the names from the space's knobs and rows",
            )

    def widths(self, direction: Direction, scale: float) -> dict[str, int]:
        """Units of each width; at least one.

        Raises:
            SettingError: the direction names a width, or more blocks, than the teacher has.
        """
        self._check(direction)
        return {
            one.name: max(1, round(one.units * min(1.0, scale * direction.shares.get(one.name, 1.0))))
            for one in self.knobs
        }

    def built(self, direction: Direction, scale: float, *, seed: int = 0) -> nn.Module:
        """The student, which begins as a part of the teacher.

        Raises:
            ModelError: it cannot be carved so. SettingError: as `widths`.
        """
        self._check(direction)
        teacher = self._shallower(direction)
        known = {one.name for one in knobs(teacher, self._example)}
        units = {one.name: one.units for one in self.knobs}
        shares = {
            name: width / units[name]
            for name, width in self.widths(direction, scale).items()
            if name in known
        }
        return carve(teacher, self._example, ratio=1.0, widths=shares, selection=self._selection, seed=seed)[
            0
        ]

    def _shallower(self, direction: Direction) -> nn.Module:
        left = {
            name: self.rows[name][len(self.rows[name]) - count :]
            for name, count in direction.left_out.items()
            if count
        }
        return without_blocks(self._teacher, left) if left else self._teacher
