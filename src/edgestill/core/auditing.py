"""The chain of an audit log: each entry is sealed over the one before, so that none can be changed or taken out unnoticed.

Whoever has kept the last seal of an earlier look can tell that everything before it is still as it was. (An owner of the database could
seal everything anew; a seal that was kept elsewhere shows that, too.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError
from edgestill.core.jsonio import canonical

if TYPE_CHECKING:
    from collections.abc import Iterable

    from edgestill.core.jsonio import Fields, JsonObject

BEGIN: Final = "0" * 64
"""The seal before the first entry."""
_SEAL: Final = r"[0-9a-f]{64}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of the log.

    Attributes:
        id: 1 for the first; without gaps.
        at: seconds since 1970 by the hub's clock.
        who: did it: an operator's name, a device, or the hub.
        what: was done, such as `rollout.start`.
        about: what it was done to, and what came of it.
        seal: SHA-256 over the seal before and all of this; 64 hex digits.
    """

    id: int
    at: float
    who: str
    what: str
    about: JsonObject
    seal: str

    @classmethod
    def sealed(cls, before: str, *, id: int, at: float, who: str, what: str, about: JsonObject) -> Self:  # noqa: A002  # the wire's own word
        """An entry after the one with this seal."""
        made = cls(id=id, at=at, who=who, what=what, about=about, seal="")
        return cls(id=id, at=at, who=who, what=what, about=about, seal=made.seal_after(before))

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads one; MessageError where it is none."""
        return cls(
            id=fields.integer("id", least=1),
            at=fields.number("at"),
            who=fields.text("who", at_most=200),
            what=fields.text("what", at_most=100),
            about=fields.inner("about").unknown(()),
            seal=fields.text("seal", pattern=_SEAL),
        )

    def as_json(self) -> JsonObject:
        """All of it."""
        return {**self._content(), "seal": self.seal}

    def seal_after(self, before: str) -> str:
        """What its seal must be after that one."""
        return Digest.of(before.encode() + canonical(self._content())).hex

    def _content(self) -> JsonObject:
        return {"id": self.id, "at": self.at, "who": self.who, "what": self.what, "about": self.about}


def check_chain(entries: Iterable[Entry], before: str = BEGIN, *, first: int = 1) -> str:
    """Looks whether entries follow each other; the seal of the last.

    Args:
        entries: in their order.
        before: the seal of the entry before them.
        first: the id that the first of them must have.

    Raises:
        MessageError: one is missing, or is not what was sealed.
    """
    for number, entry in enumerate(entries, first):
        if entry.id != number or entry.seal != entry.seal_after(before):
            raise MessageError(
                "the audit log was changed",
                where=f"entry {number}",
                expected="the entry that was sealed",
                got=f"entry {entry.id}" if entry.id != number else "another content",
                fix="compare it with a copy; somebody had the database in hand",
            )
        before = entry.seal
    return before
