"""Lists of roles that the publisher delegates to, as the hub holds them beside the publisher's own.

- A role's list stands as long as the publisher's newest list vouches for it: its keys, its threshold, its names. When the publisher takes that
  back, the list is not served from then on and lists nothing; its version stays named, so that it cannot come back older (`repository.freshen`).
- Who lists a name first is asked first: the publisher, then roles in the order of `trust.roles`.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from edgestill.core.errors import EdgestillError
from edgestill.core.jsonio import Fields, parse_object
from edgestill.trust.metadata import MAX_BYTES, file_of
from edgestill.trust.roles import PUBLISHER, ROLE, check_signed, delegations_of, end_of, version_of

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.trust.metadata import TargetInfo

log: Final = logging.getLogger(__name__)

MOST_NAMED: Final = 200
"""Lists that a snapshot names, of revoked roles too; devices take a snapshot of 64 kB at most."""


@dataclass(frozen=True, slots=True)
class RoleList:
    """A role's list, as it was taken in.

    Attributes:
        data: its bytes.
        listed: what it says.
    """

    data: bytes
    listed: Mapping[str, TargetInfo]

    @property
    def version(self) -> int:
        """Its version."""
        return version_of(self.data)


def lister_of(
    published: Mapping[str, TargetInfo], delegated: Mapping[str, RoleList], targets: bytes | None
) -> dict[str, tuple[str, TargetInfo]]:
    """Name -> who is asked first of all that list it, and what they say."""
    found = {path: (PUBLISHER, info) for path, info in published.items()}
    order = () if targets is None else delegations_of(targets)
    for role in order:
        if role in delegated:
            for path, info in delegated[role].listed.items():
                found.setdefault(path, (role, info))
    return found


def listed_before(
    role: str, published: Mapping[str, TargetInfo], delegated: Mapping[str, RoleList], targets: bytes
) -> dict[str, tuple[str, TargetInfo]]:
    """Name -> who lists it and what they say, of all that are asked before this role."""
    order = list(delegations_of(targets))
    before = order[: order.index(role)] if role in order else order
    known = {one: delegated[one] for one in before if one in delegated}
    return lister_of(published, known, targets)


def still_vouched(targets: bytes, delegated: Mapping[str, RoleList]) -> dict[str, RoleList]:
    """Those lists that this list of the publisher vouches for."""
    found = {}
    for role, one in delegated.items():
        try:
            found[role] = RoleList(one.data, check_signed(targets, role, one.data))
        except EdgestillError as error:
            log.warning("the list of %s is no longer served: %s", role, error)
    return found


def read_lists(folder: Path, snapshot: bytes, targets: bytes) -> dict[str, RoleList]:
    """The lists that a snapshot names, and the publisher's list vouches for.

    Raises:
        OSError: a file is not there. EdgestillError: the publisher's list or the snapshot cannot be read.
    """
    known = delegations_of(targets)
    parsed = parse_object(snapshot, where="snapshot.json", max_bytes=MAX_BYTES["snapshot"])
    meta = Fields(parsed, "snapshot.json").inner("signed").inner("meta")
    found = {}
    for file in meta.names():
        role = file.removesuffix(".json")
        if role in known and re.fullmatch(ROLE, role) is not None:
            version = meta.inner(file).integer("version", least=1)
            found[role] = RoleList((folder / file_of(role, version)).read_bytes(), {})
    return still_vouched(targets, found)


def told(targets: bytes | None, delegated: Mapping[str, RoleList], said: Mapping[str, int]) -> JsonObject:
    """`{"roles": [...]}` for people: whom the publisher delegates to, which version was named last, and whether a list stands."""
    known = {} if targets is None else delegations_of(targets)
    roles: list[Json] = [
        {
            "role": role,
            "keys": [key.keyid for key in one.keys],
            "threshold": one.threshold,
            "paths": list(one.paths),
            "version": said.get(role, 0),
            "listed": [*sorted(delegated[role].listed)] if role in delegated else None,
            "expires": end_of(delegated[role].data) if role in delegated else None,
        }
        for role, one in known.items()
    ]
    return {"roles": roles}
