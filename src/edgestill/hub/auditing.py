"""The audit log: who did what, and what came of it; written and never changed.

- What an operator orders is written before it is tried, and what came of it after that: an order without an outcome was cut off.
- What the hub does by itself to a rollout, and devices that join, are there too; what devices report is not.
- The database refuses to change or remove an entry (triggers), and each is sealed over the one before (`core.auditing`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from sqlalchemy import insert, select

from edgestill.core.auditing import BEGIN, Entry
from edgestill.core.digest import Digest
from edgestill.core.jsonio import canonical
from edgestill.hub.tables import audit_log

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

    from edgestill.core.jsonio import JsonObject

MOST_ENTRIES: Final = 1_000
HUB: Final = "the hub"
_LONGEST: Final = 500
_MOST: Final = 4_000


async def note(connection: AsyncConnection, *, who: str, what: str, about: JsonObject, now: float) -> int:
    """Writes an entry; its id. Call it within a write: entries must come one after the other."""
    last = (
        await connection.execute(
            select(audit_log.c.id, audit_log.c.seal).order_by(audit_log.c.id.desc()).limit(1)
        )
    ).first()
    entry = Entry.sealed(
        BEGIN if last is None else last.seal,
        id=1 if last is None else last.id + 1,
        at=now,
        who=who[:200],
        what=what[:100],
        about=_bounded(about),
    )
    await connection.execute(
        insert(audit_log).values(
            id=entry.id, at=entry.at, who=entry.who, what=entry.what, about=entry.about, seal=entry.seal
        )
    )
    return entry.id


def _bounded(about: JsonObject) -> JsonObject:
    """As it is, with long texts cut, or where it is still too long its digest: the log is never emptied."""
    cut: JsonObject = {
        name: f"{value[:_LONGEST]}..." if isinstance(value, str) and len(value) > _LONGEST else value
        for name, value in about.items()
    }
    if len(canonical(cut)) <= _MOST:
        return cut
    return {name: cut[name] for name in ("order", "outcome") if name in cut} | {
        "digest": str(Digest.of(canonical(about)))
    }


async def entries(connection: AsyncConnection, *, after: int, limit: int) -> list[Entry]:
    """The entries after an id, in their order."""
    rows = await connection.execute(
        select(audit_log).where(audit_log.c.id > after).order_by(audit_log.c.id).limit(limit)
    )
    return [
        Entry(id=row.id, at=row.at, who=row.who, what=row.what, about=row.about, seal=row.seal)
        for row in rows
    ]
