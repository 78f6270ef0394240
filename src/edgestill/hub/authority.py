"""The fleet's authority while the hub serves: its word, the steps of a hand-over, and which devices have not followed yet.

| exchange | what it does |
|---|---|
| `GET /v1/admin/authority` | the phase, who is believed and until when, and the devices that are behind |
| `POST /v1/admin/authority/begin` | a next authority is made and announced |
| `POST /v1/admin/authority/switch` | `{"force"}`: the next one issues; refused while devices do not believe it |
| `POST /v1/admin/authority/back` | the one before issues again |
| `POST /v1/admin/authority/finish` | `{"force"}`: the one before is dropped; refused while devices show its certificates |
| `POST /v1/admin/authority/abandon` | `{"force"}`: the next one is dropped; refused while devices show its certificates |

- What a device believes, and whose certificate it has, it says with its polls. A device that lies about it harms itself, or holds a step up
  until an operator forces it.
- Devices that enrolled without a key have no certificate, and are not counted.
- A forced step locks no device out for ever: it hears of the other authority by the word, and its credential gets it a certificate.
"""

from __future__ import annotations

import logging
import re
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, or_, select, update

from edgestill.core.errors import ConflictError, NotFoundError
from edgestill.core.wire import MAX_SEQUENCE
from edgestill.hub import bodies, handover
from edgestill.hub.access import hub_of
from edgestill.hub.tables import devices
from edgestill.trust import vouched
from edgestill.trust.root import epoch_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from sqlalchemy import ColumnElement
    from starlette.requests import Request
    from starlette.responses import Response

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.hub.registry import Device
    from edgestill.hub.service import Hub

log: Final = logging.getLogger(__name__)

MOST_NAMED: Final = 100
"""Devices that a status names."""
WARNED: Final = 365.25 * 86_400.0
"""Seconds before an authority's end from which on the hub warns of it."""

_BELIEVES: Final = re.compile(r"([0-9]{1,16}) ([0-9a-f]{64}|-)", re.ASCII)


def place(hub: Hub) -> int:
    """Of the hub's word; 0 while there is no root that lets it say one."""
    root = hub.artefacts.publication.root
    return 0 if root is None else vouched.place_of(epoch_of(root), hub.home.number)


def word(hub: Hub) -> bytes:
    """The hub's word, signed now.

    Raises:
        NotFoundError: there is no root yet that lets it say one.
    """
    root = hub.artefacts.publication.root
    if root is None:
        raise NotFoundError(
            "there is no root yet",
            where="root.json",
            expected="a root that names this hub's key",
            got="none",
            fix="upload root.json first",
        )
    said = vouched.Vouched(hub.home.authority.authorities, hub.home.number, epoch_of(root))
    return vouched.sign(said, hub.home.key)


async def remember(hub: Hub, device: Device, believes: str) -> None:
    """Writes down what a device says that it goes by, where that is another than before; a place that the hub has not come to is none."""
    told = _BELIEVES.fullmatch(believes)
    if told is None or int(told[1]) > min(MAX_SEQUENCE, place(hub)):
        return
    said = int(told[1]), "" if told[2] == "-" else told[2]
    if said != (device.believes, device.issuer):
        async with hub.database.write() as connection:
            await connection.execute(
                update(devices).where(devices.c.id == device.id).values(believes=said[0], issuer=said[1])
            )


async def status(request: Request) -> Response:
    """`GET /v1/admin/authority`."""
    return bodies.answer(await _status(hub_of(request)))


async def begin(request: Request) -> Response:
    """`POST /v1/admin/authority/begin`."""
    hub = hub_of(request)
    await bodies.read(request, at_most=2)
    now = hub.clock.now()
    return await _stepped(request, lambda: handover.begin(hub.home.folder, now=now))


def step(name: str) -> Callable[[Request], Awaitable[Response]]:
    """The endpoint of a later step."""

    async def run(request: Request) -> Response:
        hub = hub_of(request)
        fields = await bodies.read_object(request, where="authority")
        fields.only(("force",))
        force = fields.has("force") and fields.boolean("force")
        request.state.about = {"force": force}
        if not force and name != "back":
            await _require_none_behind(hub, name)
        return await _stepped(request, lambda: handover.STEPS[name](hub.home.folder))

    return run


def tell_of_end(hub: Hub) -> str:
    """Warns where the authority that issues ends within `WARNED`; what was said, empty where nothing."""
    left = hub.home.authority.until - hub.clock.now()
    if left > WARNED:
        return ""
    said = f"the fleet's authority ends in {max(left, 0) / 86_400:.0f} days: hand over to the next one (edgestill hub authority begin)"
    log.warning("%s", said)
    return said


async def _stepped(request: Request, change: Callable[[], None]) -> Response:
    hub = hub_of(request)
    standing = await hub.hand_over(change)
    request.state.about = {**getattr(request.state, "about", {}), "phase": standing.phase}
    log.warning("the hand-over of the fleet's authority is at: %s", standing.phase)
    return bodies.answer(await _status(hub))


async def _require_none_behind(hub: Hub, name: str) -> None:
    """Refuses a step that would leave devices with strangers."""
    digests = hub.home.authority.authorities.digests
    if name == "switch":
        late: ColumnElement[bool] = _does_not_believe(place(hub))
    elif name == "finish":
        late = or_(_does_not_believe(place(hub)), devices.c.issuer != digests[0])
    else:
        late = devices.c.issuer == digests[-1]
    count, names = await _behind(hub, late)
    if count:
        raise ConflictError(
            "devices have not followed yet",
            where="authority",
            expected="none",
            got=f"{count}: {', '.join(map(str, names[:10]))}{' and others' if count > 10 else ''}",
            fix="wait until they have polled, or revoke them; with --force they follow when they are back",
        )


async def _status(hub: Hub) -> JsonObject:
    standing = handover.standing_of(hub.home.folder)
    own = standing.authority.authorities
    late = _does_not_believe(place(hub))
    if standing.phase == "switched":
        late = or_(late, devices.c.issuer != own.digests[0])
    count, names = await _behind(hub, late)
    believed: list[Json] = [
        {"digest": f"sha256:{digest}", "until": one.not_valid_after_utc.timestamp()}
        for digest, one in zip(own.digests, own.certificates, strict=True)
    ]
    async with hub.database.read() as connection:
        query = select(func.count()).select_from(devices).where(_counts())
        all_of_them = int((await connection.execute(query)).scalar_one())
    return {
        "phase": standing.phase,
        "authorities": believed,
        "devices": all_of_them,
        "behind": count,
        "names": names,
        "warning": tell_of_end(hub),
    }


def _counts() -> ColumnElement[bool]:
    return devices.c.key.is_not(None) & devices.c.revoked_at.is_(None)


def _does_not_believe(newest: int) -> ColumnElement[bool]:
    """Another place than the newest: a later one was said by a hub that this one, restored, has taken the place of."""
    return or_(devices.c.believes.is_(None), devices.c.believes != newest)


async def _behind(hub: Hub, late: ColumnElement[bool]) -> tuple[int, list[Json]]:
    which = _counts() & late
    async with hub.database.read() as connection:
        count = await connection.execute(select(func.count()).select_from(devices).where(which))
        names = await connection.execute(
            select(devices.c.id).where(which).order_by(devices.c.id).limit(MOST_NAMED)
        )
        return int(count.scalar_one()), [one.id for one in names]
