"""TLS contexts for connections that we open: whom to believe, and what to show.

- Hosts are told by the alternative names of their certificates alone (RFC 9525, 6.3): a common name that looks like a host is none.
- A hub may have a certificate that the system's list vouches for, or one of its fleet's authority; either is believed, for its host.
- A member of the fleet is told by who it is, not by where it is: its certificate has no host, but a URI that names the device. So the
  host is not compared there, the URI is, and only the fleet's authority is believed.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING, Any, final

import urllib3
from urllib3.exceptions import InsecureRequestWarning

from edgestill.core.errors import MessageError

if TYPE_CHECKING:
    from pathlib import Path


def hub_context(authorities: str = "", shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """For connections to the hub.

    Args:
        authorities: of the fleet, as PEM; empty believes the system's list only.
        shown: certificate and key of the device; None shows nothing.

    Raises:
        MessageError: no certificates, or files that do not belong together or cannot be read.
    """
    context = ssl.create_default_context()
    context.hostname_checks_common_name = False
    return _filled(context, authorities, shown)


def member_context(authorities: str, uri: str, shown: tuple[Path, Path] | None = None) -> ssl.SSLContext:
    """For connections to another device of the fleet.

    Args:
        authorities: of the fleet, as PEM; nobody else is believed.
        uri: that the other's certificate must hold, or with `*` at its end how that begins.
        shown: certificate and key of this device; None shows nothing.

    Raises:
        MessageError: as `hub_context`.
    """
    context = MemberContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    context.uri = uri
    return _filled(context, authorities, shown)


def unverified_context() -> ssl.SSLContext:
    """Believes anybody: to fetch what is public and is checked against a digest afterwards. Nothing secret may be sent."""
    urllib3.disable_warnings(
        InsecureRequestWarning
    )  # it would tell its user that nothing was verified, which is so
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


@final
class MemberContext(ssl.SSLContext):
    """A context that looks at the URI of who answers, once the handshake has shown that the certificate is the fleet's.

    Attributes:
        uri: see `member_context`; empty lets nobody in.
    """

    uri = ""

    def wrap_socket(self, *args: Any, **options: Any) -> ssl.SSLSocket:
        """A connection to the member that was meant.

        Raises:
            ssl.SSLCertVerificationError: it is another.
        """
        wrapped = super().wrap_socket(*args, **options)
        if not _is_meant(self.uri, wrapped.getpeercert() or {}):
            wrapped.close()
            msg = f"the certificate is of another member than {self.uri}"
            raise ssl.SSLCertVerificationError(msg)
        return wrapped


def _is_meant(uri: str, certificate: Any) -> bool:
    names = [value for kind, value in certificate.get("subjectAltName", ()) if kind == "URI"]
    if uri.endswith("*"):
        return len(names) == 1 and names[0].startswith(uri[:-1])
    return bool(uri) and names == [uri]


def _filled(context: ssl.SSLContext, authorities: str, shown: tuple[Path, Path] | None) -> ssl.SSLContext:
    try:
        if authorities:
            context.load_verify_locations(cadata=authorities)
        if shown is not None:
            context.load_cert_chain(*shown)
    except (OSError, ValueError) as error:  # which errors of TLS are too
        raise MessageError(
            "what TLS needs cannot be used",
            where="certificates",
            expected="certificates in PEM, and a key that belongs to the one that is shown",
            got=error,
        ) from error
    return context
