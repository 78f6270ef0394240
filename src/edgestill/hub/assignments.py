"""What a poll answers: the device's assignment, signed now, and the tag by which it is known.

- An assignment holds for between half of its lifetime and all of it. Its end falls on a grid, so that the same assignment
  has the same bytes, and the same tag, for half a lifetime: a poll in between answers "not modified".
- Nothing is stored: the counter and the target are in the registry, and the signature is made when it is asked for.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Final

from edgestill.core.digest import Digest
from edgestill.core.jsonio import canonical
from edgestill.core.release import Assignment
from edgestill.trust import assignment

if TYPE_CHECKING:
    from edgestill.core.jsonio import JsonObject
    from edgestill.hub.registry import Device
    from edgestill.trust.keys import SigningKey

JITTER: Final = 0.1


def envelope(
    device: Device, *, key: SigningKey, epoch: int, now: float, lifetime: float
) -> JsonObject | None:
    """The signed assignment of a device; None where nothing is assigned.

    Args:
        device: as the registry has it.
        key: the hub's.
        epoch: of that key, as the root says.
        now: hub time.
        lifetime: seconds.
    """
    return until(end(now, lifetime), device, key=key, epoch=epoch)


def end(now: float, lifetime: float) -> int:
    """When what is said now ends, in seconds since 1970: the same for half a lifetime."""
    half = lifetime / 2
    return math.ceil((math.floor(now / half) + 2) * half)


def until(expires: int, device: Device, *, key: SigningKey, epoch: int) -> JsonObject | None:
    """Likewise, good until a moment (seconds since 1970)."""
    if device.target is None:
        return None
    told = Assignment(
        device=device.id, counter=device.counter, target=device.target, expires=expires, epoch=epoch
    )
    return assignment.sign(told, key)


def tag(
    told: JsonObject | None,
    measure: JsonObject | None = None,
    vote: JsonObject | None = None,
    *,
    authorities: int = 0,
) -> str:
    """The entity tag (RFC 9110, 8.8.3) of an assignment or of none, of what is to be timed and voted on, and of the place of the word about authorities."""
    more: JsonObject = {"measure": measure} if measure is not None else {}
    more |= {"vote": vote} if vote is not None else {}
    more |= {"authorities": authorities} if authorities else {}
    said: JsonObject = told or {}
    return f'"{Digest.of(canonical({"run": said, **more} if more else said)).hex[:32]}"'


def spread(interval: float, chance: float) -> float:
    """The interval, longer or shorter by up to a tenth, so that a fleet does not call in step.

    Args:
        interval: seconds.
        chance: uniform in [0, 1).
    """
    return interval * (1 - JITTER + 2 * JITTER * chance)
