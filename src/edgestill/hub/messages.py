"""Evidence as it comes in: its id and its place among its device's messages, and what was not taken of it."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import MessageError
from edgestill.core.wire import ID_HEADER, MAX_SEQUENCE, SEQUENCE_HEADER
from edgestill.hub import refusals, registry

if TYPE_CHECKING:
    from starlette.requests import Request

    from edgestill.hub.service import Hub

NOT_TAKEN: Final = {"known": refusals.KNOWN, "stale": refusals.STALE}
_ID: Final = r"[A-Za-z0-9_-]{1,64}"


def message_id(request: Request) -> str:
    """What the device has made for this message; MessageError where it is none."""
    told = request.headers.get(ID_HEADER, "")
    if re.fullmatch(_ID, told) is None:
        raise MessageError("a message without its id", where=ID_HEADER, expected=_ID, got=told[:80])
    return told


def sequence(request: Request) -> int | None:
    """The message's place among its device's; None from a device that does not number them; MessageError where it is none."""
    told = request.headers.get(SEQUENCE_HEADER)
    if told is None:
        return None
    if re.fullmatch(r"[0-9]{1,16}", told, re.ASCII) is None or int(told) > MAX_SEQUENCE:
        raise MessageError(
            "not a place in a sequence",
            where=SEQUENCE_HEADER,
            expected=f"a whole number from 0 to {MAX_SEQUENCE}",
            got=told[:40],
        )
    return int(told)


async def refuse(hub: Hub, device: str, reason: str) -> None:
    """Counts what was not taken; a device that was revoked meanwhile counts no more."""
    async with hub.database.write() as connection:
        await registry.require_standing(connection, device)
        await refusals.count(connection, device, reason, hub.clock.now())
