"""Which of a device's samples are never trained on, because they judge what training made.

- Neighbours in time resemble each other: a sample that is held back tells little about a net that was trained on the one
  a second before. So whole stretches of time are held back, and around each lies a gap that is neither trained on
  nor judged (blocked cross-validation; Burman, Chow and Nolan 1994, "A cross-validatory method for dependent data").
- Of every `every` stretches in a row exactly one is held back, and a seeded hash says which: a device has samples to judge by
  after `every` stretches at the latest, and no hour of the day is always trained on or always held back.
- The part follows from the time alone. So it needs no state, and a clock that goes back comes to the same answer.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Final, Literal

from edgestill.core.errors import SettingError

Role = Literal["train", "held", "gap"]

MAX_STRETCH: Final = 1e7
MAX_EVERY: Final = 1_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Holding:
    """How samples are held back.

    Attributes:
        stretch: seconds, from 1 to 1e7.
        every: one stretch of so many is held back, from 2 to 1000.
        gap: seconds before and after a stretch that is held back; at most a stretch.
    """

    stretch: float = 600.0
    every: int = 5
    gap: float = 60.0

    def __post_init__(self) -> None:
        if not (
            1 <= self.stretch <= MAX_STRETCH
            and 2 <= self.every <= MAX_EVERY
            and 0 <= self.gap <= self.stretch
        ):
            raise SettingError(
                "a setting of what is held back is out of range",
                where="holding",
                expected=f"stretch from 1 to {MAX_STRETCH:g} s, every from 2 to {MAX_EVERY}, gap from 0 to a stretch",
                got=self,
                fix="correct it, or leave it out for the default",
            )

    def role(self, at: float, seed: bytes) -> Role:
        """What a sample of this time is for.

        Args:
            at: seconds since 1970, finite.
            seed: of the buffer.
        """
        number = math.floor(at / self.stretch)
        if self._is_held(number, seed):
            return "held"
        since, until = at - number * self.stretch, (number + 1) * self.stretch - at
        is_after = since < self.gap and self._is_held(number - 1, seed)
        is_before = until <= self.gap and self._is_held(number + 1, seed)
        return "gap" if is_after or is_before else "train"

    def _is_held(self, number: int, seed: bytes) -> bool:
        period, place = divmod(number, self.every)
        digest = hashlib.blake2b(period.to_bytes(16, "little", signed=True), digest_size=8, key=seed).digest()
        return int.from_bytes(digest, "little") % self.every == place
