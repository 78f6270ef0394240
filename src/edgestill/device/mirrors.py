"""Places nearby that hand out what the hub does: a cache of the site, a device that has the bundle already.

    mirrors.json      in a device's home: {"mirrors": ["http://10.0.0.2:8000", ...]}

Patches and archives are asked of them before the hub, under the same paths, and without any credential. Nothing that comes from
one is believed: size and digest are the publisher's, a patch is a hint. So plain HTTP will do. What they begin lies apart from what the hub
began, so that they cannot spoil it. For a patch and for an archive all of them together get a minute, once in ten: who is slow, silent or sends
something else is left alone for as long.
"""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.bundle import replace as write_whole
from edgestill.core.bundle import sync_folder
from edgestill.core.errors import (
    AccessError,
    ConflictError,
    DeadlineError,
    MessageError,
    NotFoundError,
    RefusedError,
    SettingError,
    TrustError,
    UnreachableError,
)
from edgestill.core.files import read_plain
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.protocols import Request
from edgestill.device.home import MIRRORS
from edgestill.link.download import download
from edgestill.link.exchange import ABSENT, accepted, exchange
from edgestill.link.http import check_url
from edgestill.trust.client import target_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from edgestill.core.protocols import Clock, Response, Transport
    from edgestill.device.state import Target

log = logging.getLogger(__name__)

MOST: Final = 8
MAX_BYTES: Final = 16_384
MOST_URL: Final = 500
TIMEOUT: Final = 5.0
"""Seconds for a patch, for a word that there is none, and for each stretch of an archive."""
TOGETHER: Final = 60.0
"""Seconds that all of them may take for one thing."""
MINIMUM_SPEED: Final = 32_768.0
"""Bytes a second of an archive; who is slower is no help."""
PAUSE: Final = 600.0
"""Seconds for which one that failed is left alone."""
BUSY: Final = 30.0
"""Seconds for which one is that has no place free (HTTP 503)."""
_URL: Final = r"https?://[^\s?#]{1,500}"
_NO_HELP: Final = (TrustError, MessageError, AccessError, RefusedError, UnreachableError, DeadlineError)


@dataclass(frozen=True, slots=True)
class Mirrors:
    """Addresses, in the order in which they are asked."""

    each: tuple[str, ...] = ()

    @classmethod
    def of(cls, path: Path) -> Self:
        """Reads a file that may be missing: only the hub is asked then.

        Raises:
            PathError: it cannot be read. MessageError, SettingError, ConflictError: it holds no such list.
        """
        if not path.exists():
            return cls()
        return cls.from_bytes(read_plain(path, what="the mirrors", at_most=MAX_BYTES), str(path))

    @classmethod
    def from_bytes(cls, data: bytes, where: str = MIRRORS) -> Self:
        """Reads the file's bytes.

        Raises:
            MessageError: not the format. SettingError: an address that cannot be asked. ConflictError: one twice.
        """
        fields = Fields(parse_object(data, where=where, max_bytes=MAX_BYTES), where)
        fields.only(("mirrors",))
        found = cls()
        for url in fields.items("mirrors", at_most=MOST):
            found = found.with_one(Fields({"url": url}, where).text("url", at_most=MOST_URL, plain=True))
        return found

    def write(self, path: Path) -> None:
        """Writes the file at once or not at all; PathError where it cannot be written."""
        write_whole(path, canonical({"mirrors": list(self.each)}))

    def with_one(self, url: str) -> Self:
        """With another, asked after the others.

        Raises:
            SettingError: an address that cannot be asked. ConflictError: it is there already, or there are too many.
        """
        if re.fullmatch(_URL, url) is None or not url.isprintable() or len(url) > MOST_URL:
            raise SettingError(
                "not an address of a mirror",
                where=MIRRORS,
                expected=f"http://HOST:PORT or https://HOST, of at most {MOST_URL} characters, without ? and #",
                got=repr(url[:100]),
                fix="correct it",
            )
        url = check_url(url, plain_http=True).rstrip("/")
        if url in self.each or len(self.each) == MOST:
            raise ConflictError(
                "there is such a mirror already, or there are too many",
                where=MIRRORS,
                expected=f"at most {MOST}, each once",
                got=url,
                fix="remove one first",
            )
        return replace(self, each=(*self.each, url))

    def without(self, url: str) -> Self:
        """Without this one; NotFoundError where it is not there."""
        url = url.rstrip("/")
        if url not in self.each:
            raise NotFoundError(
                "there is no such mirror",
                where=MIRRORS,
                expected=", ".join(self.each) or "none",
                got=url[:500],
                fix="name one of these",
            )
        return replace(self, each=tuple(one for one in self.each if one != url))


