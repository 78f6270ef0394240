"""What a publisher has signed, brought to a hub: every root in its order, and the newest list."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from edgestill.core.clock import SystemClock
from edgestill.core.errors import RefusedError, TrustError

if TYPE_CHECKING:
    from edgestill.link.operator import OperatorClient
    from edgestill.trust.publisher import Publisher


def let_speak(signer: Publisher, client: OperatorClient, *, may_change: bool = False) -> None:
    """Brings the hub every root of this publisher, the newest of which names its key; signs the first one, where there is none yet.

    Raises:
        TrustError: the hub has another key than the one that is vouched for, and it may not change; or roots of somebody else.
    """
    from edgestill.trust.keys import PublicKey

    online, known = PublicKey.from_json(client.online_key(), where="online key"), signer.online
    if known is not None and known != online and not may_change:
        raise TrustError(
            "this hub has another key than the one that is vouched for",
            where="online key",
            expected=known.keyid[:16],
            got=online.keyid[:16],
            fix="is it the right hub? If its key has changed: edgestill release root --new-hub-key",
        )
    if known is None and client.root_of(1) is not None:
        raise _apart("the hub has a root of somebody else already", "a hub without a root", "1.root.json")
    if known != online:
        signer.sign_root(online, now=SystemClock().now())
    deliver(signer, client)


def deliver(signer: Publisher, client: OperatorClient) -> None:
    """Hands over what the hub lacks of roots and list; what was signed and not delivered, too.

    Raises:
        TrustError: the hub has newer roots than this folder, or roots of somebody else.
    """
    version = signer.version
    if client.root_of(version + 1) is not None:
        raise _apart(
            "the hub has newer roots than this folder", f"{version}.root.json at most", f"{version + 1}"
        )
    known = next((one for one in range(version, 0, -1) if client.root_of(one) is not None), 0)
    if known and client.root_of(known) != signer.root_of(known):
        raise _apart(
            "the hub has roots of somebody else", "those of this folder", f"another {known}.root.json"
        )
    if 0 < known < version and (own := signer.to_deliver(client.targets())) is not None:
        # signed by new keys too, it may be taken before they count: then there is no gap
        with suppress(RefusedError):
            client.upload_targets(own)
    if known == 0 and version > 1:  # a new hub: those that named another one come along
        client.upload_roots([signer.root_of(one) for one in range(1, version + 1)])
        known = version
    for one in range(known + 1, version + 1):
        client.upload_root(signer.root_of(one))
    if (own := signer.to_deliver(client.targets())) is not None:
        client.upload_targets(own)


def _apart(what: str, expected: str, got: str) -> TrustError:
    return TrustError(
        what,
        where="root.json",
        expected=expected,
        got=got,
        fix="is it the right hub? Another machine may have the newer folder of this publisher: go on from there",
    )
