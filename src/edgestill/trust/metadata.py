"""What publisher, hub and device agree on about TUF metadata: names, bounds, and whose errors are raised.

- Bytes are bounded, and checked to be strict JSON of bounded depth, before python-tuf sees them.
- A failure of python-tuf becomes one of ours: `ExpiredError` for what is past its time, `TrustError` for the rest.
- A bundle's entry is its size and its SHA-256. An entry that names neither is not ours to install.
- Clauses cited as "TUF 5.x" are those of the TUF specification 1.0, "Detailed client workflow".
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final
from urllib.parse import quote

from securesystemslib.signer import Signature  # type: ignore[attr-defined]  # re-exported there without saying so
from tuf.api.exceptions import ExpiredMetadataError, RepositoryError
from tuf.api.metadata import Metadata, Root, Snapshot, T, Targets, Timestamp  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.digest import Digest
from edgestill.core.errors import ExpiredError, MessageError, SettingError, TrustError
from edgestill.core.jsonio import parse_object
from edgestill.core.release import LISTED

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from tuf.api.metadata import Signed, TargetFile  # type: ignore[attr-defined]  # re-exported there without saying so

    from edgestill.trust.keys import SigningKey
    from edgestill.trust.named import NamedKey

ASSIGNMENT_FIELD: Final = "x-edgestill-assignment"

MAX_TARGET_BYTES: Final = 2**32
MAX_BYTES: Final = {
    Root.type: 128_000,
    Timestamp.type: 16_000,
    Snapshot.type: 64_000,
    Targets.type: 5_000_000,
}
"""Longest metadata file of each role, in bytes; 5 MB of targets list some 20,000 bundles."""

MAX_ROLE_NAME: Final = 200

_LAST: Final = datetime(9999, 1, 1, tzinfo=UTC).timestamp()


@dataclass(frozen=True, slots=True)
class TargetInfo:
    """What the publisher says about one bundle's archive.

    Attributes:
        size: bytes, at most `MAX_TARGET_BYTES`.
        digest: of all its bytes.
    """

    size: int
    digest: Digest

    def __post_init__(self) -> None:
        if not 0 <= self.size <= MAX_TARGET_BYTES:
            raise SettingError(
                "a target's size is out of range",
                expected=f"0 to {MAX_TARGET_BYTES} bytes",
                got=self.size,
                where="target: size",
                fix="is it the right file?",
            )


def target_path(name: str, digest: Digest) -> str:
    """Where the artefact plane serves a target: `targets/watch/1.0.0/<sha256>.CLASS.esb` (TUF 6.2)."""
    folder, _, file = name.rpartition("/")
    return f"targets/{folder}/{digest.hex}.{file}"


@contextmanager
def refusing(where: str) -> Iterator[None]:
    """Turns what python-tuf raises within into errors of ours.

    Raises:
        ExpiredError: metadata past its time.
        TrustError: not metadata, signed by too few, or against another rule of TUF.
    """
    try:
        yield
    except ExpiredMetadataError as error:
        raise ExpiredError(
            str(error),
            where=where,
            expected="metadata that still holds",
            got="metadata past its `expires`",
            fix="set the clock, or have the repository signed afresh",
        ) from error
    except MessageError as error:
        raise TrustError(
            error.what, where=error.where or where, expected=error.expected, got=error.got
        ) from error
    except (RepositoryError, ValueError) as error:
        why = error.__cause__ or error
        raise TrustError(
            "metadata is refused",
            where=where,
            got=f"{type(why).__name__}: {why}",
            expected="metadata that keeps the rules of TUF",
        ) from error


def check_bytes(role: str, data: bytes) -> None:
    """Bounds length and depth of metadata; MessageError where it is no strict JSON object."""
    parse_object(data, where=f"{role[:40]}.json", max_bytes=bound_of(role))


def read(role: type[T], data: bytes) -> Metadata[T]:
    """Metadata of one role, not yet trusted.

    Raises:
        TrustError: over a bound, or not metadata of this role.
    """
    with refusing(f"{role.type}.json"):
        check_bytes(role.type, data)
        found = Metadata[T].from_bytes(data)
        if found.signed.type != role.type:
            raise TrustError(
                "metadata of another role",
                where=f"{role.type}.json",
                expected=role.type,
                got=found.signed.type,
            )
        return found


def time_of(seconds: float) -> datetime:
    """A time since 1970 as TUF writes it: UTC, whole seconds, rounded down.

    Raises:
        SettingError: before 1970 or after 9998.
    """
    if not 0 <= seconds < _LAST:
        raise SettingError(
            "a time is out of range",
            expected="seconds since 1970, until 9998",
            got=seconds,
            where="expires",
            fix="choose another time",
        )
    return datetime.fromtimestamp(int(seconds), UTC)


def check_time(signed: Signed, now: float) -> None:
    """Checks that metadata has not expired.

    Raises:
        ExpiredError: it has.
    """
    if signed.is_expired(time_of(now)):
        raise ExpiredError(
            f"{signed.type}.json is past its time",
            expected=f"now before {signed.expires.isoformat()}",
            got=time_of(now).isoformat(),
            fix="set the clock, or have the repository signed afresh",
            where=f"{signed.type}.json",
        )


def target_info(name: str, entry: TargetFile) -> TargetInfo:
    """What an entry of targets metadata says about a bundle, a family of models, or a proxy set.

    Raises:
        TrustError: a name of none of these, no SHA-256, or over a bound.
    """
    if re.fullmatch(LISTED, name) is None:
        raise TrustError("not a target name", where="targets.json", expected=LISTED, got=repr(name[:100]))
    try:
        return TargetInfo(int(entry.length), Digest(entry.hashes.get("sha256", "")))
    except (MessageError, SettingError) as error:
        raise TrustError(
            error.what, where=f"targets.json: {name}", expected=error.expected, got=error.got
        ) from error


def file_of(role: str, version: int | None) -> str:
    """The file of a role: `3.targets.json`, or `timestamp.json` where no version is given; names of delegated roles are quoted.

    Raises:
        TrustError: a name that is too long for a file.
    """
    quoted = quote(role, "")
    if len(quoted) > MAX_ROLE_NAME:
        raise TrustError(
            "a role's name is too long",
            where="targets.json: delegations",
            expected=f"at most {MAX_ROLE_NAME} letters, quoted",
            got=role[:40],
        )
    return f"{quoted}.json" if version is None else f"{version}.{quoted}.json"


def bound_of(role: str) -> int:
    """The longest metadata file of a role, in bytes; a delegated one is as long as targets may be."""
    return MAX_BYTES.get(role, MAX_BYTES[Targets.type])


def signed_by(metadata: Metadata[T], keys: Sequence[SigningKey | NamedKey]) -> bytes:
    """The metadata with the signatures of these keys beside those it has."""
    data = metadata.signed_bytes
    for key in keys:
        keyid = key.public.keyid
        metadata.signatures[keyid] = Signature(keyid, key.sign(data).hex())
    return metadata.to_bytes()


def root_of(data: bytes) -> Root:
    """A root that vouches for itself.

    Raises:
        TrustError: it does not.
    """
    return verified(Root, data, read(Root, data).signed)


def verified(role: type[T], data: bytes, root: Root) -> T:
    """Metadata that carries the signatures which `root` asks for; its time is not looked at.

    Raises:
        TrustError: too few good signatures, or not metadata of this role.
    """
    found = read(role, data)
    with refusing(f"{role.type}.json"):
        root.verify_delegate(role.type, found.signed_bytes, found.signatures)
    return found.signed
