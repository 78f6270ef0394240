"""The papers of a device: its key, its certificate, and whom it believes about its fleet.

    device.key        the private key; made here, never sent, readable by its owner alone
    authorities.pem   certificates of the fleet's authority, which the join token vouched for, or the word that is kept beside it
    certificate.pem   what the hub made of the key; holds for days
    authorities.json  the newest word about the authority (`trust.vouched`), once there was one

- At joining key and certificate are written once the hub has answered, and the identity after them: where the power fails before that,
  nothing of it counts, and the device joins again with another key. From then on the key never changes, and the certificate is
  replaced whole. So there is a key and a certificate for it, or a key and the credential, and either gets the next certificate.
- Where there is no key, one is made and written before the hub hears of it. One that cannot be read now (a disk's error, no handles
  left) may be whole: it is left alone, and read again at the next try. A damaged one is kept beside the new one.
- Nothing read back is believed: what is missing, damaged or of somebody else is as good as not there. The device then shows its
  credential only, and asks for a certificate again.
- A certificate that has ended is not shown, because a hub would end the handshake over it; the credential still opens. By whose clock
  it has ended the device cannot know: where a connection broke over which it was shown, or the hub answered 401, the next request
  goes without, and the next certificate is asked for. So a clock that is behind locks no device out.
- Once a word about the authority was heard, nothing but a newer one changes who is believed: not the answer that brings a certificate, and
  so not whoever has the key of an authority that was left. A certificate of another authority than the first that is believed is due.
- A word counts as gone by, here and in what a poll tells the hub, when those that it names are believed, and not when it is kept.
- Whoever sends asks for the context before each request (`link.http`), and the files are looked at then: the supervisor renews, and the
  engine's process shows the new certificate too. Where the hub speaks plain HTTP (on the loopback) there is no context to ask for.
"""

from __future__ import annotations

import logging
import ssl
import threading
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.bundle import replace
from edgestill.core.errors import EdgestillError, MessageError, PathError, TrustError, UnreachableError
from edgestill.core.files import read_plain
from edgestill.device.home import AUTHORITIES, CERTIFICATE, DEVICE_KEY, PAPERS, VOUCHED
from edgestill.link.http import HttpTransport
from edgestill.link.tls import hub_context, member_context

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.protocols import Clock, Request, Response, Transport
    from edgestill.core.wire import Certified, Enrolled
    from edgestill.device.home import Home
    from edgestill.trust.assignment import AssignmentKeys
    from edgestill.trust.certificates import Authorities, IdentityKey, Member
    from edgestill.trust.vouched import Vouched

log = logging.getLogger(__name__)

DAMAGED: Final = f"{DEVICE_KEY}.damaged"
_MAX_BYTES: Final = 65_536
_NEVER: Final = (1.0, 0.0)


