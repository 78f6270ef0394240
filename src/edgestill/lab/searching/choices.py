"""What a sampler chooses, as numbers with names, and the student that they stand for.

- Widths of blocks in one row share one number: a network of 56 layers has some 30 widths, which a search of a few dozen trials
  cannot tell apart. `layer2.*.conv1` is the width within each block of `layer2`.
- A number is the share that a width keeps of the teacher's, beside the others: the largest is made 1, since the scale says
  the rest.
- Rows of blocks have one more: how many of them are left out.
- Values of the recipe are tried where the search is told which.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

from edgestill.lab.searching.shape import Direction

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from optuna.distributions import BaseDistribution

    from edgestill.lab.searching.shape import Space

SMALLEST: Final = 0.25
"""The narrowest share beside the widest."""
_WIDTH, _LEFT_OUT, _RECIPE = "width: ", "left out: ", "recipe: "

Values = dict[str, Any]


@final
class Choices:
    """All that is chosen of a student and of its training.

    Args:
        space: the students.
        recipe: key -> values that are tried, the usual one first.
    """

    def __init__(self, space: Space, recipe: Mapping[str, Sequence[Any]] | None = None) -> None:
        self._rows = {name: len(places) for name, places in space.rows.items()}
        self._recipe = {key: tuple(values) for key, values in (recipe or {}).items()}
        self._groups: dict[str, list[str]] = {}
        for knob in space.knobs:
            self._groups.setdefault(self._group(knob.name), []).append(knob.name)

    def _group(self, knob: str) -> str:
        """The knob's name, with `*` for the number of its block."""
        for row in self._rows:
            if knob.startswith(f"{row}."):
                number, _, rest = knob.removeprefix(f"{row}.").partition(".")
                return f"{row}.*.{rest}" if number.isdecimal() and rest else knob
        return knob

    def distributions(self) -> dict[str, BaseDistribution]:
        """Of every number, as Optuna wants to be told."""
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

        found: dict[str, BaseDistribution] = {}
        if len(self._groups) > 1:  # beside which others would one be wide
            found |= {_WIDTH + name: FloatDistribution(SMALLEST, 1.0, log=True) for name in self._groups}
        found |= {_LEFT_OUT + name: IntDistribution(0, most) for name, most in self._rows.items()}
        return found | {
            _RECIPE + key: CategoricalDistribution(values) for key, values in self._recipe.items()
        }

    def direction(self, values: Values) -> Direction:
        """What the numbers stand for."""
        shares = {name: float(values.get(_WIDTH + name, 1.0)) for name in self._groups}
        largest = max(shares.values())
        return Direction(
            shares={knob: shares[group] / largest for group, knobs in self._groups.items() for knob in knobs},
            left_out={row: int(values[_LEFT_OUT + row]) for row in self._rows},
        )

    def recipe(self, values: Values) -> Values:
        """The values of the recipe."""
        return {key: values[_RECIPE + key] for key in self._recipe}

    def designs(self) -> Iterator[Values]:
        """What is tried before anything is known: the uniform student first, then what often does well.

        Fewer blocks of more width (each operator costs a little by itself), and widths that grow or shrink with the depth.
        """
        flat, growing = [0.0] * len(self._groups), self._slope()
        shallow = (0.0, 0.5, 1.0) if self._rows else (0.0,)
        for powers in (flat, growing, growing[::-1]) if len(flat) > 1 else (flat,):
            for share in shallow:
                yield self._values(powers, share)

    def _slope(self) -> list[float]:
        """0 for the last width, 1 for the first: powers of `SMALLEST`."""
        last = max(1, len(self._groups) - 1)
        return [1 - at / last for at in range(len(self._groups))]

    def _values(self, powers: list[float], shallow: float) -> Values:
        found: Values = {}
        if len(self._groups) > 1:
            found |= {
                _WIDTH + name: SMALLEST**power for name, power in zip(self._groups, powers, strict=True)
            }
        found |= {_LEFT_OUT + row: round(most * shallow) for row, most in self._rows.items()}
        return found | {_RECIPE + key: values[0] for key, values in self._recipe.items()}
