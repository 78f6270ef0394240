"""Roles that a publisher delegates to (TUF 4.5): who else may list bundles, and which.

| role | speaks for | who holds its key |
|---|---|---|
| `CLASS` | bundles of that hardware class; of some names only, where names are given | who builds for that hardware |
| `auto/CLASS` | bundles of that class under the names given, one at least | the lab worker, for unattended updates |

- A role lists bundles of its own class, whatever it signs: its path patterns end in `/CLASS.esb` and are part of what the publisher signs.
- A search asks targets.json first, then roles by class, then those for unattended updates (pre-order, TUF 5.6.7): what the publisher lists,
  nobody can give another content, and what a role by class lists, no key for unattended updates can. A role by class does not end the search; after one for
  unattended updates there is nobody left to ask, so that one is terminating.
- There is no `auto/any`: a bundle for any hardware is no matter of one class's owners.
- Roles do not delegate further. Whoever holds the key of `auto/CLASS` could otherwise name a role that devices take for another.
- A version grows by at most `MOST_STEPS` at a time, so that a stolen key cannot put its role beyond the reach of the next one by one signature (a fast-forward);
  a hub that has named none yet, a new one for instance, takes any up to `MOST_FIRST`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from tuf.api.metadata import (  # type: ignore[attr-defined]  # re-exported there without saying so
    TOP_LEVEL_ROLE_NAMES,
    DelegatedRole,
    Delegations,
    Targets,
)

from edgestill.core.errors import ConflictError, EdgestillError, NotFoundError, SettingError, TrustError
from edgestill.trust.keys import PublicKey
from edgestill.trust.metadata import check_time, read, refusing, target_info
from edgestill.trust.root import tuf_key

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from edgestill.trust.metadata import TargetInfo

PUBLISHER: Final = Targets.type
"""The role of the publisher itself."""
AUTO: Final = "auto/"
"""Begins the names of roles for unattended updates."""
ANY_CLASS: Final = "any"
CLASS: Final = r"[a-z0-9_-]{1,60}"
NAME: Final = r"[a-z0-9][a-z0-9_-]{0,63}"
ROLE: Final = rf"(?:{AUTO})?{CLASS}"

MOST_ROLES: Final = 64
MOST_KEYS: Final = 9
MOST_NAMES: Final = 32
MAX_LIST_BYTES: Final = 1_000_000
"""Of a delegated list; it names some 4,000 bundles."""
MOST_STEPS: Final = 1_000
"""By which a delegated list's version may grow at a time: what was signed and never delivered counts, too."""
MOST_SAID: Final = 1_000_000
"""A version that a hub has named last, and that a delegate goes on from; see `trust.delegate`."""
MOST_FIRST: Final = MOST_SAID // 2
"""Of the first version that a hub takes in: it has not seen those before, and as many are left above."""

_TARGETS_FILE: Final = "targets.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Delegation:
    """What the publisher lets somebody else list.

    Attributes:
        role: a hardware class, or `auto/` and one.
        keys: distinct, 1 to `MOST_KEYS` of them.
        threshold: how many of them must sign, from 1 to their number.
        names: of the bundles, at most `MOST_NAMES`; none lets a role by class list any of its class.
    """

    role: str
    keys: tuple[PublicKey, ...]
    threshold: int = 1
    names: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if re.fullmatch(ROLE, self.role) is None or self.role in {*TOP_LEVEL_ROLE_NAMES, AUTO + ANY_CLASS}:
            raise SettingError(
                "not a role that may list bundles",
                where=_TARGETS_FILE,
                expected=f"a hardware class, or {AUTO} and one that is not {ANY_CLASS!r}",
                got=repr(self.role[:80]),
                fix="name the hardware class as its bundles do",
            )
        if not 1 <= len(self.keys) <= MOST_KEYS or len(set(self.keys)) != len(self.keys):
            raise SettingError(
                "the keys of a role are unusable",
                where=self.role,
                expected=f"1 to {MOST_KEYS} distinct keys",
                got=f"{len(self.keys)} keys",
                fix="name each key once",
            )
        if not 1 <= self.threshold <= len(self.keys):
            raise SettingError(
                "a threshold that cannot be met",
                where=self.role,
                expected=f"1 to {len(self.keys)}, the number of keys",
                got=self.threshold,
                fix="lower it, or name more keys",
            )
        self._check_names()

    def _check_names(self) -> None:
        if any(re.fullmatch(NAME, name) is None for name in self.names) or len(self.names) > MOST_NAMES:
            raise SettingError(
                "the names of a role are unusable",
                where=self.role,
                expected=f"at most {MOST_NAMES} names of bundles, without wildcards",
                got=", ".join(self.names)[:200],
                fix="write them as the bundles have them",
            )
        if self.is_unattended and not self.names:
            raise SettingError(
                "a role for unattended updates without a name",
                where=self.role,
                expected="the name of one bundle at least",
                got="none",
                fix="say which bundles it may list: --name NAME",
            )

    @property
    def is_unattended(self) -> bool:
        """Whether its bundles are for devices only that have opted in."""
        return self.role.startswith(AUTO)

    @property
    def hardware_class(self) -> str:
        """Of all bundles that it may list."""
        return self.role.removeprefix(AUTO)

    @property
    def paths(self) -> tuple[str, ...]:
        """What it may list, as TUF writes it: `*` stands for one part of a path, or less (4.5, PATHPATTERN)."""
        return tuple(f"{name}/*/{self.hardware_class}.esb" for name in self.names or ("*",))