@final
class Nearby:
    """Asks mirrors, one after another.

    Args:
        mirrors: who is asked.
        transport: that may speak plain HTTP, and sends nothing of ours along.
        clock: for speeds and pauses.
    """

    def __init__(self, mirrors: Mirrors, *, transport: Transport, clock: Clock) -> None:
        self._transport = transport
        self._clock = clock
        self._until = dict.fromkeys(mirrors.each, clock.monotonic())

    def hints(self, path: str, at_most: int) -> Iterator[tuple[str, bytes]]:
        """What each has under `patches/...`, with whom it is from; who has nothing is passed over.

        Args:
            path: of the patch.
            at_most: bytes.
        """
        hurried = self._hurried()
        for url in self._willing():
            request = Request("GET", f"{url}/{path}")
            began = self._clock.monotonic()
            try:
                reply = exchange(hurried, request, timeout=TIMEOUT, max_bytes=at_most)
                hint = accepted(reply, request, documented=ABSENT).body
            except NotFoundError as error:
                self._passed_over(url, error, began)
            except _NO_HELP as error:
                self.leave_alone(url, error)
            else:
                yield url, hint

    def archive(self, target: Target, *, to: Path) -> bool:
        """Brings an archive, if somebody has it. What one began, the next goes on with; the hub does not.

        Args:
            target: of the publisher's list.
            to: where it shall be.

        Raises:
            PathError: it cannot be written.
        """
        hurried, own = self._hurried(), apart(to)
        for url in self._willing():
            began = self._clock.monotonic()
            try:
                download(
                    hurried,
                    f"{url}/{target_path(target.name, target.digest)}",
                    to=own,
                    size=target.size,
                    digest=target.digest,
                    clock=self._clock,
                    timeout=TIMEOUT,
                    minimum_speed=MINIMUM_SPEED,
                )
            except NotFoundError as error:
                self._passed_over(url, error, began)
            except _NO_HELP as error:
                self.leave_alone(url, error)
            else:
                own.replace(to)
                sync_folder(to.parent)
                log.info("%s is from %s", target.release, url)
                return True
        return False

    def leave_alone(self, url: str, why: Exception) -> None:
        """Does not ask one for a while."""
        log.info("%s is left alone for a while: %s", url, why)
        pause = BUSY if isinstance(why, RefusedError) and str(why.got).startswith("HTTP 503") else PAUSE
        self._until[url] = self._clock.monotonic() + pause

    def _passed_over(self, url: str, why: NotFoundError, began: float) -> None:
        """One that has it not; who takes long to say so is not asked again soon."""
        if self._clock.monotonic() - began >= TIMEOUT:
            self.leave_alone(url, why)

    def _hurried(self) -> _Hurried:
        return _Hurried(self._transport, self._clock, self._clock.monotonic() + TOGETHER)

    def _willing(self) -> Iterator[str]:
        began = self._clock.monotonic()
        for url in [url for url, until in self._until.items() if began >= until]:
            if self._clock.monotonic() - began < TOGETHER:
                yield url


def apart(to: Path) -> Path:
    """Where mirrors bring a file, before it gets its name; hidden, so that a start sweeps it up."""
    return to.with_name(f".{to.name}.nearby")


@final
class _Hurried:
    """A transport whose exchanges all end before some moment."""

    def __init__(self, inner: Transport, clock: Clock, until: float) -> None:
        self._inner, self._clock, self._until = inner, clock, until

    def send(self, request: Request, *, timeout: float) -> Response:
        """Sends the request; see `core.protocols.Transport`."""
        left = self._until - self._clock.monotonic()
        if left <= 0:
            raise DeadlineError(
                "no time left for mirrors",
                where=request.url,
                expected=f"all of them within {TOGETHER:g} s",
                got="more",
            )
        return self._inner.send(request, timeout=min(timeout, left))
