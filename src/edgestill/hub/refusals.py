"""What devices sent as sums or ballots and the hub did not take: counted by device and reason, so that a liar can be found.

Reasons are the hub's own words (an error's `what`), never the sender's. A device has at most `MOST_REASONS` of them; further ones are
counted together. So each device takes a bounded number of rows, however much it sends.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select, update

from edgestill.hub.database import insert_once
from edgestill.hub.tables import devices, refusals

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import JsonObject

MOST_REASONS: Final = 32
MOST_NAMED: Final = 20
"""Devices that are named for each reason, those with the most first."""

TOO_LONG: Final = "a message is too long"
KNOWN: Final = "known already"
STALE: Final = "older than what counts"
_OTHERS: Final = "others"
_MOST_COUNT: Final = 2**53 - 1


async def count(connection: AsyncConnection, device: str, reason: str, now: float) -> None:
    """One more message of this device that was not taken.

    Args:
        connection: of a write.
        device: who sent it.
        reason: in the hub's words.
        now: hub time.
    """
    row = {"device_id": device, "reason": await _counted_as(connection, device, reason[:100])}
    mine = (refusals.c.device_id == device) & (refusals.c.reason == row["reason"])
    await insert_once(connection, refusals, [row | {"count": 0, "last_at": now}])
    await connection.execute(
        update(refusals)
        .where(mine, refusals.c.count < _MOST_COUNT)
        .values(count=refusals.c.count + 1, last_at=now)
    )


async def counts(connection: AsyncConnection) -> JsonObject:
    """Reason -> how many messages, of how many devices, and which sent the most; of devices that were revoked, too."""
    found: dict[str, JsonObject] = {}
    rows = await connection.execute(
        select(refusals.c.reason, refusals.c.device_id, refusals.c.count)
        .join(devices, devices.c.id == refusals.c.device_id)
        .order_by(refusals.c.reason, refusals.c.count.desc(), refusals.c.device_id)
    )
    for reason, device, number in rows:
        one = found.setdefault(reason, {"messages": 0, "devices": 0, "most": {}})
        one["messages"] = min(_MOST_COUNT, _number(one["messages"]) + number)
        one["devices"] = _number(one["devices"]) + 1
        most = one["most"]
        assert isinstance(most, dict)
        if len(most) < MOST_NAMED:
            most[device] = number
    return dict(found)


async def _counted_as(connection: AsyncConnection, device: str, reason: str) -> str:
    mine = refusals.c.device_id == device
    known = await connection.execute(select(refusals.c.reason).where(mine, refusals.c.reason == reason))
    if known.first() is not None:
        return reason
    number = await connection.execute(select(func.count()).select_from(refusals).where(mine))
    return reason if number.scalar_one() < MOST_REASONS - 1 else _OTHERS


def _number(value: object) -> int:
    assert isinstance(value, int)
    return value
