"""Operators: people and programs with a token each, in one of four roles.

| role | may |
|---|---|
| `viewer` | look at the fleet, releases, rollouts and counts |
| `operator` | likewise; start and stop rollouts, let devices join and revoke them, read evidence, ask the teacher |
| `publisher` | look, and hand over root, bundles and lists |
| `admin` | everything; make and revoke operators, and read the audit log |

Whoever has the hub's own folder has `operator.token`, which is an admin's and named `owner`. Of other tokens the hub keeps the digest only.
A name is given once: the audit log means one person by it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import insert, select, update

from edgestill.core.errors import ConflictError, NotFoundError, SettingError
from edgestill.hub.tables import operators

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import JsonObject

OWNER: Final = "owner"
TOKEN: Final = "eso1."  # noqa: S105  # how secrets begin, not one
"""How an operator's token begins."""
ROLES: Final = ("viewer", "operator", "publisher", "admin")
RIGHTS: Final = {
    "view": frozenset(ROLES),
    "operate": frozenset({"operator", "admin"}),
    "publish": frozenset({"publisher", "admin"}),
    "administer": frozenset({"admin"}),
}
"""Right -> roles that have it."""
LONGEST: Final = 10 * 366 * 86_400.0
_NAME: Final = r"[a-z0-9][a-z0-9._-]{0,63}"


@dataclass(frozen=True, slots=True)
class Operator:
    """Who calls.

    Attributes:
        name: in the audit log.
        role: one of `ROLES`.
    """

    name: str
    role: str

    def may(self, right: str) -> bool:
        """Whether the role has this right."""
        return self.role in RIGHTS[right]


async def add(
    connection: AsyncConnection, *, name: str, role: str, digest: str, expires_in: float | None, now: float
) -> None:
    """Makes an operator.

    Args:
        connection: of a write.
        name: lower case, digits, points and hyphens.
        role: one of `ROLES`.
        digest: of the token.
        expires_in: seconds from now; None for no end.
        now: hub time.

    Raises:
        SettingError: a name, role or time out of range. ConflictError: the name was given before.
    """
    if re.fullmatch(_NAME, name) is None or name == OWNER or role not in ROLES:
        raise SettingError(
            "not an operator",
            where="operator",
            expected=f"a name {_NAME}, not {OWNER!r}, and one of {', '.join(ROLES)}",
            got=f"{name[:80]!r}, {role[:40]!r}",
            fix="choose another name or role",
        )
    if expires_in is not None and not 0 < expires_in <= LONGEST:
        raise SettingError(
            "a lifetime out of range",
            where="expires_in",
            expected=f"more than 0 and at most {LONGEST:g} s",
            got=expires_in,
            fix="leave it out for a token without an end",
        )
    known = await connection.execute(select(operators.c.name).where(operators.c.name == name))
    if known.first() is not None:
        raise ConflictError(
            "the name was given before",
            where=f"operator {name}",
            expected="a name that no operator has or had",
            got=name,
            fix="choose another: the audit log means one person by it",
        )
    expires_at = None if expires_in is None else now + expires_in
    await connection.execute(
        insert(operators).values(name=name, role=role, token=digest, created_at=now, expires_at=expires_at)
    )


async def by_token(connection: AsyncConnection, digest: str, now: float) -> Operator | None:
    """Whose token it is; None where it is nobody's, has ended, or was revoked."""
    row = (await connection.execute(select(operators).where(operators.c.token == digest))).first()
    if row is None or row.revoked_at is not None or (row.expires_at is not None and now >= row.expires_at):
        return None
    return Operator(row.name, row.role)


async def revoke(connection: AsyncConnection, name: str, now: float) -> float:
    """Ends an operator's token for ever; when that was. Doing it twice changes nothing.

    Raises:
        NotFoundError: no such operator.
    """
    row = (await connection.execute(select(operators).where(operators.c.name == name))).first()
    if row is None:
        raise NotFoundError(
            "no such operator",
            where="operators",
            expected="a name of the list",
            got=name[:80],
            fix="list them",
        )
    if row.revoked_at is not None:
        return float(row.revoked_at)
    await connection.execute(update(operators).where(operators.c.name == name).values(revoked_at=now))
    return now


async def listed(connection: AsyncConnection) -> list[JsonObject]:
    """All there are and were, by name."""
    rows = await connection.execute(select(operators).order_by(operators.c.name))
    return [
        {
            "name": row.name,
            "role": row.role,
            "created_at": row.created_at,
            "expires_at": row.expires_at,
            "revoked_at": row.revoked_at,
        }
        for row in rows
    ]