def delegations_in(signed: Targets) -> dict[str, Delegation]:
    """Role -> what the publisher's list lets it list, in the order of the search.

    Raises:
        TrustError: delegations of another kind than a publisher's folder makes, or in another order: no hub serves, and no device was built for them.
    """
    if signed.delegations is None:
        return {}
    if signed.delegations.roles is None or len(signed.delegations.roles) > MOST_ROLES:
        raise _refused(
            "delegations of another kind", f"at most {MOST_ROLES} roles with path patterns", "others"
        )
    found = {}
    for name, role in signed.delegations.roles.items():
        keys = signed.delegations.keys
        try:
            known = tuple(PublicKey.from_json(keys[keyid].to_dict()) for keyid in role.keyids)
            names = tuple(path.partition("/")[0] for path in role.paths or ())
            one = Delegation(
                role=name, keys=known, threshold=role.threshold, names=() if names == ("*",) else names
            )
        except (EdgestillError, KeyError) as error:
            raise _refused(
                f"a delegation of another kind: {name[:80]}", "a role of trust.roles", error
            ) from error
        if [key.keyid for key in known] != role.keyids or _role(one) != role:
            raise _refused(f"a delegation of another kind: {name[:80]}", _role(one).to_dict(), role.to_dict())
        found[name] = one
    if list(found) != sorted(found, key=_place):
        raise _refused("roles in another order", ", ".join(sorted(found, key=_place)), ", ".join(found))
    return found


def delegations_of(targets: bytes) -> dict[str, Delegation]:
    """The same, of a list's bytes; nothing is said of who has signed them."""
    return delegations_in(read(Targets, targets).signed)


def version_of(data: bytes) -> int:
    """Of a list; TrustError where it is none."""
    return int(read(Targets, data).signed.version)


def end_of(data: bytes) -> float:
    """When a list ends, in seconds since 1970; TrustError where it is none."""
    return read(Targets, data).signed.expires.timestamp()


def change_delegations(signed: Targets, delegate: Iterable[Delegation], undelegate: Iterable[str]) -> None:
    """Gives and takes away roles in a list that is about to be signed.

    Raises:
        NotFoundError: a role to take away is not there. SettingError: too many roles. TrustError: as `delegations_in`.
    """
    found = delegations_in(signed)
    for role in undelegate:
        if found.pop(role, None) is None:
            raise NotFoundError(
                "no such role is delegated to",
                where=_TARGETS_FILE,
                expected=", ".join(found) or "none",
                got=repr(role[:80]),
                fix="look at the roles: edgestill release keys roles",
            )
    found |= {one.role: one for one in delegate}
    if len(found) > MOST_ROLES:
        raise SettingError(
            "too many roles",
            where=_TARGETS_FILE,
            expected=f"at most {MOST_ROLES}",
            got=len(found),
            fix="take some away first",
        )
    keys = {key.keyid: tuf_key(key) for one in found.values() for key in one.keys}
    roles = {name: _role(found[name]) for name in sorted(found, key=_place)}
    signed.delegations = Delegations(keys, roles) if found else None


