"""TLS of a hub: its own certificate, and asking devices for theirs.

- Devices are asked for a certificate and need not have one (RFC 8446, 4.3.2 and 4.4.2.4): they enrol without, and people never
  have one. One that no authority of the fleet has signed, or that has ended, ends the handshake.
- What was shown goes into the scope of each request, as the ASGI TLS extension has it; nothing else decides who calls. A header
  cannot say it, and so a proxy cannot either: devices behind one show their credential.
- Where the operator has no certificate for the hub, the fleet's authority gives it one, for the hosts that were named; it is renewed
  while the hub runs, and kept over restarts: one that begins anew is refused by devices whose clocks are far behind. Devices trust that authority because their join token vouches for it.
- An authority that comes while the hub serves is believed at once. One that goes is believed in handshakes until the hub starts anew; who shows a
  certificate of it is refused by `hub.certificates`, which looks again.
"""

from __future__ import annotations

import logging
import ssl
from typing import TYPE_CHECKING, Any, Final, final

from uvicorn.protocols.http.h11_impl import H11Protocol

from edgestill.core.bundle import replace
from edgestill.core.errors import PathError, SettingError
from edgestill.core.files import read_plain
from edgestill.hub.certificates import CHAIN, TLS
from edgestill.trust.certificates import IdentityKey

if TYPE_CHECKING:
    import asyncio
    from collections.abc import Awaitable, Callable, MutableMapping, Sequence
    from pathlib import Path

    from edgestill.core.protocols import Clock
    from edgestill.hub.home import Home

    Scope = MutableMapping[str, Any]
    App = Callable[[Scope, Any, Any], Awaitable[None]]

log: Final = logging.getLogger(__name__)

SERVER: Final = "server.pem"
SERVER_LIFETIME: Final = 30 * 86_400.0

_MAX_BYTES: Final = 65_536


def context_of(home: Home) -> ssl.SSLContext:
    """A context that asks for devices' certificates, and has none of its own yet."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    believe(context, home)
    context.verify_mode = ssl.CERT_OPTIONAL
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    return context


def believe(context: ssl.SSLContext, home: Home) -> None:
    """Lets a context believe the fleet's authorities, beside those that it believes already."""
    context.load_verify_locations(cadata=home.authority.authorities.to_pem().decode("ascii"))


def load_given(context: ssl.SSLContext, certificate: Path, key: Path) -> None:
    """Takes the operator's certificate for the hub.

    Raises:
        SettingError: the files cannot be used.
    """
    try:
        context.load_cert_chain(certificate, key)
    except OSError as error:  # which errors of TLS are too
        raise SettingError(
            "the files for TLS cannot be used",
            where=f"{certificate}, {key}",
            expected="a PEM chain and its key",
            got=error,
            fix="check that they can be read and belong together",
        ) from error


@final
class OwnCertificate:
    """The hub's certificate where the fleet's authority gives it.

    Args:
        home: of the hub.
        context: that serves.
        hosts: names and addresses by which the hub is reached.
        clock: for its life.
    """

    def __init__(self, home: Home, context: ssl.SSLContext, hosts: Sequence[str], clock: Clock) -> None:
        self._home = home
        self._context = context
        self._hosts = tuple(dict.fromkeys(hosts))
        self._clock = clock
        self._due = 0.0

    def renew_if_due(self) -> bool:
        """Takes a new key and certificate where a third of the last one's life is left; whether it did.

        The first time it goes on with those of the run before, if they are for the same hosts.

        Connections that are open go on with what they began with.

        Raises:
            SettingError: a host that is none. PathError: the folder cannot be written.
        """
        now = self._clock.now()
        path = self._home.folder / SERVER
        if not self._due and (kept := self._kept(path)) is not None:
            begins, ends = kept
            if begins <= now < ends - SERVER_LIFETIME / 3:
                self._context.load_cert_chain(path)
                self._due = ends - SERVER_LIFETIME / 3
        if now < self._due:
            return False
        key = IdentityKey.generate()
        certificate = self._home.authority.server(key, self._hosts, now=now, lifetime=SERVER_LIFETIME)
        replace(path, key.to_pem() + certificate)
        self._context.load_cert_chain(path)
        self._due = now + SERVER_LIFETIME * 2 / 3
        log.info("serves with a certificate of the fleet's authority, for %s", ", ".join(self._hosts))
        return True

    def follow(self, home: Home) -> None:
        """Goes by another authority; the certificate is looked at when it is asked for next."""
        self._home, self._due = home, 0.0

    def _kept(self, path: Path) -> tuple[float, float] | None:
        """From when to when what an earlier run has left holds; None where it is of no use."""
        try:
            pem = read_plain(path, what="the hub's certificate", at_most=_MAX_BYTES)
        except PathError:
            return None
        return self._home.authority.server_times(pem, self._hosts)


@final
class TlsHttp(H11Protocol):
    """HTTP/1.1 over TLS, which tells the application what certificate the other end has shown.

    Source: ASGI TLS extension 0.2. The chain holds the first certificate only, which is all that Python's `ssl` hands out; what else the
    extension has is not known here.
    """

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in the class above
        """A connection, after its handshake."""
        super().connection_made(transport)
        shown = transport.get_extra_info("ssl_object").getpeercert(binary_form=True)
        self.app = told(self.app, None if shown is None else ssl.DER_cert_to_PEM_cert(shown))


def told(app: Any, shown: str | None) -> Any:
    """The application, which is told for each request what was shown on its connection.

    Args:
        app: an ASGI application.
        shown: PEM; None where nothing was.
    """
    tls = {
        "server_cert": None,
        CHAIN: () if shown is None else (shown,),
        "client_cert_name": None,
        "client_cert_error": None,
        "tls_version": None,
        "cipher_suite": None,
    }

    async def telling(scope: Scope, receive: Any, send: Any) -> None:
        extensions = {**(scope.get("extensions") or {}), TLS: tls}
        await app({**scope, "extensions": extensions}, receive, send)

    return telling
