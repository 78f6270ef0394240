"""The publisher's folder: keys that never leave it, and the newest root and list that they have signed.

    root-1.pem      may sign root.json; of several keys one each      readable by its owner alone,
    targets-1.pem   signs targets.json                               and locked with the passphrase
    root.json       the newest that was signed here
    targets.json    likewise: what may be installed at all

- A key file keeps its number for ever. Whose key counts now, `root.json` says.
- What is signed is written here before anybody sees it, whole or not at all: a kill, or a hub that cannot be reached, costs
  another upload. A hub that hands out an older list than was signed here is told what is newest; one that hands out a list
  that was not signed by these keys, or another one of the same version, is refused.

Bytes in, bytes out: who hands them to a hub is the caller's business (`edgestill release`). One process at a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.errors import ConflictError, NotFoundError, PathError, SettingError, TrustError, within
from edgestill.core.files import read_plain
from edgestill.trust.keys import MAX_PEM_BYTES, PublicKey, SigningKey
from edgestill.trust.metadata import bound_of, read
from edgestill.trust.repository import countersign, sign_targets
from edgestill.trust.root import assignment_keys, create_root

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from edgestill.trust.metadata import TargetInfo

ROLES: Final = ("root", "targets")
MOST_KEYS: Final = 9
_OWNER_ONLY: Final = 0o700
_NAME: Final = re.compile(r"(root|targets)-([0-9]{1,4})\.pem")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """Seconds for which what is signed holds; devices install nothing once it has passed, so sign again in time.

    Attributes:
        root: of root.json.
        targets: of the list.
    """

    root: float = 365 * 86_400.0
    targets: float = 90 * 86_400.0


@final
class Publisher:
    """One publisher.

    Args:
        folder: of the publisher; made by `init`.
        passphrase: that its keys are locked with; None where they are open.
        lifetimes: of what is signed.
    """

    def __init__(self, folder: Path, passphrase: bytes | None, lifetimes: Lifetimes | None = None) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._lifetimes = lifetimes or Lifetimes()

    @classmethod
    def init(
        cls,
        folder: Path,
        passphrase: bytes | None,
        *,
        root_keys: int = 1,
        lifetimes: Lifetimes | None = None,
    ) -> Self:
        """Makes the folder and its keys.

        Args:
            folder: there is none of that name yet, or an empty one.
            passphrase: locks the keys; None leaves them open.
            root_keys: how many there are, 1 to 9; most of them must sign the next root.
            lifetimes: of what is signed.

        Raises:
            ConflictError: something is there already: keys are never replaced by accident.
            SettingError: a number or passphrase out of range. PathError: it cannot be written.
        """
        if not 1 <= root_keys <= MOST_KEYS:
            raise SettingError(
                "so many root keys make no sense",
                where="root keys",
                expected=f"1 to {MOST_KEYS}",
                got=root_keys,
                fix="1 for one person; 3 where two of three must agree",
            )
        made = {f"root-{number}.pem": SigningKey.generate() for number in range(1, root_keys + 1)}
        made["targets-1.pem"] = SigningKey.generate()
        locked = {name: key.to_pem(passphrase) for name, key in made.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise ConflictError(
                    "there is something already",
                    where=folder,
                    expected="no folder, or an empty one",
                    got=next(folder.iterdir()).name,
                    fix="choose another folder, or go on with the keys that are there",
                )
            folder.chmod(_OWNER_ONLY)
        except OSError as error:
            raise PathError(
                "cannot make the publisher's folder",
                where=folder,
                expected="a folder that can be made",
                got=error.strerror,
                fix="choose another one",
            ) from error
        for name, pem in locked.items():
            write_whole(folder / name, pem)
        return cls(folder, passphrase, lifetimes)

    @property
    def root(self) -> bytes | None:
        """The newest root.json that was signed here."""
        return self._read("root.json", bound_of("root"))

    @property
    def targets(self) -> bytes | None:
        """The newest targets.json that was signed here."""
        return self._read("targets.json", bound_of("targets"))

    def keys(self) -> dict[str, PublicKey]:
        """File -> public half, of all keys that are here.

        Raises:
            TrustError: the passphrase does not open them. PathError: there are none.
        """
        return {name: key.public for name, key in self._all().items()}

    def counting(self) -> dict[str, list[str]]:
        """Role -> files of the keys that root.json lets sign for it now; those that were retired are not there."""
        keys = self.keys()
        if self.root is None:
            return {role: [name for name in keys if name.startswith(role)] for role in ROLES}
        roles = read(Root, self.root).signed.roles
        return {
            role: [name for name, key in keys.items() if key.keyid in roles[role].keyids] for role in ROLES
        }

    def sign_root(self, online: PublicKey, *, now: float) -> bytes:
        """The root for a hub with this online key: the one that is there where it still says so, or the next.

        Raises:
            TrustError: the passphrase does not open the keys.
        """
        before = self.root
        if before is not None:
            signed = read(Root, before).signed
            same = assignment_keys(signed).keys == (online,)
            if same and signed.expires.timestamp() > now + self._lifetimes.root / 2:
                return before
        return self._new_root(online, now=now)

    def sign_targets(
        self,
        *,
        served: bytes | None,
        add: Mapping[str, TargetInfo] | None = None,
        remove: Iterable[str] = (),
        now: float,
    ) -> bytes:
        """The next list.

        Args:
            served: the list as the hub hands it out; None where it has none.
            add: target name -> size and digest.
            remove: names to retire.
            now: seconds since 1970.

        Raises:
            TrustError: what the hub hands out is not this publisher's, or the passphrase does not open the key.
            ConflictError: another content under a name that is listed. NotFoundError: a name to remove is not listed.
        """
        data = sign_targets(
            previous=self.newest(served),
            add=add or {},
            remove=remove,
            keys=[self._all()[name] for name in self.counting()["targets"]],
            expires=now + self._lifetimes.targets,
            trusted=self._trusted(served),
        )
        write_whole(self.folder / "targets.json", data, mode=PUBLIC)
        return data

    def newest(self, served: bytes | None) -> bytes | None:
        """The list to go on from: the hub's, or the one that was signed here where that is newer.

        Raises:
            TrustError: the hub's was not signed by this publisher, or is another one of the same version.
        """
        own = self.targets
        if served is None or served == own:
            return own
        theirs, keys = read(Targets, served), self.keys()
        if not {keys[name].keyid for name in self.counting()["targets"]} & set(theirs.signatures):
            retired = {key.keyid for key in keys.values()} & set(theirs.signatures)
            raise TrustError(
                "the hub serves a list signed by a retired key"
                if retired
                else "the hub serves a list of somebody else",
                where="targets.json",
                expected=f"a signature by a key of {self.folder} that counts, or the list that was signed here last",
                got=", ".join(keyid[:16] for keyid in theirs.signatures) or "none",
                fix="is it the right hub, and the right publisher's folder? Nothing is signed on top of it",
            )
        if own is None:
            return served
        version = read(Targets, own).signed.version
        if theirs.signed.version == version and own != served:
            raise TrustError(
                "the hub serves another list of the same version",
                where=f"targets.json, version {version}",
                expected="the one that was signed here",
                got="another one",
                fix="two people have signed at once: bring both machines to one folder, and publish again from there",
            )
        return served if theirs.signed.version > version else own

    def rotate(self, role: str, *, now: float) -> bytes:
        """A new key for a role, and the root that says so, signed by the old root keys and the new; the root.

        A hub must get it before anything else is signed. With a new targets key the list is signed anew: hand over
        `sign_targets` at once.

        Args:
            role: `root`, all of whose keys are replaced, or `targets`.
            now: seconds since 1970.

        Raises:
            NotFoundError: there is no root yet whose keys could change. SettingError: no such role.
        """
        before = self.root
        if before is None:
            raise NotFoundError(
                "there is no root yet",
                where=self.folder,
                expected="root.json",
                got="none",
                fix="sign the first one: edgestill release root",
            )
        if role not in ROLES:
            raise SettingError(
                "no such role",
                where="role",
                expected=" or ".join(ROLES),
                got=role[:40],
                fix="name one of these",
            )
        counting = self.counting()
        fresh = [self._add_key(role) for _ in counting[role]]
        (online,) = assignment_keys(read(Root, before).signed).keys
        return self._new_root(online, now=now, counting=counting | {role: fresh})

    def _new_root(
        self, online: PublicKey, *, now: float, counting: dict[str, list[str]] | None = None
    ) -> bytes:
        before, keys, last = self.root, self._all(), self.counting()
        names = counting or last
        held = [keys[name] for name in names["root"]]
        data = create_root(
            root=held,
            targets=[keys[name].public for name in names["targets"]],
            online=online,
            expires=now + self._lifetimes.root,
            version=1 if before is None else read(Root, before).signed.version + 1,
            threshold=len(held) // 2 + 1,
        )
        if before is not None:
            data = countersign(data, keys=[keys[name] for name in last["root"]])
        write_whole(self.folder / "root.json", data, mode=PUBLIC)
        return data

    def _trusted(self, served: bytes | None) -> list[PublicKey]:
        """The keys that the list to go on from was signed with: after a change they are the old ones."""
        before = self.newest(served)
        if before is None:
            return []
        signed = set(read(Targets, before).signatures)
        return [
            key for name, key in self.keys().items() if name.startswith("targets") and key.keyid in signed
        ]

    def _add_key(self, role: str) -> str:
        """Makes a key and keeps it; its file."""
        numbers = [
            int(match[2]) for name in self._names() if (match := _NAME.fullmatch(name)) and match[1] == role
        ]
        name = f"{role}-{max(numbers, default=0) + 1}.pem"
        write_whole(self.folder / name, SigningKey.generate().to_pem(self._passphrase))
        return name

    def _all(self) -> dict[str, SigningKey]:
        found = {}
        for name in self._names():
            with within(self.folder / name):
                pem = read_plain(self.folder / name, what="the key", at_most=MAX_PEM_BYTES)
                found[name] = SigningKey.from_pem(pem, self._passphrase)
        if not found:
            raise PathError(
                "not a publisher's folder",
                where=self.folder,
                expected="root-1.pem and targets-1.pem",
                got="none of these",
                fix="make one: edgestill release keys init",
            )
        return found

    def _names(self) -> list[str]:
        try:
            names = [one.name for one in self.folder.iterdir()]
        except OSError:
            return []
        matches = [match for name in names if (match := _NAME.fullmatch(name))]
        return [match[0] for match in sorted(matches, key=lambda one: (one[1], int(one[2])))]

    def _read(self, name: str, at_most: int) -> bytes | None:
        path = self.folder / name
        return read_plain(path, what=name, at_most=at_most) if path.exists() else None
