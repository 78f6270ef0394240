"""How a device comes into the fleet: join tokens, used once or several times, and credentials.

- A join token is `est2.SECRET.ROOT.AUTHORITY`: ROOT is the SHA-256 of the root metadata the hub had when it made the token, and
  AUTHORITY that of the certificate of the fleet's authority (DER), so that whoever carries the token to a device carries the trust
  too. The hub keeps the digest of SECRET only. Tokens of older hubs, `est1.SECRET.ROOT`, go on.
- Enrolling takes one use of the token and makes the device, together or not at all.
- A device whose answer got lost may ask again with the same token, name, class and labels, as long as it never called
  with its credential: it gets a new one, and the use is not taken twice. A certificate that the first answer held is of no use
  any more, unless it is for the same key. With another token that holds it may ask again, too, `UNHEARD` seconds later, and
  that takes a use: what it got may have been of no use to it. Any other second claim of a name is refused, that of a revoked device included.
- A token of before another root, or of before another authority issues, is refused before it is used: the device would refuse the answer.
- A token that is unknown, spent, revoked or past its time gets one and the same answer.
- A token goes by the first `ID_LENGTH` hex digits of that digest, which tell nothing about it.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import case, func, insert, select, update

from edgestill.core.errors import AccessError, ConflictError, NotFoundError, SettingError
from edgestill.hub.access import digest_of
from edgestill.hub.tables import devices, join_tokens

if TYPE_CHECKING:
    from sqlalchemy import Row
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.core.wire import Enrol
    from edgestill.hub.certificates import Issued

MAX_USES: Final = 1_000_000
LONGEST: Final = 366 * 86_400.0
ID_LENGTH: Final = 12
UNHEARD: Final = 3600.0
"""Seconds after which a device that enrolled and never called does not keep others from its name: it calls at once where it can."""
MOST_LISTED: Final = 1_000
"""Tokens of a list, and devices of a token."""
REVOKED: Final = 0.0
"""When a revoked token ended: before any time, so that no clock brings it back."""

_JOIN: Final = r"est[12]\.([A-Za-z0-9_-]{20,100})\.([0-9a-f]{64})(?:\.([0-9a-f]{64}))?"


async def make_join_token(
    connection: AsyncConnection,
    *,
    secret: str,
    root: Digest,
    authority: str,
    uses: int,
    expires_in: float,
    now: float,
) -> str:
    """A new token; this is the only time that it can be seen.

    Args:
        connection: of a write.
        secret: fresh, URL-safe.
        root: digest of the root metadata that devices shall start from.
        authority: digest (hex) of the certificate of the fleet's authority.
        uses: devices that may enrol with it.
        expires_in: seconds from now.
        now: hub time.

    Raises:
        SettingError: uses or time out of range.
    """
    if not 1 <= uses <= MAX_USES or not 0 < expires_in <= LONGEST:
        raise SettingError(
            "a join token is out of range",
            expected=f"1 to {MAX_USES} uses, up to {LONGEST:.0f} s",
            got=f"{uses} uses, {expires_in} s",
            where="join token",
            fix="ask for fewer uses, or a shorter time",
        )
    await connection.execute(
        insert(join_tokens).values(
            digest=digest_of(secret), uses_left=uses, expires_at=now + expires_in, created_at=now
        )
    )
    return f"est2.{secret}.{root.hex}.{authority}"


async def enrol(
    connection: AsyncConnection,
    message: Enrol,
    *,
    credential: str,
    root: Digest,
    authority: str,
    now: float,
    issued: Issued | None = None,
) -> bool:
    """Makes the device and remembers the digest of its credential, and its key; whether it took a use, and is not asking again.

    Args:
        connection: of a write.
        message: of the device.
        credential: made for it.
        root: digest of the newest root, which the answer will hold.
        authority: digest (hex) of the certificate of the authority that issues.
        now: hub time.
        issued: the device's certificate; None where it asked for none.

    Raises:
        AccessError: the token is unknown, spent or past its time.
        ConflictError: the name is taken, or the token vouches for another root or authority: the device would not take the answer.
    """
    token = _digest_in(message.join_token)
    found = (await connection.execute(select(join_tokens).where(join_tokens.c.digest == token))).first()
    if found is None or now >= found.expires_at:
        raise _refused()
    known = (await connection.execute(select(devices).where(devices.c.id == message.device))).first()
    fresh = {
        "credential": digest_of(credential),
        "enrolled_at": now,
        "key": None if issued is None else issued.key,
        "certified_until": None if issued is None else issued.until,
        "join_token": token,
    }
    mine = devices.c.id == message.device
    is_again = known is not None and known.join_token == token
    if known is not None:
        _require_never_heard(known, message, waits=0.0 if is_again else UNHEARD, now=now)
    if found.uses_left < 1 and not is_again:
        raise _refused()
    _require_of_now(message.join_token, root, None if issued is None else authority)
    if is_again:
        await connection.execute(update(devices).where(mine).values(**fresh))
        return False
    await _take_use(connection, token, now)
    if known is not None:
        await connection.execute(update(devices).where(mine).values(**fresh))
        return True
    await connection.execute(
        insert(devices).values(
            id=message.device, hardware_class=message.hardware_class, labels=message.labels, **fresh
        )
    )
    return True


def _require_never_heard(known: Row[Any], message: Enrol, *, waits: float, now: float) -> None:
    """A name may be claimed again by the same device whose answer was lost or of no use to it: never by another once it has called."""
    is_same = (known.hardware_class, known.labels) == (message.hardware_class, message.labels)
    is_heard = known.last_seen is not None or known.revoked_at is not None
    if is_heard or not is_same or now < known.enrolled_at + waits:
        raise ConflictError(
            "the name is taken",
            where=repr(message.device),
            fix="enrol under another name",
            expected=f"a name that no device has; or of this class and labels, enrolled {UNHEARD:.0f} s ago, and never heard of",
            got="one that is enrolled",
        )


def _require_of_now(token: str, root: Digest, authority: str | None) -> None:
    """What the device would refuse costs neither its name nor a use."""
    match = re.fullmatch(_JOIN, token)
    named = ("", None) if match is None else (match[2], match[3])
    if named[0] != root.hex or (authority is not None and named[1] not in {None, authority}):
        raise ConflictError(
            "the join token is of before another root or authority",
            where="join_token",
            expected="a token that was made since",
            got="an older one; it was not used up",
            fix="make a new token: edgestill hub token",
        )


async def _take_use(connection: AsyncConnection, token: str, now: float) -> None:
    # asked and taken in one statement: two who come at once with the last use are not both let in
    taken = await connection.execute(
        update(join_tokens)
        .where(join_tokens.c.digest == token, join_tokens.c.uses_left >= 1, join_tokens.c.expires_at > now)
        .values(uses_left=join_tokens.c.uses_left - 1)
    )
    if taken.rowcount != 1:
        raise _refused()


async def join_tokens_listed(connection: AsyncConnection, now: float) -> JsonObject:
    """Those that there are and were, with how many devices came by each: what still holds first, then the newest.

    Returns:
        `{"tokens": [...], "more": whether there are others}`; of each token `state` is `holds`, `used up`, `ended` or `revoked`.
    """
    came = select(devices.c.join_token, func.count().label("came")).group_by(devices.c.join_token).subquery()
    holds = (join_tokens.c.expires_at > now) & (join_tokens.c.uses_left > 0)
    rows = await connection.execute(
        select(join_tokens, func.coalesce(came.c.came, 0).label("came"))
        .outerjoin(came, came.c.join_token == join_tokens.c.digest)
        .order_by(case((holds, 0), else_=1), join_tokens.c.created_at.desc(), join_tokens.c.digest)
        .limit(MOST_LISTED + 1)
    )
    found: list[Json] = [
        {
            "id": row.digest[:ID_LENGTH],
            "state": _state(row.uses_left, row.expires_at, now),
            "uses_left": row.uses_left,
            "devices": row.came,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
        }
        for row in rows
    ]
    return {"tokens": found[:MOST_LISTED], "more": len(found) > MOST_LISTED}


async def revoke_join_token(connection: AsyncConnection, named: str) -> JsonObject:
    """Ends a token for ever. The devices that came by it stay in the fleet.

    Args:
        connection: of a write.
        named: its id, or the token itself.

    Returns:
        `{"id", "devices": the first of them by name, "more": whether there are others}`.

    Raises:
        NotFoundError: there is no such token, or more than one.
    """
    digest = _digest_in(named)
    which = (
        join_tokens.c.digest == digest if digest else func.substr(join_tokens.c.digest, 1, ID_LENGTH) == named
    )
    rows = (await connection.execute(select(join_tokens).where(which))).all()
    if len(rows) != 1:
        raise NotFoundError(
            "no such join token",
            where="join tokens",
            expected="an id of the list, or a token",
            got="another",
            fix="list them: edgestill hub tokens list",
        )
    (row,) = rows
    mine = join_tokens.c.digest == row.digest
    await connection.execute(update(join_tokens).where(mine).values(expires_at=REVOKED))
    came = await connection.execute(
        select(devices.c.id)
        .where(devices.c.join_token == row.digest)
        .order_by(devices.c.id)
        .limit(MOST_LISTED + 1)
    )
    names: list[Json] = [one.id for one in came]
    return {"id": row.digest[:ID_LENGTH], "devices": names[:MOST_LISTED], "more": len(names) > MOST_LISTED}


def _state(uses_left: int, expires_at: float, now: float) -> str:
    if expires_at == REVOKED:
        return "revoked"
    if now >= expires_at:
        return "ended"
    return "holds" if uses_left else "used up"


def id_of(token: str) -> str:
    """What a join token goes by where it must not be shown."""
    return _digest_in(token)[:ID_LENGTH]


def _digest_in(token: str) -> str:
    """Of a join token's secret; empty where it is none."""
    match = re.fullmatch(_JOIN, token)
    return "" if match is None else digest_of(match[1])


def _refused() -> AccessError:
    return AccessError(
        "the join token is unknown, spent, revoked or past its time",
        fix="ask the operator for a new one",
        where="join_token",
        expected="a token that still holds",
        got="another",
    )