def check_signed(targets: bytes, role: str, data: bytes) -> dict[str, TargetInfo]:
    """What a role's list says, if the publisher's list vouches for all of it; time and versions are not looked at.

    Args:
        targets: the publisher's list, which is trusted already.
        role: of the list.
        data: the list.

    Raises:
        NotFoundError: the publisher delegates nothing to this role.
        TrustError: too long, too few good signatures, delegations of its own, or a name that is not its to list.
    """
    publisher = read(Targets, targets).signed
    known = delegations_in(publisher)
    if role not in known:
        raise NotFoundError(
            "the publisher delegates nothing to this role",
            where=_TARGETS_FILE,
            expected=", ".join(known) or "no role at all",
            got=repr(role[:80]),
            fix="have the publisher name its key: edgestill release keys delegate",
        )
    if len(data) > MAX_LIST_BYTES:
        raise _refused("a role's list is too long", f"at most {MAX_LIST_BYTES} bytes", len(data), role)
    found = read(Targets, data)
    with refusing(role):
        publisher.verify_delegate(role, found.signed_bytes, found.signatures)
    if found.signed.delegations is not None:
        raise _refused("a role that delegates further", "no delegations", "some", role)
    assert publisher.delegations is not None
    assert publisher.delegations.roles is not None
    allowed = publisher.delegations.roles[role]
    for name in found.signed.targets:
        if not allowed.is_delegated_path(name):
            raise _refused(
                "a name that this role may not list", ", ".join(known[role].paths), repr(name[:100]), role
            )
    return {name: target_info(name, entry) for name, entry in found.signed.targets.items()}


def check_delegated(
    *,
    targets: bytes,
    role: str,
    data: bytes,
    last: int,
    now: float,
    others: Mapping[str, tuple[str, TargetInfo]],
) -> dict[str, TargetInfo]:
    """What a hub checks of a role's list before it serves it; returns the list.

    Args:
        targets: the publisher's list, as it is served.
        role: of the list.
        data: the candidate.
        last: the version that the hub has named last; 0 for none, and then any up to `MOST_FIRST` is taken.
        now: seconds since 1970.
        others: names that are listed before this role is asked, by whom, and what they say.

    Raises:
        NotFoundError, TrustError: as `check_signed`; a version that does not grow, or grows too far.
        ConflictError: a name that somebody before it lists with another content: no device would ever see this entry.
        ExpiredError: past its time.
    """
    listed = check_signed(targets, role, data)
    signed = read(Targets, data).signed
    check_time(signed, now)
    most = last + MOST_STEPS if last else MOST_FIRST
    if signed.version <= last:
        raise _refused(
            "the list does not grow",
            f"version {last + 1} to {most}",
            signed.version,
            role,
            fix="publish again: it goes on from the version that this hub has named last",
        )
    if signed.version > most:
        raise _refused(
            "the list grows too far at once",
            f"version {last + 1} to {most}",
            signed.version,
            role,
            fix="move the role's list out of the delegate's folder, and publish again: it goes on from this hub's list then",
        )
    for name, info in listed.items():
        who, known = others.get(name, (role, info))
        if known != info:
            raise ConflictError(
                "a name that is listed already, with another content",
                where=f"{role}: {name}",
                expected=f"{known.digest}, as {who} says, which is asked first",
                got=info.digest,
                fix="publish it as a new version, and retire this one",
            )
    return listed


def may_list(paths: Iterable[str], name: str) -> bool:
    """Whether a target's name is one of those that these patterns stand for (TUF 4.5, PATHPATTERN)."""
    return bool(
        DelegatedRole("role", ["key"], 1, terminating=False, paths=list(paths)).is_delegated_path(name)
    )


def _role(one: Delegation) -> DelegatedRole:
    keyids = [key.keyid for key in one.keys]
    return DelegatedRole(one.role, keyids, one.threshold, one.is_unattended, list(one.paths))


def _place(role: str) -> tuple[bool, str]:
    """Roles by class come first."""
    return role.startswith(AUTO), role


def _refused(
    what: str, expected: object, got: object, where: str = _TARGETS_FILE, fix: str | None = None
) -> TrustError:
    return TrustError(what, where=where, expected=expected, got=got, fix=fix)
