"""Which tensor of the teacher each tensor of the student comes from.

- The same name, and within numbered blocks (`layer1.0`, `layer1.1`, ...) of which the student has fewer: the first ones,
  or evenly spaced ones. The first is always the first: it is the one that changes resolution or width.
- A tensor that only one of them has, outside of such blocks, means another family.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from edgestill.core.errors import ModelError

if TYPE_CHECKING:
    from collections.abc import Callable, Collection

Blocks: TypeAlias = Literal["first", "uniform"]


@dataclass(frozen=True, slots=True)
class Pairs:
    """Where the student's tensors and modules come from.

    Attributes:
        names: the student's tensor names -> the teacher's.
        source: a module of the student -> the teacher's.
    """

    names: dict[str, str]
    source: Callable[[str], str]


def paired(student: Collection[str], teacher: Collection[str], blocks: Blocks) -> Pairs:
    """What of the student comes from what of the teacher.

    Args:
        student: its tensors' names.
        teacher: its tensors' names.
        blocks: which of the numbered ones give something, where the student has fewer.

    Raises:
        ModelError: not of one family.
    """
    ours, theirs = _children(student), _children(teacher)

    def source(name: str) -> str:
        return _source(name, ours, theirs) if blocks == "uniform" else name

    pairs = {name: source(name) for name in student}
    strange = {name for name, origin in pairs.items() if origin not in teacher}
    used = set(pairs.values())
    strange |= {
        name for name in teacher if name not in used and not _in_a_left_out_block(name, ours, theirs, used)
    }
    if strange:
        raise ModelError(
            "teacher and student are not of one family",
            where=", ".join(sorted(strange)[:4]),
            expected="the same layer names in both; the student may have fewer numbered blocks",
            got="names that only one of them has",
            fix="pass inherit=False, or cut a student out of the teacher with lab.carve",
        )
    return Pairs(pairs, source)


def _children(names: Collection[str]) -> dict[str, set[str]]:
    """Every prefix -> the numbers that stand below it."""
    found: dict[str, set[str]] = {}
    for name in names:
        parts = name.split(".")
        for at, part in enumerate(parts):
            if part.isdecimal():
                found.setdefault(".".join(parts[:at]), set()).add(part)
    return found


def _source(name: str, ours: dict[str, set[str]], theirs: dict[str, set[str]]) -> str:
    """Block `i` of `n` comes from block `i * N // n` of `N`."""
    mine: list[str] = []
    source: list[str] = []
    for part in name.split("."):
        have, whole = len(ours.get(".".join(mine), ())), len(theirs.get(".".join(source), ()))
        spaced = part.isdecimal() and 0 < have < whole
        source.append(str(int(part) * whole // have) if spaced else part)
        mine.append(part)
    return ".".join(source)


def _in_a_left_out_block(
    name: str, ours: dict[str, set[str]], theirs: dict[str, set[str]], used: set[str]
) -> bool:
    """Whether a numbered block above this tensor gave nothing to the student, while the student has others of its kind."""
    parts = name.split(".")
    for at, part in enumerate(parts):
        above = ".".join(parts[:at])
        if part.isdecimal() and 0 < len(ours.get(above, ())) < len(theirs[above]):
            block = f"{above}.{part}." if above else f"{part}."
            if not any(source.startswith(block) for source in used):
                return True
    return False
