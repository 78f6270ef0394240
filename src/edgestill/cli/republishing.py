"""What was published, brought again to a hub that lost it: the list stays as it is, so that devices find the version that they have seen.

- Archives go first, because a hub takes no list whose archives it has not; then every root, and the list last.
- What is listed and not to be had any more is named. It may be retired, in a next version of the list; nothing else is signed anew but a root
  that names the hub's key.
- Who has an older list than the hub, or another of the same version, brings nothing and signs nothing; and what was brought is asked for at the end.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgestill.cli.delivering import deliver, let_speak
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, NotFoundError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgestill.link.operator import OperatorClient
    from edgestill.trust.publisher import Publisher


def bring(
    signer: Publisher,
    client: OperatorClient,
    archives: Mapping[str, bytes],
    *,
    may_change: bool,
    without_missing: bool,
) -> list[str]:
    """Brings roots, archives and the list; what was retired.

    Args:
        signer: the publisher.
        client: of the hub.
        archives: target name -> archive, of those that the list names.
        may_change: whether the hub may have another key than the newest root names.
        without_missing: whether to retire what is listed, and neither given nor at the hub.

    Raises:
        NotFoundError: there is no list in the publisher's folder, an archive that it does not name was given, or one that it names is missing.
        ConflictError: an archive that is another one than the list says; or the hub's list is newer than this folder's, or not what was brought.
        TrustError: as `delivering.let_speak`; the hub's list is another one of the same version, or somebody else's.
    """
    served = client.targets()
    own = _going_on_from(signer, served)
    missing = _missing(own, served, archives)
    if missing and not without_missing:
        raise NotFoundError(
            "archives of the list are missing",
            where="targets.json",
            expected="each that is listed, as a file or at the hub",
            got=", ".join(missing[:10]) + (" and others" if len(missing) > 10 else ""),
            fix="give their files too, or retire them: --without-missing",
        )
    for archive in archives.values():
        client.upload_bundle(archive)
    if missing:
        now = SystemClock().now()
        signer.sign_targets(served=served, remove=missing, now=now)
    let_speak(signer, client, may_change=may_change)
    deliver(signer, client)
    _require_served(signer, client)
    return missing


def _going_on_from(signer: Publisher, served: bytes | None) -> bytes:
    """The list of this folder, where it is the newest: on another nothing is signed or built, and it is not called delivered."""
    own = signer.targets
    if own is None:
        raise NotFoundError(
            "nothing was published from this folder",
            where="targets.json",
            expected="the list that was signed last",
            got="none",
            fix="is it the right publisher's folder? Else publish: edgestill release publish",
        )
    if signer.newest(served) != own:
        raise ConflictError(
            "the hub's list is newer than this folder's",
            where="targets.json",
            expected="the list that was signed here last, or an older one",
            got="a newer one, by keys that count",
            fix="do it in the folder where it was signed; or publish, which goes on from the hub's list: edgestill release publish",
        )
    return own


def _require_served(signer: Publisher, client: OperatorClient) -> None:
    if client.targets() != signer.targets:
        raise ConflictError(
            "the hub serves another list than was brought",
            where="targets.json",
            expected="the list that was signed here last",
            got="another one",
            fix="does somebody else publish at the same time? Do it again",
        )


def _missing(own: bytes, served: bytes | None, archives: Mapping[str, bytes]) -> list[str]:
    """Names of the publisher's list whose archives are neither given nor at the hub."""
    from edgestill.trust.repository import listed_in

    listed, there = listed_in(own), {} if served is None else listed_in(served)
    for name, archive in archives.items():
        if name not in listed:
            raise NotFoundError(
                "an archive that the list does not name",
                where=name,
                expected="one that was published, and not retired",
                got=Digest.of(archive),
                fix="leave it out; it can be published afterwards",
            )
        if listed[name].digest != Digest.of(archive):
            raise ConflictError(
                "another archive than the one that was published",
                where=name,
                expected=listed[name].digest,
                got=Digest.of(archive),
                fix="find the file that was published; a new one needs a new version",
            )
    known = {info.digest for info in there.values()}
    return [name for name, info in listed.items() if name not in archives and info.digest not in known]
