"""The publisher's folder: keys that never leave it, and every root and the newest list that they have signed.

    root-1.pem      may sign the next root; of several keys one each    readable by its owner alone,
    targets-1.pem   signs targets.json                                 and locked with the passphrase
    root-2.json     a key that is elsewhere, and by which URI (trust.named)
    1.root.json     every root, since hubs and devices follow them one by one
    targets.json    the newest list: what may be installed at all

- A key file keeps its number for ever. Whose key counts, and how many must sign, the newest root says; keys that are not in the folder
  (root keys belong into a safe) count all the same.
- What is signed is checked, and written here, before anybody sees it, whole or not at all. A kill, or a hub that cannot be reached, costs
  another delivery, never a version: what a hub lacks is handed over in order.
- Nothing is built on a list that these keys did not sign, and no key of another hub is vouched for unasked.

Bytes in, bytes out: who hands them to a hub is the caller's business (`edgestill release`). One process at a time.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Self, final

from tuf.api.metadata import Root, Targets  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.begun import begun as beside
from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.errors import ConflictError, NotFoundError, PathError, SettingError, TrustError, within
from edgestill.core.files import read_plain
from edgestill.trust.keys import SigningKey, role_key
from edgestill.trust.metadata import bound_of, read
from edgestill.trust.named import MAX_NAMED_BYTES, NamedKey
from edgestill.trust.repository import sign_targets
from edgestill.trust.roles import delegations_in
from edgestill.trust.root import assignment_keys, check_root, create_root

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from pathlib import Path

    from edgestill.trust.keys import AnyKey, PublicKey
    from edgestill.trust.metadata import TargetInfo
    from edgestill.trust.roles import Delegation

ROLES: Final = ("root", "targets")
MOST_KEYS: Final = 9
_NAME: Final = re.compile(r"(root|targets)-([0-9]{1,4})\.(pem|json)")
_ROOT: Final = re.compile(r"([0-9]{1,9})\.root\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Lifetimes:
    """Seconds for which what is signed holds; devices install nothing once it has passed, so sign again in time.

    Attributes:
        root: of a root.
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
        ask: for the secret of a key that is elsewhere, by its name, such as `pin`, and by the name of the key.
    """

    def __init__(
        self,
        folder: Path,
        passphrase: bytes | None,
        lifetimes: Lifetimes | None = None,
        ask: Callable[[str, str], str] | None = None,
    ) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._ask = ask
        self._lifetimes = lifetimes or Lifetimes()

    @classmethod
    def init(
        cls,
        folder: Path,
        passphrase: bytes | None,
        *,
        root_keys: int = 1,
        lifetimes: Lifetimes | None = None,
        named: Mapping[str, Sequence[NamedKey]] | None = None,
    ) -> Self:
        """Makes the folder and its keys, at once or not at all.

        Args:
            folder: there is nothing of that name yet, or an empty folder.
            passphrase: locks the keys; None leaves them open.
            root_keys: how many there are, 1 to 9; most of them must sign the next root.
            lifetimes: of what is signed.
            named: role -> keys that are elsewhere, in the place of files.

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
                fix="1 for one person; 3 where any two of three may sign the next root",
            )
        files: dict[str, bytes] = {}
        for role, count in (("root", root_keys), ("targets", 1)):
            elsewhere = (named or {}).get(role, ())
            files |= {f"{role}-{at}.json": one.to_bytes() for at, one in enumerate(elsewhere, start=1)}
            if not elsewhere:
                made = (SigningKey.generate() for _ in range(count))
                files |= {f"{role}-{at}.pem": one.to_pem(passphrase) for at, one in enumerate(made, start=1)}
        make_folder(folder, files)
        return cls(folder, passphrase, lifetimes)

    # What was signed here

    @property
    def version(self) -> int:
        """Of the newest root; 0 before the first."""
        return max((int(match[1]) for name in self._listed() if (match := _ROOT.fullmatch(name))), default=0)

    @property
    def root(self) -> bytes | None:
        """The newest root."""
        return None if self.version == 0 else self.root_of(self.version)

    def root_of(self, version: int) -> bytes:
        """A root that was signed here.

        Raises:
            PathError: it is not there, or cannot be read.
        """
        path = self.folder / f"{version}.root.json"
        return read_plain(path, what="the root", at_most=bound_of("root"))

    @property
    def targets(self) -> bytes | None:
        """The newest list that was signed here."""
        path = self.folder / "targets.json"
        return read_plain(path, what="the list", at_most=bound_of("targets")) if path.exists() else None

    @property
    def online(self) -> PublicKey | None:
        """The hub's key that the newest root names."""
        root = self.root
        return None if root is None else assignment_keys(read(Root, root).signed).keys[0]

    def expires(self) -> dict[str, float]:
        """When the newest root and list end, in seconds since 1970; what is not there is left out."""
        root, targets = self.root, self.targets
        found = {} if root is None else {"root.json": read(Root, root).signed.expires.timestamp()}
        if targets is not None:
            found["targets.json"] = read(Targets, targets).signed.expires.timestamp()
        return found

    def keys(self) -> dict[str, AnyKey]:
        """File -> public half, of all keys that are here.

        Raises:
            TrustError: the passphrase does not open them. PathError: there are none.
        """
        return {name: key.public for name, key in self._all().items()}

    def counting(self) -> dict[str, list[str]]:
        """Role -> files of the keys here that the newest root lets sign for it now."""
        keys, root = self.keys(), self.root
        if root is None:
            return {role: [name for name in keys if name.startswith(role)] for role in ROLES}
        roles = read(Root, root).signed.roles
        return {
            role: [name for name, key in keys.items() if key.keyid in roles[role].keyids] for role in ROLES
        }

    # Roots

    def sign_root(self, online: PublicKey, *, now: float) -> bytes:
        """The next root, or the first: with the keys of the one before, and this key of a hub.

        Raises:
            ConflictError: a key that an earlier root named, and a later one replaced.
            TrustError: too few of the keys that must sign it are here, or the passphrase does not open them.
        """
        before = self.root
        self._refuse_replaced(online)
        if before is None:
            files = self.counting()
            return self._new_root(
                root=[self._all()[name].public for name in files["root"]],
                targets=[self._all()[name].public for name in files["targets"]],
                online=online,
                now=now,
            )
        return self._new_root(
            root=_keys_of(before, "root"), targets=_keys_of(before, "targets"), online=online, now=now
        )

    def rotate(self, role: str, *, served: bytes | None, now: float, named: Sequence[NamedKey] = ()) -> None:
        """New keys for a role, all of whose keys are replaced, and the root that says so.

        With a new targets key the list is signed by the old keys and the new one: hand it over before the root, and there is no time
        in which a hub has a root under which its list says nothing.

        Args:
            role: `root` or `targets`.
            served: the list as the hub hands it out; None where it has none.
            now: seconds since 1970.
            named: the new keys, which are elsewhere; none makes as many files as there were keys.

        Raises:
            NotFoundError: there is no root yet whose keys could change. SettingError: no such role.
            TrustError: as `sign_root` and `newest`.
        """
        before, online = self.root, self.online
        if before is None or online is None:
            raise NotFoundError(
                "there is no root yet",
                where=self.folder,
                expected="1.root.json",
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
        self.check_root_keys()
        if named:
            self._refuse_known([one.public for one in named])
        newest, counted = self.newest(served), {one: _keys_of(before, one) for one in ROLES}
        old = self.counting()["targets"]
        fresh = [self._add_key(role, one) for one in named] or [self._add_key(role) for _ in counted[role]]
        keys = self._all()
        if role == "targets" and newest is not None:
            both = [keys[name] for name in (*old, *fresh)]
            self._keep_list(newest, both, trusted=[keys[name].public for name in old], now=now)
        counted[role] = [keys[name].public for name in fresh]
        self._new_root(root=counted["root"], targets=counted["targets"], online=online, now=now)

    # The list

    def sign_targets(
        self,
        *,
        served: bytes | None,
        add: Mapping[str, TargetInfo] | None = None,
        remove: Iterable[str] = (),
        delegate: Iterable[Delegation] = (),
        undelegate: Iterable[str] = (),
        now: float,
    ) -> bytes:
        """The next list; the same content for longer, where nothing is added or removed.

        Args:
            served: the list as the hub hands it out; None where it has none.
            add: target name -> size and digest.
            remove: names to retire.
            delegate: roles that may list bundles from now on, each in place of an earlier one of its name.
            undelegate: roles that may not any more.
            now: seconds since 1970.

        Raises:
            TrustError: what the hub hands out is not this publisher's, or no key that counts is here.
            ConflictError: another content under a name that is listed. NotFoundError: a name or role to remove is not there.
            SettingError: too many roles.
        """
        keys = [self._all()[name] for name in self.counting()["targets"]]
        if not keys:
            raise TrustError(
                "no key that may sign the list is here",
                where=self.folder,
                expected="a targets key that the newest root names",
                got="none",
                fix="bring its file, or publish from where it is",
            )
        newest = self.newest(served)
        trusted = [] if newest is None else self._signers(newest)
        return self._keep_list(
            newest,
            keys,
            trusted=trusted,
            now=now,
            add=add,
            remove=remove,
            delegate=delegate,
            undelegate=undelegate,
        )

    def delegations(self, served: bytes | None) -> dict[str, Delegation]:
        """Role -> what it may list, by the newest list; TrustError as `newest`."""
        newest = self.newest(served)
        return {} if newest is None else delegations_in(read(Targets, newest).signed)

    def newest(self, served: bytes | None) -> bytes | None:
        """The list to go on from: the hub's, or the one that was signed here where that is newer.

        Raises:
            TrustError: the hub's is newer and was not signed by a key that counts, or is another one of the same version.
        """
        own = self.targets
        if served is None or served == own:
            return own
        theirs, mine = read(Targets, served), 0 if own is None else read(Targets, own).signed.version
        if theirs.signed.version < mine:
            return own  # it is not built upon, whoever has signed it
        keys = self.keys()
        if not {keys[name].keyid for name in self.counting()["targets"]} & set(theirs.signatures):
            retired = {key.keyid for key in keys.values()} & set(theirs.signatures)
            raise TrustError(
                "the hub serves a list signed by a retired key"
                if retired
                else "the hub serves a list of somebody else",
                where="targets.json",
                expected=f"a signature by a key of {self.folder} that counts",
                got=", ".join(keyid[:16] for keyid in theirs.signatures) or "none",
                fix="is it the right hub, and the right publisher's folder? Nothing is signed on top of it",
            )
        if theirs.signed.version == mine:
            raise TrustError(
                "the hub serves another list of the same version",
                where=f"targets.json, version {mine}",
                expected="the one that was signed here",
                got="another one",
                fix=f"two people have signed at once: if the hub's shall count, remove {self.folder / 'targets.json'} and publish again",
            )
        return served

    def to_deliver(self, served: bytes | None) -> bytes | None:
        """The newest list that was signed here, where the hub's is older; None where there is nothing to hand over."""
        own = self.targets
        if own is None or served is None:
            return own
        return own if read(Targets, own).signed.version > read(Targets, served).signed.version else None

    def check_root_keys(self) -> None:
        """Looks whether enough keys are here to sign the next root.

        Raises:
            TrustError: they are not.
        """
        root = self.root
        needed = 1 if root is None else read(Root, root).signed.roles["root"].threshold
        here = self.counting()["root"]
        if len(here) < needed:
            raise TrustError(
                "too few root keys are here",
                where=self.folder,
                expected=f"{needed} of those that the newest root names",
                got=", ".join(here) or "none",
                fix="bring their files, or do it where they are",
            )

    def _keep_list(
        self,
        before: bytes | None,
        keys: Sequence[SigningKey | NamedKey],
        *,
        trusted: Sequence[AnyKey],
        now: float,
        add: Mapping[str, TargetInfo] | None = None,
        remove: Iterable[str] = (),
        delegate: Iterable[Delegation] = (),
        undelegate: Iterable[str] = (),
    ) -> bytes:
        data = sign_targets(
            previous=before,
            add=add or {},
            remove=remove,
            keys=keys,
            expires=now + self._lifetimes.targets,
            trusted=trusted,
            delegate=delegate,
            undelegate=undelegate,
        )
        write_whole(self.folder / "targets.json", data, mode=PUBLIC)
        return data

    def _new_root(
        self, *, root: Sequence[AnyKey], targets: Sequence[AnyKey], online: PublicKey, now: float
    ) -> bytes:
        """Signs the next root with all keys here that may, those of the root before among them, and keeps it if that is enough."""
        before, version = self.root, self.version + 1
        may = {key.keyid for key in (*root, *([] if before is None else _keys_of(before, "root")))}
        signers = [key for key in self._all().values() if key.public.keyid in may]
        data = create_root(
            root=root,
            signers=signers,
            targets=targets,
            online=online,
            expires=now + self._lifetimes.root,
            version=version,
            threshold=len(root) // 2 + 1,
            epoch=_epoch(before, online),
        )
        check_root(root=data, previous=before, now=now)
        write_whole(self.folder / f"{version}.root.json", data, mode=PUBLIC)
        return data

    def _refuse_replaced(self, online: PublicKey) -> None:
        """A key that was replaced may be in other hands: it never counts again."""
        if online == self.online:
            return
        for version in range(1, self.version + 1):
            path = self.folder / f"{version}.root.json"
            if path.exists() and online in assignment_keys(read(Root, self.root_of(version)).signed).keys:
                raise ConflictError(
                    "this key of the hub was replaced before",
                    where=path,
                    expected="a key that no root has named",
                    got=online.keyid,
                    fix="stop the hub, remove its online.pem, and run hub init: it makes a new one",
                )

    def _refuse_known(self, named: Sequence[AnyKey]) -> None:
        """A key has one file, and is named once."""
        known = {key: name for name, key in self.keys().items()}
        for key in named:
            if key in known or list(named).count(key) > 1:
                raise ConflictError(
                    "this key is in the folder already",
                    where=self.folder / known.get(key, ""),
                    expected="a key that was never used here",
                    got=key.keyid,
                    fix="make another one",
                )

    def _signers(self, targets: bytes) -> list[AnyKey]:
        """The keys of this folder that have signed a list: after a change of keys they are others than those that sign the next."""
        signed = set(read(Targets, targets).signatures)
        return [
            key for name, key in self.keys().items() if name.startswith("targets") and key.keyid in signed
        ]

    # Keys

    def _add_key(self, role: str, named: NamedKey | None = None) -> str:
        """Makes a key and keeps it, or where it is; its file."""
        numbers = [
            int(match[2]) for name in self._listed() if (match := _NAME.fullmatch(name)) and match[1] == role
        ]
        name = f"{role}-{max(numbers, default=0) + 1}.{'pem' if named is None else 'json'}"
        data = SigningKey.generate().to_pem(self._passphrase) if named is None else named.to_bytes()
        write_whole(self.folder / name, data)
        return name

    def _all(self) -> dict[str, SigningKey | NamedKey]:
        found: dict[str, SigningKey | NamedKey] = {}
        matches = [match for name in self._listed() if (match := _NAME.fullmatch(name))]
        for match in sorted(matches, key=lambda one: (one[1], int(one[2]))):
            with within(self.folder / match[0]):
                data = read_plain(self.folder / match[0], what="the key", at_most=MAX_NAMED_BYTES)
                is_file = match[3] == "pem"
                found[match[0]] = (
                    SigningKey.from_pem(data, self._passphrase)
                    if is_file
                    else NamedKey.from_bytes(data, self._ask)
                )
        if not found:
            raise PathError(
                "not a publisher's folder",
                where=self.folder,
                expected="root-1.pem or targets-1.pem",
                got="none of these",
                fix="make one: edgestill release keys init",
            )
        return found

    def _listed(self) -> list[str]:
        try:
            return [one.name for one in self.folder.iterdir()]
        except OSError:
            return []


def make_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Makes a folder for keys, readable by its owner alone, at once or not at all.

    Raises:
        ConflictError: something is there already: keys are never replaced by accident. PathError: it cannot be written.
    """
    fix = "choose another folder, or go on with the keys that are there"
    with beside(folder, what=" for keys", fix=fix) as begun:
        for name, pem in files.items():
            write_whole(begun / name, pem)


def _epoch(before: bytes | None, online: PublicKey) -> int:
    """Of the next root: with another key of the hub, devices count its assignments anew."""
    if before is None:
        return 0
    known = assignment_keys(read(Root, before).signed)
    return known.epoch + (known.keys != (online,))


def _keys_of(root: bytes, role: str) -> list[AnyKey]:
    """The keys that a root names for a role."""
    signed = read(Root, root).signed
    return [role_key(signed.keys[keyid].to_dict()) for keyid in signed.roles[role].keyids]