@final
class Papers:
    """Of the device that lives in a home.

    Args:
        folder: the home's.
        device: its name.
        clock: of this machine.
    """

    def __init__(self, folder: Path, device: str, clock: Clock) -> None:
        self._folder = folder
        self._device = device
        self._clock = clock
        self._lock = threading.Lock()
        self._seen: tuple[object, bool] | None = None
        self._is_refused = False
        self._times = _NEVER
        self._context: ssl.SSLContext | None = None

    @classmethod
    def of(cls, home: Home, clock: Clock) -> Self:
        """Of a home that is open."""
        return cls(home.path, home.identity.device, clock)

    def member(self) -> Member | None:
        """Whom the certificate speaks for, if it is this device's and for its key, whatever its time; None where there is no such one."""
        try:
            return self._member()
        except EdgestillError as error:
            if (self._folder / CERTIFICATE).exists():
                log.debug("the certificate is of no use: %s", error)
            return None

    def is_due(self, now: float) -> bool:
        """Whether to ask for a certificate: there is none, the hub seems not to hear it, a third of its life is left, or another authority issues now."""
        found = self.member()
        return found is None or self._is_refused or found.is_due(now) or found.issuer != self._issuing()

    @property
    def place(self) -> int:
        """Of the newest word about the authority that is gone by; 0 before the first, and where one was kept by half: it is heard again."""
        found = self._vouched()
        return 0 if found is None or not self._goes_by(found) else found.place

    def believes(self) -> str:
        """What a poll says of these papers; see `core.wire.BELIEVES_HEADER`."""
        found = self.member()
        return f"{self.place} {'-' if found is None else found.issuer}"

    def vouch(self, word: bytes, keys: AssignmentKeys) -> bool:
        """Goes by a word about the authority; whether that changes who is believed.

        Raises:
            TrustError, MessageError, ReplayError: see `trust.vouched.verify`. PathError: it cannot be kept.
        """
        from edgestill.trust import vouched

        before = self._vouched()
        told = vouched.verify(word, keys=keys, seen=0 if before is None else before.place)
        is_new = not self._goes_by(told)
        # the word first: cut off in between, the same word is heard again (`place` says 0), and an older one is not
        replace(self._folder / VOUCHED, word)
        if is_new:
            replace(self._folder / AUTHORITIES, told.authorities.to_pem())
        return is_new

    def _goes_by(self, word: Vouched) -> bool:
        """Whether those that are believed are those of the word."""
        try:
            return self._read(AUTHORITIES) == word.authorities.to_pem()
        except PathError:
            return False

    def request(self) -> bytes:
        """What to send to the hub for the next certificate (PEM).

        Raises:
            PathError: the key is there and cannot be read, or there was none, and a new one cannot be written.
        """
        from edgestill.trust.certificates import IdentityKey

        try:
            return self._key().request()
        except PathError as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
        except MessageError as error:
            log.warning("the device's key is lost, and kept as %s: %s", DAMAGED, error)
            self._put_aside()
        key = IdentityKey.generate()
        replace(self._folder / DEVICE_KEY, key.to_pem())
        return key.request()

    def _put_aside(self) -> None:
        """Keeps a key that is damaged: the first one, which is the one that the hub knows."""
        kept = self._folder / DAMAGED
        try:
            if not kept.exists():
                (self._folder / DEVICE_KEY).rename(kept)
        except OSError as error:
            raise PathError(
                "a damaged key cannot be put aside",
                where=kept,
                expected="a folder that can be written",
                got=error.strerror,
                fix="check the folder's owner and its disk",
            ) from error

    def accept(self, certified: Certified) -> None:
        """Keeps what the hub gave.

        Raises:
            TrustError, MessageError: not a certificate for this device's key and name.
            PathError: it cannot be written.
        """
        certificate, word = certified.certificate.encode(), self._vouched()
        authorities = certified.authorities.encode() if word is None else word.authorities.to_pem()
        _checked(certificate, _authorities(authorities), self._key(), self._device)
        replace(self._folder / AUTHORITIES, authorities)
        replace(self._folder / CERTIFICATE, certificate)

    def context(self) -> ssl.SSLContext | None:
        """For connections to the hub: the same until the papers change, or the certificate ends or is refused. None without papers."""
        with self._lock:
            files = tuple(map(self._state, PAPERS))
            if self._seen is None or self._seen[0] != files:
                found = self.member()
                self._times = _NEVER if found is None else (found.begins, found.ends)
                self._is_refused = False
            begins, ends = self._times
            now = (files, begins <= self._clock.now() <= ends and not self._is_refused)
            if self._seen != now:
                self._seen, self._context = now, self._made(shows=now[1])
            return self._context

    @property
    def shows(self) -> bool:
        """Whether the context that was given last shows a certificate."""
        return self._seen is not None and self._seen[1]

    def failed(self, *, shown: bool) -> None:
        """Goes the other way next: without the certificate where it was shown, with it where it was not.

        Args:
            shown: whether the request that failed went over a connection that shows it.
        """
        with self._lock:
            self._is_refused = shown

    def to_member(self, device: str) -> Callable[[], ssl.SSLContext]:
        """Gives contexts for connections to another device of the fleet: the same one until the papers change.

        Args:
            device: its name; `*` for any of the fleet.

        Returns:
            A function for `link.http.HttpTransport`; it raises UnreachableError while this device has no certificate.
        """
        seen: object = None
        context: ssl.SSLContext | None = None

        def given() -> ssl.SSLContext:
            nonlocal seen, context
            with self._lock:
                files = tuple(map(self._state, PAPERS))
                if context is None or seen != files:
                    seen, context = files, self._to_member(device)
                return context

        return given

    def _to_member(self, device: str) -> ssl.SSLContext:
        from edgestill.trust.certificates import device_uri

        try:
            found = self._member()
            authorities = self._read(AUTHORITIES).decode("ascii", "replace")
            return member_context(authorities, device_uri(found.fleet, device), self._files)
        except EdgestillError as error:
            raise UnreachableError(
                "this device has no certificate to show to its neighbours",
                where=CERTIFICATE,
                expected="a certificate of the fleet",
                got=error.what,
                fix="let the agent run: it asks the hub for one",
            ) from error

    def _made(self, *, shows: bool) -> ssl.SSLContext | None:
        try:
            authorities = self._authorities().to_pem().decode("ascii")
            return hub_context(authorities, self._files if shows else None)
        except EdgestillError as error:
            if (self._folder / AUTHORITIES).exists():
                log.warning("%s", error)
            return None

    def _member(self) -> Member:
        return _checked(self._read(CERTIFICATE), self._authorities(), self._key(), self._device)

    def _issuing(self) -> str:
        return self._authorities().digests[0]

    def _vouched(self) -> Vouched | None:
        from edgestill.trust.vouched import Vouched

        try:
            return Vouched.read(self._read(VOUCHED))
        except EdgestillError as error:
            if (self._folder / VOUCHED).exists():
                log.warning("the word about the fleet's authority is lost: %s", error)
            return None

    def _key(self) -> IdentityKey:
        from edgestill.trust.certificates import IdentityKey

        return IdentityKey.from_pem(self._read(DEVICE_KEY))

    def _authorities(self) -> Authorities:
        return _authorities(self._read(AUTHORITIES))

    @property
    def _files(self) -> tuple[Path, Path]:
        return self._folder / CERTIFICATE, self._folder / DEVICE_KEY

    def _read(self, name: str) -> bytes:
        return read_plain(self._folder / name, what="the device's papers", at_most=_MAX_BYTES)

    def _state(self, name: str) -> tuple[int, ...] | None:
        try:
            about = (self._folder / name).stat()
        except OSError:
            return None
        return about.st_ino, about.st_mtime_ns, about.st_size


