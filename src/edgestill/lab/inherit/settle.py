"""The numbers that somebody's modules keep of their sizes, found by what a student computes with them.

- An attribute stays as it is unless the student is wrong with it: a number of steps, a temperature, the `d_model` whose
  root scales an embedding are the teacher's, whatever width they happen to equal. So is a size that nothing looks at.
- What goes wrong tells where to look: attributes of the modules that were running are tried first, as few of them as
  possible, and a try is kept where the student comes further with it.
"""

from __future__ import annotations

from itertools import combinations, islice, product
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import ModelError
from edgestill.lab.inherit.probe import compared
from edgestill.lab.inherit.trace import place

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from torch import nn

    from edgestill.lab.inherit.layers import Attribute, Setting
    from edgestill.lab.inherit.part import Expected
    from edgestill.lab.inherit.probe import Outcome
    from edgestill.lab.inherit.trace import Example

_MOST_TRIES: Final = 128  # for each step forward

Ranks = dict["Attribute", int]


def settled(
    student: nn.Module, attributes: Sequence[Attribute], example: Example, expected: Sequence[Expected]
) -> list[Setting]:
    """The attributes' values with which a student does what is expected of it.

    Args:
        student: its attributes are changed.
        attributes: with what each might be.
        example: as for `traced`.
        expected: of each call of its modules.

    Raises:
        ModelError: there are none; `where` is the module that does something else.
    """
    ranks: Ranks = dict.fromkeys(attributes, 0)
    outcome = _tried(student, ranks, example, expected)
    while outcome.got is not None:
        further = _further(student, ranks, outcome, (example, expected))
        if further is None:
            raise _refusal(student, attributes, outcome)
        ranks, outcome = further
    return [setting for attribute, rank in ranks.items() for setting in attribute.settings(rank)]


def _further(
    student: nn.Module, ranks: Ranks, outcome: Outcome, task: tuple[Example, Sequence[Expected]]
) -> tuple[Ranks, Outcome] | None:
    """The smallest change with which the student comes further than before."""
    near = [one for one in ranks if one.belongs_to(outcome.running)]
    for among in (near, list(ranks)):
        for steps in islice(_nearest([one.ways for one in among]), 1, _MOST_TRIES):
            moved = {one: (ranks[one] + step) % one.ways for one, step in zip(among, steps, strict=True)}
            found = _tried(student, ranks | moved, *task)
            if found.got is None or found.right > outcome.right:
                return ranks | moved, found
    return None


def _tried(student: nn.Module, ranks: Ranks, example: Example, expected: Sequence[Expected]) -> Outcome:
    for attribute, rank in ranks.items():
        for setting in attribute.settings(rank):
            setting.apply_(student)
    return compared(student, example, expected)


def _nearest(counts: list[int]) -> Iterator[tuple[int, ...]]:
    """Every choice of an option for each, those that differ from the first options in the fewest places first."""
    for many in range(len(counts) + 1):
        for places in combinations(range(len(counts)), many):
            for others in product(*(range(1, counts[at]) for at in places)):
                rank = dict(zip(places, others, strict=True))
                yield tuple(rank.get(at, 0) for at in range(len(counts)))


def _refusal(student: nn.Module, attributes: Sequence[Attribute], outcome: Outcome) -> ModelError:
    near = sorted({one.name for one in attributes if one.belongs_to(outcome.running)})
    tried = f" (with no value of {', '.join(near)} that was tried)" if near else ""
    return ModelError(
        "the carved student does not work as a part of its teacher",
        where=place(student, outcome.running[-1] if outcome.running else ""),
        expected="what its part of the teacher computes there",
        got=f"{outcome.got}{tried}",
        fix="its forward pass must take sizes from tensors or attributes, not from numbers; or name the layer in keep",
    )
