"""The folder of somebody to whom a publisher delegates: keys that never leave it, and the newest list of each of its roles.

    delegate-1.pem        signs; readable by its owner alone, and locked with the passphrase
    delegate-1.pub.pem    its public half: what the publisher is handed
    auto%2FCLASS.json     the newest list of a role, named as TUF names it

- Whether a key counts, and what it may list, the publisher says; nothing here does. All keys of the folder sign. Where one was lost or stolen, make another folder,
  have the publisher name its key, and publish again what shall be listed: nothing is built on a list that these keys did not sign.
- What is signed is written here before anybody sees it, whole or not at all; a version never goes back, also where a kill or the network kept a list from its hub.
- A list that its hub does not have yet is delivered again where it says what is asked for: trying again uses up no number.
- A hub tells which version it has named last, of a key before this one too. It is believed up to `MOST_SAID`: what a hub makes up must not use up the numbers.

Bytes in, bytes out, as in `trust.publisher`. One process at a time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Final, Self, final
from urllib.parse import quote

from tuf.api.metadata import Targets  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.bundle import PUBLIC
from edgestill.core.bundle import replace as write_whole
from edgestill.core.errors import PathError, TrustError, within
from edgestill.core.files import read_plain
from edgestill.trust.keys import MAX_PEM_BYTES, PublicKey, SigningKey
from edgestill.trust.metadata import read
from edgestill.trust.publisher import make_folder
from edgestill.trust.repository import listed_in, sign_targets
from edgestill.trust.roles import MAX_LIST_BYTES, MOST_SAID

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from pathlib import Path

    from edgestill.trust.metadata import TargetInfo

LIFETIME: Final = 30 * 86_400.0
"""Seconds for which a list holds; a lab that was given up stops listing by itself."""
_NAME: Final = re.compile(r"delegate-([0-9]{1,4})\.pem")


@final
class Delegate:
    """One who may list bundles for a publisher.

    Args:
        folder: made by `init`.
        passphrase: that its keys are locked with; None where they are open.
        lifetime: of what is signed, in seconds.
    """

    def __init__(self, folder: Path, passphrase: bytes | None, lifetime: float = LIFETIME) -> None:
        self.folder = folder
        self._passphrase = passphrase
        self._lifetime = lifetime

    @classmethod
    def init(cls, folder: Path, passphrase: bytes | None) -> Self:
        """Makes the folder and a key, at once or not at all.

        Args:
            folder: there is nothing of that name yet, or an empty folder.
            passphrase: locks the key; None leaves it open.

        Raises:
            ConflictError: something is there already. SettingError: a passphrase out of range. PathError: it cannot be written.
        """
        key = SigningKey.generate()
        make_folder(
            folder, {"delegate-1.pem": key.to_pem(passphrase), "delegate-1.pub.pem": key.public.to_pem()}
        )
        return cls(folder, passphrase)

    def keys(self) -> dict[str, PublicKey]:
        """File -> public half, of all keys that are here.

        Raises:
            TrustError: the passphrase does not open them. PathError: there are none.
        """
        return {name: key.public for name, key in self._all().items()}

    def newest(self, role: str, served: bytes | None) -> bytes | None:
        """The list to go on from: the hub's, or the one that was signed here where that is newer.

        Raises:
            TrustError: the hub's is newer and none of these keys has signed it, or is another one of the same version.
        """
        own = self._own(role)
        if served is None or served == own:
            return own
        theirs, mine = read(Targets, served), 0 if own is None else read(Targets, own).signed.version
        if theirs.signed.version < mine:
            return own  # it is not built upon, whoever has signed it
        if not self._signers(served):
            raise TrustError(
                "the hub serves a list of somebody else",
                where=role,
                expected=f"a signature by a key of {self.folder}",
                got=", ".join(keyid[:16] for keyid in theirs.signatures) or "none",
                fix="is it the right hub, and the right folder? Nothing is signed on top of it",
            )
        if theirs.signed.version == mine:
            raise TrustError(
                "the hub serves another list of the same version",
                where=f"{role}, version {mine}",
                expected="the one that was signed here",
                got="another one",
                fix=f"two people have signed at once: if the hub's shall count, remove {self._path(role)} and publish again",
            )
        return served

    def sign(
        self,
        role: str,
        *,
        served: bytes | None,
        said: int,
        add: Mapping[str, TargetInfo] | None = None,
        remove: Iterable[str] = (),
        now: float,
    ) -> bytes:
        """The role's next list; the same content for longer, where nothing is added or removed.

        Where the newest list that was signed here has not reached the hub, says just that, and holds for at least half of its time, it is that one again.

        Args:
            role: as the publisher named it.
            served: the list as the hub hands it out; None where it has none that counts.
            said: the version that the hub has named last for this role, by whatever key; 0 for none.
            add: target name -> size and digest.
            remove: names to retire.
            now: seconds since 1970.

        Raises:
            TrustError: what the hub hands out or says is not to be built on.
            ConflictError: another content under a name that is listed. NotFoundError: a name to remove is not listed.
            SettingError: the list would become longer than a hub takes. PathError: it cannot be written.
        """
        if said > MOST_SAID:
            raise TrustError(
                "the hub has named a version that is out of reach",
                where=role,
                expected=f"at most {MOST_SAID}",
                got=said,
                fix="if a stolen key has brought it there, have the publisher sign a root for a new key of the hub",
            )
        newest, remove = self.newest(role, served), list(remove)
        keys = self._all()
        if (
            newest is not None
            and newest != served
            and _holds(newest, least=said + 1, until=now + self._lifetime / 2)
            and _says(newest, served, add or {}, remove)
            and len(self._signers(newest)) == len(keys)
        ):
            return newest
        data = sign_targets(
            previous=newest,
            add=add or {},
            remove=remove,
            keys=list(keys.values()),
            expires=now + self._lifetime,
            trusted=[] if newest is None else self._signers(newest),
            least=said + 1,
            most_bytes=MAX_LIST_BYTES,
        )
        write_whole(self._path(role), data, mode=PUBLIC)
        return data

    def _own(self, role: str) -> bytes | None:
        path = self._path(role)
        return read_plain(path, what="the list", at_most=MAX_LIST_BYTES) if path.exists() else None

    def _path(self, role: str) -> Path:
        return self.folder / f"{quote(role, '')}.json"

    def _signers(self, targets: bytes) -> list[PublicKey]:
        signed = set(read(Targets, targets).signatures)
        return [key for key in self.keys().values() if key.keyid in signed]

    def _all(self) -> dict[str, SigningKey]:
        found = {}
        try:
            names = sorted(one.name for one in self.folder.iterdir() if _NAME.fullmatch(one.name))
        except OSError:
            names = []
        for name in names:
            with within(self.folder / name):
                pem = read_plain(self.folder / name, what="the key", at_most=MAX_PEM_BYTES)
                found[name] = SigningKey.from_pem(pem, self._passphrase)
        if not found:
            raise PathError(
                "not a delegate's folder",
                where=self.folder,
                expected="delegate-1.pem",
                got="none",
                fix="make one: edgestill release keys new",
            )
        return found


def _holds(newest: bytes, *, least: int, until: float) -> bool:
    """Whether a hub would take a list for its version, and for long enough."""
    signed = read(Targets, newest).signed
    return bool(signed.version >= least and signed.expires.timestamp() >= until)


def _says(newest: bytes, served: bytes | None, add: Mapping[str, TargetInfo], remove: Iterable[str]) -> bool:
    """Whether a list that has not reached the hub says already what is asked for."""
    before, after = {} if served is None else listed_in(served), listed_in(newest)
    is_added = all(after.get(name) == info for name, info in add.items())
    return is_added and all(name in before and name not in after for name in remove)
