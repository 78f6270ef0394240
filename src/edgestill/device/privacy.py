"""What may leave a device: the one place where that is decided.

- There are three levels, `nothing` < `features` < `raw`. The device has one and the bundle's policy has one; the
  stricter holds. Neither can loosen the other.
- Below `raw` no input leaves the device: nothing is escalated, the student answers alone.
- Below `features` no statistics leave it either.
- Counts (answers, errors, latencies) always leave: without them nobody could see that a bundle is bad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, Self, get_args

from edgestill.core.errors import SettingError

Leaves = Literal["nothing", "features", "raw"]
LEVELS: Final[tuple[str, ...]] = get_args(Leaves)


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What follows from a level.

    Attributes:
        escalate: inputs may be sent to the teacher.
        retain: the teacher's side may keep them as evidence.
        statistics: sums over features may be sent.
    """

    escalate: bool
    retain: bool
    statistics: bool

    @classmethod
    def of(cls, device: str, policy: str) -> Self:
        """What the stricter of both levels permits.

        Raises:
            SettingError: a level that there is not.
        """
        level = min(_rank(device), _rank(policy))
        raw, features = LEVELS.index("raw"), LEVELS.index("features")
        return cls(escalate=level >= raw, retain=level >= raw, statistics=level >= features)


def _rank(level: str) -> int:
    if level not in LEVELS:
        raise SettingError(
            "unknown privacy level",
            where="leaves",
            expected=" < ".join(LEVELS),
            got=level,
            fix="name one of these",
        )
    return LEVELS.index(level)
