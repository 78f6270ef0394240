"""Where a server listens and who may connect, checked before a port is bound.

- Without tokens and without clients' certificates it listens on the loopback only, unless it shall be open.
- Tokens travel over the port: on other addresses that takes TLS, or a proxy before it that speaks TLS.
"""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from typing import TYPE_CHECKING

from edgestill.core.errors import SettingError
from edgestill.core.listening import check_port, is_loopback
from edgestill.device.home import AUTHORITIES, CERTIFICATE, DEVICE_KEY
from edgestill.device.papers import Papers

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.protocols import Clock
    from edgestill.device.home import Home
    from edgestill.device.serve.tokens import Token


@dataclass(frozen=True, slots=True, kw_only=True)
class Tls:
    """Files in PEM.

    Attributes:
        certificate: of the server, with those that it leans on.
        key: of the certificate.
        clients: authorities, one of which must have signed a client's certificate; None asks clients for none.
        renews: whether the certificate is replaced now and then, and read again.
    """

    certificate: Path
    key: Path
    clients: Path | None = None
    renews: bool = False

    def check(self) -> None:
        """Tries to use them.

        Raises:
            SettingError: they cannot be read, or do not fit each other.
        """
        try:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(self.certificate, self.key)
            if self.clients is not None:
                context.load_verify_locations(self.clients)
        except OSError as error:  # which errors of TLS are too
            raise SettingError(
                "the files for TLS cannot be used",
                where=", ".join(str(one) for one in (self.certificate, self.key, self.clients) if one),
                expected="a PEM certificate, its key, and authorities for clients if wanted",
                got=error,
                fix="check that they can be read and belong together",
            ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class Listening:
    """Where, and who may connect.

    Attributes:
        host: an address of this machine.
        port: 0 takes a free one.
        tokens: one of which a caller must show; none asks for none.
        tls: None speaks plain HTTP.
        is_open: whether anybody may ask, from anywhere.
        behind_proxy: whether a proxy before it speaks TLS.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    tokens: tuple[Token, ...] = ()
    tls: Tls | None = None
    is_open: bool = False
    behind_proxy: bool = False

    def __post_init__(self) -> None:
        check_port(self.port)
        if is_loopback(self.host):
            return
        knows_callers = bool(self.tokens) or (self.tls is not None and self.tls.clients is not None)
        if not knows_callers and not self.is_open:
            raise SettingError(
                "anybody could ask",
                where=f"--host {self.host}",
                expected="a loopback address, tokens, or certificates of clients",
                got="another address, without any of them",
                fix="give --token-file or --client-ca, or --open where anybody may ask",
            )
        if self.tokens and self.tls is None and not self.behind_proxy:
            raise SettingError(
                "tokens would travel in the clear",
                where=f"--host {self.host}",
                expected="a loopback address, or TLS",
                got="another address, without TLS",
                fix="give --tls-certificate and --tls-key, or --behind-proxy where a proxy speaks TLS",
            )


def fleet_tls(home: Home, clock: Clock) -> Tls:
    """The device's own papers: it serves with its certificate, and asks for one of the same fleet.

    Raises:
        SettingError: the device has no certificate that holds.
    """
    found = Papers.of(home, clock).member()
    if found is None or not found.begins <= clock.now() <= found.ends:
        raise SettingError(
            "this device has no certificate that holds",
            where="--tls-fleet",
            expected="a certificate of the fleet in the device's home",
            got="none" if found is None else "one that does not hold now",
            fix="let the agent run: it asks the hub for one",
        )
    path = home.path
    tls = Tls(certificate=path / CERTIFICATE, key=path / DEVICE_KEY, clients=path / AUTHORITIES, renews=True)
    tls.check()
    return tls


def tls_of(certificate: Path | None, key: Path | None, clients: Path | None) -> Tls | None:
    """The files that were named, if any.

    Raises:
        SettingError: some of what belongs together is missing, or cannot be used.
    """
    if certificate is None and key is None and clients is None:
        return None
    if certificate is None or key is None:
        raise SettingError(
            "half of what TLS needs",
            where="--tls-certificate" if certificate is None else "--tls-key",
            expected="--tls-certificate and --tls-key",
            got="one of them, or --client-ca alone",
            fix="give the other one too",
        )
    tls = Tls(certificate=certificate, key=key, clients=clients)
    tls.check()
    return tls
