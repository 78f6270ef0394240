"""How one authority of the fleet hands over to the next, as files of the hub's folder.

| phase | `authority.pem` | issues | keys |
|---|---|---|---|
| settled | A | A | `authority.key` of A |
| announced | A, B | A | also `authority.next.key` of B |
| switched | B, A | B | both |
| settled | B | B | `authority.key` of B |

- `authority.pem` says where it stands, and is replaced whole: a kill leaves one phase or the other. Keys are written before it names
  their certificate, and removed after it no longer does; what a kill left of that, `settle` puts right.
- Devices get B while A still issues, then a certificate of B, and only then A goes: at no time does one that follows meet a stranger. Who does not
  follow in time, or where A had to go at once because its key was stolen, hears of B by the hub's word (`trust.vouched`).
- The number of that word grows before every change, so that it may grow once too often and never too seldom.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

from edgestill.core.bundle import replace, sync_folder
from edgestill.core.errors import ConflictError, MessageError, PathError, TrustError
from edgestill.core.files import read_plain
from edgestill.core.release import MAX_COUNTER
from edgestill.trust.authority import LIFETIME, Authority
from edgestill.trust.certificates import Authorities, IdentityKey, key_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cryptography import x509

AUTHORITY_KEY: Final = "authority.key"
AUTHORITIES: Final = "authority.pem"
NEXT_KEY: Final = "authority.next.key"
NUMBER: Final = "authority.number"

log: Final = logging.getLogger(__name__)

Phase = Literal["settled", "announced", "switched"]

_MAX_BYTES: Final = 65_536


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a hand-over stands.

    Attributes:
        authority: that issues, and whom members of the fleet believe.
        number: of the hub's word about them.
        phase: of the hand-over; settled where there is none.
    """

    authority: Authority
    number: int
    phase: Phase


def standing_of(folder: Path) -> Standing:
    """Reads it.

    Raises:
        PathError: a file cannot be read. MessageError: it is not what it should be.
        TrustError: no key is the one of the certificate that issues.
    """
    pem = read_authority(folder / AUTHORITIES)
    first, *others = Authorities.from_pem(pem).certificates
    key, spare = read_authority(folder / AUTHORITY_KEY), _next_key(folder)
    if spare is None:
        return Standing(Authority.open(key, pem), _number(folder), "settled")
    if _is_of(spare, first):
        return Standing(Authority.open(spare, pem), _number(folder), "switched" if others else "settled")
    is_announced = any(_is_of(spare, one) for one in others)
    return Standing(Authority.open(key, pem), _number(folder), "announced" if is_announced else "settled")


def begin(folder: Path, *, now: float) -> None:
    """Makes the next authority, which is believed from now on and does not issue yet.

    Raises:
        ConflictError: a hand-over is under way.
    """
    standing = _require(folder, "settled", "end that first: edgestill hub authority finish, or abandon")
    settle(folder)
    own = standing.authority.authorities
    made = Authority.create(own.fleet, until=now + LIFETIME)
    replace(folder / NEXT_KEY, made.key_pem())
    _believe(folder, (*own.certificates, *made.authorities.certificates))


def switch(folder: Path) -> None:
    """Lets the next authority issue.

    Raises:
        ConflictError: none was announced, or it issues already.
    """
    standing = _require(folder, "announced", "begin a hand-over first: edgestill hub authority begin")
    *others, following = standing.authority.authorities.certificates
    _believe(folder, (following, *others))


def switch_back(folder: Path) -> None:
    """Lets the authority issue again that did before.

    Raises:
        ConflictError: it does.
    """
    standing = _require(folder, "switched", "the one before issues still")
    following, *others = standing.authority.authorities.certificates
    _believe(folder, (*others, following))


def finish(folder: Path) -> None:
    """Drops the authority that issued before: its key is removed, and nobody believes its certificates from now on.

    Raises:
        ConflictError: the next one does not issue yet.
    """
    standing = _require(folder, "switched", "let the next one issue first: edgestill hub authority switch")
    _believe(folder, standing.authority.authorities.certificates[:1])
    _tidy(folder)


def abandon(folder: Path) -> None:
    """Drops the next authority, which does not issue.

    Raises:
        ConflictError: none was announced, or it issues already.
    """
    standing = _require(folder, "announced", "where it issues already: edgestill hub authority switch --back")
    _believe(folder, standing.authority.authorities.certificates[:-1])
    _tidy(folder)


def settle(folder: Path) -> None:
    """Gives the key that issues its name, and removes one that nobody believes: the end of a hand-over, or of what a kill left of it.

    Raises:
        PathError: the folder cannot be written.
    """
    spare = _next_key(folder)
    if spare is None:
        return
    first, *others = Authorities.from_pem(read_authority(folder / AUTHORITIES)).certificates
    try:
        if _is_of(spare, first) and not others:
            (folder / NEXT_KEY).replace(folder / AUTHORITY_KEY)
        elif not any(_is_of(spare, one) for one in (first, *others)):
            (folder / NEXT_KEY).unlink()
        sync_folder(folder)
    except OSError as error:
        raise PathError(
            "the authority's keys cannot be put in order",
            where=folder / NEXT_KEY,
            expected="a folder that can be written",
            got=error.strerror,
            fix="check its owner and its disk, and run init",
        ) from error


def _tidy(folder: Path) -> None:
    """Settles after a step that has taken effect: what is left to do then does not undo it, and `init` and the next `begin` do it again."""
    try:
        settle(folder)
    except PathError as error:
        log.warning("the hand-over is done, and its keys are not in order yet: %s", error)


def read_authority(path: Path) -> bytes:
    """A file of the authority; PathError where it cannot be read."""
    return read_plain(path, what="the authority", at_most=_MAX_BYTES)


STEPS: Final[dict[str, Callable[[Path], None]]] = {
    "switch": switch,
    "back": switch_back,
    "finish": finish,
    "abandon": abandon,
}
"""What may follow `begin`."""


def _require(folder: Path, phase: Phase, fix: str) -> Standing:
    standing = standing_of(folder)
    if standing.phase != phase:
        raise ConflictError(
            "the authority's hand-over is at another step",
            where=folder / AUTHORITIES,
            expected=phase,
            got=standing.phase,
            fix=fix,
        )
    return standing


def _believe(folder: Path, certificates: tuple[x509.Certificate, ...]) -> None:
    replace(folder / NUMBER, f"{_number(folder) + 1}\n".encode())
    replace(folder / AUTHORITIES, Authorities.of(certificates).to_pem())


def _number(folder: Path) -> int:
    path = folder / NUMBER
    if not path.exists():
        return 1
    text = read_plain(path, what="the number", at_most=64).decode("ascii", "replace").strip()
    if not text.isdecimal() or not 1 <= int(text) <= MAX_COUNTER:
        raise MessageError(
            "not the number of a word", where=path, expected=f"1 to {MAX_COUNTER}", got=text[:40]
        )
    return int(text)


def _next_key(folder: Path) -> bytes | None:
    path = folder / NEXT_KEY
    return read_authority(path) if path.exists() else None


def _is_of(key: bytes, certificate: x509.Certificate) -> bool:
    try:
        return IdentityKey.from_pem(key).id == key_id(certificate.public_key())  # type: ignore[arg-type]  # `Authorities` has none but P-256
    except (MessageError, TrustError):
        return False
