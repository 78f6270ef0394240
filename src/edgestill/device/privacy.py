"""What may leave a device: the one place where that is decided.

- There are three levels, `nothing` < `features` < `raw`. The device has one and the bundle's policy has one; the
  stricter holds. Neither can loosen the other.
- Below `raw` no input leaves the device. At `features` the student's features are sent with a question where the bundle's own
  policy is of that level and names an adapter that was fitted for it; otherwise the student answers alone.
- Below `features` no statistics leave it either, and it does not vote: what it abstains from follows from its own sums.
- Where the policy asks for noise, it does not vote: a ballot has none, and no account would know of it.
- Counts (answers, errors, latencies) always leave: without them nobody could see that a bundle is bad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, cast, get_args

from edgestill.core.errors import SettingError
from edgestill.infer.policy import Leaves

if TYPE_CHECKING:
    from edgestill.infer.policy import Policy

LEVELS: Final[tuple[str, ...]] = get_args(Leaves)


def may_send_evidence(level: str) -> bool:
    """Whether a device of this level may send sums or votes, as far as that is the owner's to say; also those that were made under another level."""
    return level != LEVELS[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Permissions:
    """What follows from both levels.

    Attributes:
        asks: what of an input may be sent with a question; `nothing` asks nobody.
        retain: the teacher's side may keep inputs as evidence.
        statistics: sums over features may be sent.
        votes: votes on samples that everybody has may be sent.
    """

    asks: Leaves
    retain: bool
    statistics: bool
    votes: bool

    @classmethod
    def of(cls, device: str, policy: Policy) -> Self:
        """What the stricter of both permits.

        Args:
            device: its level.
            policy: the bundle's.

        Raises:
            SettingError: a level that there is not.
        """
        if device not in LEVELS:
            raise SettingError(
                "unknown privacy level",
                where="leaves",
                expected=" < ".join(LEVELS),
                got=device,
                fix="name one of these",
            )
        both = policy.limited_to(cast("Leaves", device))
        statistics = both.leaves != "nothing"
        votes = statistics and policy.statistics.noise is None
        return cls(asks=both.asks, retain=both.asks == "raw", statistics=statistics, votes=votes)