@final
class HubTransport:
    """Carries requests to the hub, and tells the papers where their certificate may be what it refuses.

    Args:
        inner: that asks the papers for its context.
        papers: of the device.
    """

    def __init__(self, inner: Transport, papers: Papers) -> None:
        self._inner = inner
        self.papers = papers

    def send(self, request: Request, *, timeout: float) -> Response:
        """Sends the request; see `core.protocols.Transport`.

        Raises:
            UnreachableError, DeadlineError, SettingError: from the inner one.
        """
        self.papers.context()
        shown = self.papers.shows
        try:
            response = self._inner.send(request, timeout=timeout)
        except UnreachableError as error:
            if _broke(error):
                self.papers.failed(shown=shown)
            raise
        if response.status == HTTPStatus.UNAUTHORIZED:
            self.papers.failed(shown=shown)
        return response


def is_strange(error: UnreachableError) -> bool:
    """Whether whoever answered showed a certificate that this device does not believe."""
    return any(isinstance(one, ssl.SSLCertVerificationError) for one in _causes(error))


def _broke(error: UnreachableError) -> bool:
    """Whether a connection was there and broke, as over a certificate: in the handshake, or (TLS 1.3) right after it."""
    return any(
        isinstance(one, (ssl.SSLError, ConnectionResetError, BrokenPipeError)) for one in _causes(error)
    )


def _causes(error: UnreachableError) -> tuple[object, ...]:
    cause = error.__cause__
    return (error, cause, *(() if cause is None else cause.args))


def hub_transport(home: Home, clock: Clock) -> Transport:
    """Real sockets to the hub of a home, which show the device's certificate while it holds and is heard."""
    if not home.identity.hub.startswith("https:"):
        return HttpTransport(clock=clock)
    papers = Papers.of(home, clock)
    return HubTransport(HttpTransport(clock=clock, tls=papers.context), papers)


def papers_of(transport: Transport, home: Home, clock: Clock) -> Papers:
    """The papers that a transport shows, so that whoever renews them hears of a refusal; else those of the home."""
    return transport.papers if isinstance(transport, HubTransport) else Papers.of(home, clock)


def first_papers(enrolled: Enrolled, key: IdentityKey, vouched: str | None) -> dict[str, bytes]:
    """The papers that enrolment gave, by file; none where the hub gives none.

    Args:
        enrolled: the hub's answer.
        key: whose request was sent.
        vouched: digest of the authority's certificate that the join token names; None where it names none, and the hub is believed.

    Raises:
        TrustError: another authority than that, or a certificate that is not this device's.
        MessageError: not certificates.
    """
    if not enrolled.certificate:
        return {}
    authorities = _authorities(enrolled.authorities.encode())
    if vouched is not None:
        authorities = authorities.only(vouched)
    certificate = enrolled.certificate.encode()
    _checked(certificate, authorities, key, enrolled.device)
    return {DEVICE_KEY: key.to_pem(), AUTHORITIES: authorities.to_pem(), CERTIFICATE: certificate}


def _authorities(pem: bytes) -> Authorities:
    from edgestill.trust.certificates import Authorities

    return Authorities.from_pem(pem)


def _checked(certificate: bytes, authorities: Authorities, key: IdentityKey, device: str) -> Member:
    """Whom a certificate speaks for: this device, with this key; whatever its time."""
    found = authorities.member(certificate)
    if (found.device, found.key) != (device, key.id):
        raise TrustError(
            "a certificate that is not this device's",
            where="certificate",
            expected=f"{device}, key {key.id}",
            got=f"{found.device}, key {found.key}",
            fix="ask the operator whether the hub is the right one",
        )
    return found
