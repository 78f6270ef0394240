"""Students that somebody else's callable makes: the search chooses its whole-number arguments, within their ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from edgestill.core.errors import EdgestillError, ModelError, SettingError
from edgestill.lab.inherit.knobs import Knob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

    from edgestill.lab.searching.shape import Direction

Range = tuple[int, int]


@final
class FactorySpace:
    """Networks by the arguments of their callable.

    Args:
        make: called with the chosen arguments by name and with `seed`; gives a network.
        ranges: argument -> its smallest and largest value; all of them grow with the scale.
        name: of the callable with whatever else decides what it makes: trials of two names are not mixed.

    Raises:
        SettingError: no range, or one that is none.
    """

    rows: Final[Mapping[str, tuple[int, ...]]] = {}

    def __init__(self, make: Callable[..., nn.Module], ranges: Mapping[str, Range], *, name: str) -> None:
        if not ranges:
            raise SettingError(
                "nothing to search among",
                where="search: arguments",
                expected="at least one argument with its range",
                got="none",
                fix="write for instance arguments = { width = [8, 64] }",
            )
        for argument, ends in ranges.items():
            if not _is_range(ends):
                raise SettingError(
                    "not a range",
                    where=f"search: arguments: {argument}",
                    expected="[smallest, largest], whole numbers from 1 on",
                    got=repr(ends)[:80],
                    fix=f"write {argument} = [8, 64]",
                )
        self.identity = f"{name}: {sorted(ranges.items())}"
        self._make, self._ranges = make, {name: (ends[0], ends[1]) for name, ends in ranges.items()}

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """An argument each; its units are the largest value."""
        return tuple(Knob(name=name, units=most) for name, (_, most) in self._ranges.items())

    def widths(self, direction: Direction, scale: float) -> dict[str, int]:
        """The arguments.

        Raises:
            SettingError: the direction names others.
        """
        unknown = [*(direction.shares.keys() - self._ranges.keys()), *direction.left_out]
        if unknown:
            raise SettingError(
                "a direction of another student",
                where=unknown[0],
                expected=", ".join(self._ranges),
                got=unknown[0],
                fix="take the names from the space's knobs",
            )
        return {
            name: max(least, round(most * min(1.0, scale * direction.shares.get(name, 1.0))))
            for name, (least, most) in self._ranges.items()
        }

    def built(self, direction: Direction, scale: float, *, seed: int = 0) -> nn.Module:
        """The network; SettingError as `widths`, ModelError where the callable fails."""
        widths = self.widths(direction, scale)
        try:
            return self._make(seed=seed, **widths)
        except EdgestillError:
            raise
        except Exception as error:
            raise ModelError(
                "the student's callable failed",
                where=self.identity.partition(":")[0],
                expected="a network for arguments within their ranges",
                got=f"{type(error).__name__}: {error}",
                fix=f"call it with {widths} by hand",
            ) from error


def _is_range(ends: Any) -> bool:
    return (
        isinstance(ends, list | tuple)
        and len(ends) == 2  # its ends
        and all(isinstance(one, int) and not isinstance(one, bool) for one in ends)
        and 1 <= ends[0] <= ends[1]
    )
