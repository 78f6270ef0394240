"""The one data budget of a device: what counts towards it, and what waits for a day with more of it.

| what | counted | where it does not fit |
|---|---|---|
| archives and patches from the hub | bodies | not begun that day; where it does not fit on a later day either, the archive comes in pieces |
| lists of the publisher and its roles, snapshots | with heads | not fetched, unless half of the day is left; a new assignment waits |
| questions to the hub's teacher or adapter, and its answers | bodies | not asked; the student answers alone |
| samples to be voted on | bodies | not begun that day, and not fetched where they are more than half of a whole day's budget |
| statistics, ballots | with heads | not sent, unless half of the day is left; they wait in the outbox. Those that are longer than a whole day's budget are dropped |
| polls, reports, new roots, the timestamp | with heads | sent all the same: they are small, and without them nobody could help the device |
| mirrors and neighbours | not | they are nearby, as their owner says; their line is not the metered one |

The number is the owner's (`Settings.bytes_per_day`). What a bundle's policy allows for questions is a bound within it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgestill.link.ledger import Ledger

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.protocols import Clock
    from edgestill.device.home import Home
    from edgestill.link.allowance import Budget

ALWAYS = (".root.json", "/timestamp.json")
"""Metadata whose length nobody knows beforehand; it says whether anything is new, and who may say so."""


def ledger_of(home: Home, clock: Clock, *, keeps_time: bool = False) -> Ledger:
    """The budget of the device that lives in this home; each of its processes opens its own, and the supervisor's keeps the time."""
    return Ledger(home.budget, bytes_per_day=home.settings.bytes_per_day, clock=clock, keeps_time=keeps_time)


def require_soon(budget: Budget, count: int) -> None:
    """Refuses what does not fit today, as long as waiting may help.

    Where half of a day is left, it need not: what is longer than that might meet no day that has more of it left, for polls come first. It is let through then,
    and the day ends overdrawn.

    Raises:
        SpentError: it waits.
    """
    left, day = budget.left(), budget.bytes_per_day
    if left is None or not day or left < day / 2:
        budget.require(count)


def fetching_within(budget: Budget, fetch: Callable[[str, int], bytes]) -> Callable[[str, int], bytes]:
    """Fetches metadata whose length is known only where it fits.

    Args:
        budget: is asked; what passes is counted by the transport.
        fetch: brings it; a `trust.client.Fetch`.
    """

    def within(path: str, at_most: int) -> bytes:
        if not path.endswith(ALWAYS):
            require_soon(budget, at_most)
        return fetch(path, at_most)

    return within
