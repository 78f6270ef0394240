"""The one data budget of a device: what counts towards it, and what waits for a day with more of it.

| what | counted | where it does not fit |
|---|---|---|
| archives and patches from the hub | bodies | not begun; the agent tries again until it fits |
| lists of the publisher and its roles, snapshots | with heads | not fetched; a new assignment waits |
| questions to the hub's teacher or adapter, and its answers | bodies | not asked; the student answers alone |
| statistics | with heads | not sent; they wait in the outbox |
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


def ledger_of(home: Home, clock: Clock) -> Ledger:
    """The budget of the device that lives in this home; each of its processes opens its own."""
    return Ledger(home.budget, bytes_per_day=home.settings.bytes_per_day, clock=clock)


def fetching_within(budget: Budget, fetch: Callable[[str, int], bytes]) -> Callable[[str, int], bytes]:
    """Fetches metadata whose length is known only where it fits.

    Args:
        budget: is asked; what passes is counted by the transport.
        fetch: brings it; a `trust.client.Fetch`.
    """

    def within(path: str, at_most: int) -> bytes:
        if not path.endswith(ALWAYS):
            budget.require(at_most)
        return fetch(path, at_most)

    return within
