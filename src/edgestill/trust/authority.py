"""A fleet's own certificate authority: it says which key is which device, and for how long.

- Every name and every extension of what it issues is written here; the public key is all that comes from outside.
- It issues to devices and to its hub, and nothing else: its certificate allows no authority below it (RFC 5280, 4.2.1.9).
- Its own certificate has an end, long after its beginning: `LIFETIME`. One hands over to the next before that (`hub.authorities`), and a
  device that slept meanwhile hears of the next one from the keys that root metadata names (`trust.vouched`). Authorities of earlier
  versions have no end: `99991231235959Z` (RFC 5280, 4.1.2.5).
- What it issues ends no later than itself.
- What it issues begins three days before now, or as long before as it holds, because devices' clocks are not all right.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, Self, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgestill.core.errors import ExpiredError, MessageError, SettingError, TrustError
from edgestill.trust.certificates import (
    BACKDATED,
    FLEET,
    NAME,
    Authorities,
    IdentityKey,
    authority_uri,
    device_uri,
    hub_uri,
    key_id,
)
from edgestill.trust.metadata import time_of

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric import ec

    from edgestill.trust.certificates import Requested

MOST_HOSTS: Final = 16
LIFETIME: Final = 10 * 365.25 * 86_400.0
"""Seconds from its making to its end."""

_BEGINS: Final = datetime(2020, 1, 1, tzinfo=UTC)
_NO_END: Final = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_HOST: Final = r"(?=.{1,253}$)[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*"


@final
@dataclass(frozen=True, slots=True, eq=False)
class Authority:
    """The key that issues. Made by `create` or `open`.

    Attributes:
        authorities: whom members of the fleet shall believe; this one first.
    """

    authorities: Authorities
    _key: IdentityKey = field(repr=False)

    @classmethod
    def create(cls, fleet: str, *, until: float | None = None) -> Self:
        """A new authority.

        Args:
            fleet: 16 hex digits that no other fleet has.
            until: seconds since 1970 at which its certificate ends; None for no end.

        Raises:
            SettingError: not such an id, or a time that cannot be written.
        """
        if re.fullmatch(FLEET, fleet) is None:
            raise SettingError(
                "not the id of a fleet", where="fleet", expected=FLEET, got=fleet[:80], fix="draw it anew"
            )
        key = IdentityKey.generate()
        name = _name(fleet, "authority")
        made = (
            _begun(key.private.public_key(), name, _BEGINS, _NO_END if until is None else time_of(until))
            .issuer_name(name)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(issues=True), critical=True)
            .add_extension(_uri(authority_uri(fleet)), critical=False)
        )
        certificate = made.sign(key.private, SHA256())
        return cls(Authorities.of((certificate,)), key)

    @classmethod
    def open(cls, key: bytes, certificates: bytes) -> Self:
        """Reads what `key_pem` and `authorities.to_pem` gave.

        Raises:
            MessageError: not those. TrustError: the key is not the first certificate's.
        """
        private, authorities = IdentityKey.from_pem(key), Authorities.from_pem(certificates)
        public = authorities.certificates[0].public_key()
        if key_id(public) != private.id:  # type: ignore[arg-type]  # `Authorities` has none but P-256
            raise TrustError(
                "the authority's key is not its certificate's",
                where="authority",
                expected="a key and its own certificate",
                got="those of two authorities",
                fix="restore both files from one backup",
            )
        return cls(authorities, private)

    @property
    def until(self) -> float:
        """When its certificate ends, in seconds since 1970."""
        return self.authorities.certificates[0].not_valid_after_utc.timestamp()

    def key_pem(self) -> bytes:
        """The private key, for a file that is its owner's alone."""
        return self._key.to_pem()

    def device(self, requested: Requested, device: str, *, now: float, lifetime: float) -> bytes:
        """A device's certificate (PEM): to show to hubs, and to other devices when it serves them.

        Args:
            requested: the key.
            device: the name that the hub knows it by.
            now: seconds since 1970.
            lifetime: seconds from now.

        Raises:
            SettingError: a name that cannot be one, or a time out of range. ExpiredError: the authority has ended.
        """
        if re.fullmatch(NAME, device) is None:
            raise SettingError(
                "a name that cannot be used",
                where="device",
                expected=NAME,
                got=device[:80],
                fix="choose another",
            )
        fleet = self.authorities.fleet
        purposes = (ExtendedKeyUsageOID.CLIENT_AUTH, ExtendedKeyUsageOID.SERVER_AUTH)
        names = _uri(device_uri(fleet, device))
        return self._issue(requested.public, _name(fleet, "device", device), purposes, names, (now, lifetime))

    def server(self, key: IdentityKey, hosts: Sequence[str], *, now: float, lifetime: float) -> bytes:
        """A server certificate (PEM) for the hub.

        Args:
            key: of the server.
            hosts: names and addresses by which it is reached (RFC 9525).
            now: seconds since 1970.
            lifetime: seconds from now.

        Raises:
            SettingError: none, too many, or one that is no host. ExpiredError: the authority has ended.
        """
        fleet, names = self.authorities.fleet, self._server_names(hosts)
        purposes = (ExtendedKeyUsageOID.SERVER_AUTH,)
        public = key.private.public_key()
        return self._issue(public, _name(fleet, "hub"), purposes, names, (now, lifetime))

    def server_times(self, pem: bytes, hosts: Sequence[str]) -> tuple[float, float] | None:
        """From when to when a server's key and certificate hold; None where they are not what `server` gives for these hosts.

        Args:
            pem: the key and its certificate, from a file of the hub's own.
            hosts: as for `server`.

        Raises:
            SettingError: as `server`.
        """
        names = self._server_names(hosts)
        try:
            key, certificate = IdentityKey.from_pem(pem), x509.load_pem_x509_certificate(pem)
            certificate.verify_directly_issued_by(self.authorities.certificates[0])
            found = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        except (MessageError, ValueError, TypeError, InvalidSignature, x509.ExtensionNotFound):
            return None
        if found != names or certificate.public_key() != key.private.public_key():
            return None
        return certificate.not_valid_before_utc.timestamp(), certificate.not_valid_after_utc.timestamp()

    def _server_names(self, hosts: Sequence[str]) -> x509.SubjectAlternativeName:
        if not 1 <= len(hosts) <= MOST_HOSTS:
            raise SettingError(
                "a wrong number of hosts",
                where="server certificate",
                expected=f"1 to {MOST_HOSTS}",
                got=len(hosts),
                fix="name those by which devices reach the hub",
            )
        uri = x509.UniformResourceIdentifier(hub_uri(self.authorities.fleet))
        return x509.SubjectAlternativeName([*map(_host, hosts), uri])

    def _issue(
        self,
        public: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        purposes: Sequence[x509.ObjectIdentifier],
        names: x509.SubjectAlternativeName,
        time: tuple[float, float],
    ) -> bytes:
        now, lifetime = time
        if now >= self.until:
            raise ExpiredError(
                "the fleet's authority has ended",
                where="authority",
                expected=f"now before {self.until:.0f} (seconds since 1970)",
                got=int(now),
                fix="hand over to the next one: edgestill hub authority begin",
            )
        begins = max(now - min(BACKDATED, abs(lifetime)), min(now, 0.0))  # a clock may begin in 1970
        issuer = self.authorities.certificates[0]
        identifier = issuer.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        made = (
            _begun(public, subject, time_of(begins), time_of(min(now + lifetime, self.until)))
            .issuer_name(issuer.subject)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(issues=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
            .add_extension(names, critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False
            )
        )
        return made.sign(self._key.private, SHA256()).public_bytes(Encoding.PEM)


def _begun(
    public: ec.EllipticCurvePublicKey, subject: x509.Name, begins: datetime, ends: datetime
) -> x509.CertificateBuilder:
    """What all certificates have: a random serial number (RFC 5280, 4.1.2.2), a time, the key and its identifier (4.2.1.2)."""
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(ends)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
    )


def _name(fleet: str, what: str, device: str = "") -> x509.Name:
    """A distinguished name for people to read; it decides nothing."""
    parts = [
        x509.NameAttribute(NameOID.ORGANIZATION_NAME, f"edgestill fleet {fleet}"),
        x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, what),
    ]
    return x509.Name([*parts, x509.NameAttribute(NameOID.USER_ID, device)] if device else parts)


def _uri(uri: str) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)])


def _usage(*, issues: bool) -> x509.KeyUsage:
    """Signing certificates, or signing handshakes (RFC 5280, 4.2.1.3; RFC 8446, 4.4.2.2), and nothing else."""
    return x509.KeyUsage(
        digital_signature=not issues,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=issues,
        crl_sign=issues,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host.strip("[]")))
    except ValueError:
        pass
    if re.fullmatch(_HOST, host.lower()) is None:
        raise SettingError(
            "not a host",
            where="server certificate",
            expected="a name such as hub.example, or an address",
            got=host[:80],
            fix="write it as devices write it in the hub's address",
        )
    return x509.DNSName(host.lower())
