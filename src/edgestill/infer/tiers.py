"""Several larger models as one: a neighbour, a gateway, the cloud, asked in this order until one answers.

- A tier that fails in any of our ways is passed over, and the next is asked with the time that is left. While a deadline
  is near, no tier but the last may use more than half of what is left: a frozen neighbour must not cost the cloud's answer.
- Why a tier failed is logged when it begins to, and when it fails otherwise, and that it answers again: a wrong token or address, or an
  output of another name, would go unnoticed. Of hedged questions it is not.
- Hedging, off unless asked for: where a tier has not answered within `hedge_after` seconds, the next is asked as well,
  and whichever answers first is taken. It buys time with bytes. The slower one is not waited for; what it says is dropped,
  and as long as `UNDER_WAY` such questions run on, nobody else is asked.
- `Bounded` lets so many questions through at once. One more is refused rather than queued, so that its asker answers
  alone in time: that is the back-pressure of a fleet whose cloud is slow.

All are `Predict`s, and a tier may itself be a cascade behind a server. An answer names the tiers that were asked for it.
"""

from __future__ import annotations

import logging
import queue
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import DeadlineError, EdgestillError, RefusedError, SettingError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.answer import Answer
    from edgestill.core.protocols import Clock, Predict


log = logging.getLogger(__name__)

UNDER_WAY: Final = 32
"""Threads of hedged questions, late ones included."""


@dataclass(frozen=True, slots=True)
class Tier:
    """One larger model.

    Attributes:
        name: in the answers, such as `gateway`.
        model: answers, or fails within the deadline that it is given.
    """

    name: str
    model: Predict


@final
class Tiers:
    """A `Predict` made of several.

    Args:
        tiers: in the order in which they are asked; at least one, each name once.
        clock: for the deadline.
        hedge_after: seconds after which the next is asked as well; None asks it only where the one before failed.

    Raises:
        SettingError: no tier, a name twice, or a negative wait.
    """

    def __init__(self, tiers: Sequence[Tier], *, clock: Clock, hedge_after: float | None = None) -> None:
        names = [tier.name for tier in tiers]
        if not names or len(set(names)) != len(names) or (hedge_after is not None and hedge_after < 0):
            raise SettingError(
                "these are no tiers",
                where="tiers",
                expected="one or more different names, and a wait of at least 0 s",
                got=f"{names}, {hedge_after}",
                fix="name each tier once",
            )
        self._tiers = tuple(tiers)
        self._clock = clock
        self._hedge_after = hedge_after
        self._free = threading.BoundedSemaphore(UNDER_WAY)
        self._failing: dict[str, str] = {}

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """The answer of the first tier that gives one.

        Raises:
            EdgestillError: what the last tier raised, where none answered.
        """
        if self._hedge_after is not None and len(self._tiers) > 1:
            return _Race(self._tiers, self._clock, self._hedge_after, self._free).run(batch, deadline)
        for place, tier in enumerate(self._tiers):
            last = place == len(self._tiers) - 1
            try:
                answer = _asked(tier, batch, self._share(deadline, last=last), self._tiers[:place])
            except EdgestillError as error:
                self._note(tier, error)
                if last:
                    raise
            else:
                if self._failing.pop(tier.name, None) is not None:
                    log.warning("%s answers again", tier.name)
                return answer
        raise AssertionError("there is a last tier")

    def _note(self, tier: Tier, error: EdgestillError) -> None:
        if self._failing.get(tier.name) != error.code:
            self._failing[tier.name] = error.code
            log.warning("%s does not answer: %s", tier.name, error)

    def _share(self, deadline: float | None, *, last: bool) -> float | None:
        """The deadline of one tier."""
        if deadline is None or last:
            return deadline
        now = self._clock.monotonic()
        return now + max(0.0, deadline - now) / 2


@final
class Bounded:
    """A `Predict` with at most so many questions under way.

    Args:
        model: is asked.
        at_once: questions, 1 or more.

    Raises:
        SettingError: a number below 1.
    """

    def __init__(self, model: Predict, *, at_once: int) -> None:
        if at_once < 1:
            raise SettingError(
                "a bound is out of range",
                where="at_once",
                expected="1 or more",
                got=at_once,
                fix="allow one question",
            )
        self._model = model
        self._at_once = at_once
        self._free = threading.BoundedSemaphore(at_once)

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """The model's answer.

        Raises:
            RefusedError: too many questions are under way.
            EdgestillError: as the model does.
        """
        if not self._free.acquire(blocking=False):
            raise RefusedError(
                "too many questions at once",
                where="teacher",
                expected=f"at most {self._at_once} under way",
                got="one more",
                fix="answer alone, or allow more at once",
            )
        try:
            return self._model.predict(batch, deadline=deadline)
        finally:
            self._free.release()


def _asked(tier: Tier, batch: NDArray[np.generic], deadline: float | None, before: Sequence[Tier]) -> Answer:
    """The tier's answer, with the names of all that were asked."""
    answer = tier.model.predict(batch, deadline=deadline)
    return replace(answer, tiers=(*(one.name for one in before), tier.name, *answer.tiers))


@final
class _Race:
    """One hedged question: each tier in a thread of its own, begun when the one before failed or took too long."""

    def __init__(
        self, tiers: Sequence[Tier], clock: Clock, hedge_after: float, free: threading.BoundedSemaphore
    ) -> None:
        self._tiers = tiers
        self._clock = clock
        self._hedge_after = hedge_after
        self._free = free
        self._said: queue.SimpleQueue[Answer | Exception] = queue.SimpleQueue()

    def run(self, batch: NDArray[np.generic], deadline: float | None) -> Answer:
        failure: Exception = _late()
        running = 0
        for place in range(len(self._tiers)):
            if self._left(deadline) == 0 or not self._begin(place, batch, deadline):
                break
            running += 1
            last = place == len(self._tiers) - 1
            while running:
                found = self._heard(deadline, hedge=not last)
                if found is None:  # nobody yet: hedge, or it is too late
                    break
                if not isinstance(found, Exception):
                    names = tuple(one.name for one in self._tiers[: place + 1])
                    return replace(found, tiers=(*names, *found.tiers))
                failure, running = found, running - 1
        raise failure

    def _begin(self, place: int, batch: NDArray[np.generic], deadline: float | None) -> bool:
        """Asks in a thread of its own; not where too many are under way."""
        if not self._free.acquire(blocking=False):
            return False

        def ask() -> None:
            try:
                self._said.put(self._tiers[place].model.predict(batch, deadline=deadline))
            except Exception as error:  # noqa: BLE001  # carried to the asker, whatever it is
                self._said.put(error)
            finally:
                self._free.release()

        threading.Thread(target=ask, name=f"tier-{self._tiers[place].name}", daemon=True).start()
        return True

    def _heard(self, deadline: float | None, *, hedge: bool) -> Answer | Exception | None:
        """What a tier says; None where none did within the wait."""
        left = self._left(deadline)
        wait = left
        if hedge:  # no tier but the last has more than half of the time
            wait = self._hedge_after if left is None else min(self._hedge_after, left / 2)
        try:
            return self._said.get(timeout=wait)
        except queue.Empty:
            return None

    def _left(self, deadline: float | None) -> float | None:
        """Seconds; None where there is no deadline."""
        return None if deadline is None else max(0.0, deadline - self._clock.monotonic())


def _late() -> DeadlineError:
    return DeadlineError(
        "no tier answered in time",
        where="tiers",
        expected="an answer before the deadline",
        got="none",
        fix="allow more time",
    )
