"""Which role speaks for a target: the search through delegations, and what was found there.

The search is pre-order and depth-first, in the order in which roles delegate; a terminating delegation ends it below itself, and no
role is asked twice, so that a circle ends too (TUF 5.6.7).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.errors import TrustError
from edgestill.trust.metadata import MAX_TARGET_BYTES, refusing

if TYPE_CHECKING:
    from tuf.api.metadata import TargetFile  # type: ignore[attr-defined]  # re-exported there without saying so

MAX_ROLES: Final = 32
"""Roles that one search asks: each is a download that somebody else decides on."""

Load = Callable[[str, str], Targets]
"""A role and who delegates to it, to its metadata, verified. It raises where that must not be trusted."""


@dataclass(frozen=True, slots=True)
class Listed:
    """What a role says of a target.

    Attributes:
        name: of the target.
        role: that lists it.
        delegator: that delegates to this role.
        entry: length and hashes.
        by_hash: whether its file is named by its hash (TUF 6.2).
    """

    name: str
    role: str
    delegator: str
    entry: TargetFile
    by_hash: bool

    @property
    def length(self) -> int:
        """Bytes.

        Raises:
            TrustError: more than `MAX_TARGET_BYTES`.
        """
        if self.entry.length > MAX_TARGET_BYTES:
            raise TrustError(
                "a target is too long",
                where=self.name[:100],
                expected=f"at most {MAX_TARGET_BYTES} bytes",
                got=self.entry.length,
            )
        return int(self.entry.length)

    @property
    def path(self) -> str:
        """Where it is served, below the folder of targets; quoted."""
        folder, slash, file = self.name.rpartition("/")
        prefix = f"{next(iter(self.entry.hashes.values()))}." if self.by_hash else ""
        return quote(f"{folder}{slash}{prefix}{file}")

    def check(self, data: bytes) -> None:
        """Looks whether these are its bytes.

        Raises:
            TrustError: of another length, or another hash.
        """
        with refusing(self.name[:100]):
            self.entry.verify_length_and_hashes(data)


def find(name: str, load: Load, *, by_hash: bool) -> Listed | None:
    """The first entry for a target, in the order of the search; None where no role lists it.

    Args:
        name: of the target.
        load: brings roles.
        by_hash: whether files are named by their hash.

    Raises:
        TrustError: more than `MAX_ROLES` roles would be asked. Whatever `load` raises.
    """
    asked: set[str] = set()
    waiting = [(Targets.type, Root.type)]
    while waiting:
        role, delegator = waiting.pop()
        if role in asked:
            continue
        if len(asked) == MAX_ROLES:
            raise TrustError(
                "too many delegations", where=name[:100], expected=f"at most {MAX_ROLES} roles", got="more"
            )
        asked.add(role)
        signed = load(role, delegator)
        if name in signed.targets:
            return Listed(name, role, delegator, signed.targets[name], by_hash)
        if signed.delegations is not None:
            below = []
            for child, terminating in signed.delegations.get_roles_for_target(name):
                below.append((child, role))
                if terminating:
                    waiting.clear()
                    break
            waiting += reversed(below)
    return None
