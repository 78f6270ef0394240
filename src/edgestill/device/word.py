"""How a device hears of another authority of its fleet: the hub's word (`trust.vouched`), fetched where there is reason to.

- A poll tells the place of the newest word. Where that is not the device's, the word is fetched, and judged by the keys that the newest
  root names.
- A hub that shows a certificate of an authority that this device does not know may have gone over to the next one while it was away.
  Root metadata and the word are public, and verified whoever brings them: they are fetched without believing the connection, and
  nothing secret goes over it. What they say decides; where they say nothing new, the hub stays a stranger.
- Either is tried at most once in `PAUSE` seconds, and holds no poll up.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import EdgestillError, NotFoundError
from edgestill.device.papers import is_strange
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport
from edgestill.link.metered import Metered
from edgestill.link.tls import unverified_context
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata

if TYPE_CHECKING:
    from edgestill.core.errors import UnreachableError
    from edgestill.core.protocols import Clock, Transport
    from edgestill.device.home import Home
    from edgestill.device.papers import Papers
    from edgestill.link.ledger import Ledger

log = logging.getLogger(__name__)

PAUSE: Final = 600.0
"""Seconds between two tries."""
TIMEOUT: Final = 20.0


@final
class Word:
    """What one device hears about its fleet's authority.

    Args:
        home: of the device.
        papers: of the device.
        clock: of this machine.
        ledger: the device's data budget; None is none.
    """

    def __init__(self, home: Home, papers: Papers, clock: Clock, ledger: Ledger | None = None) -> None:
        self._home = home
        self._papers = papers
        self._clock = clock
        self._ledger = ledger
        self._told = 0
        self._again_at = clock.monotonic()

    def told(self, place: int) -> None:
        """What a poll said of the newest word."""
        if place != self._told:
            self._told, self._again_at = place, self._clock.monotonic()

    def hear(self, transport: Transport) -> bool:
        """Fetches the word that a poll has told of, if it is new and time to; whether others are believed now."""
        if self._told <= self._papers.place or self._clock.monotonic() < self._again_at:
            return False
        return self._fetch(transport)

    def after(self, error: UnreachableError) -> bool:
        """Looks whether there is a word that explains why the hub is a stranger, if it is one; whether others are believed now."""
        if not is_strange(error) or self._clock.monotonic() < self._again_at:
            return False
        with HttpTransport(clock=self._clock, tls=unverified_context()) as public:
            return self._fetch(public)

    def _fetch(self, transport: Transport) -> bool:
        self._again_at = self._clock.monotonic() + PAUSE
        carried = transport if self._ledger is None else Metered(transport, self._ledger)
        hub = ControlClient(carried, self._home.identity.hub, timeout=TIMEOUT)
        kept = KeptMetadata(self._home.tuf)
        trusted = TrustedClient(kept, root=self._home.root, fetch=hub.artefact, clock=self._clock)
        try:
            trusted.refresh_root()
            is_new = self._papers.vouch(hub.vouched(), trusted.assignment_keys)
        except NotFoundError:
            log.debug("this hub says nothing of the fleet's authority")
            return False
        except EdgestillError as error:
            log.warning("nothing new of the fleet's authority: %s", error)
            return False
        if is_new:
            log.warning(
                "another authority speaks for the fleet: the hub says so, and the publisher's root lets it"
            )
        return is_new
