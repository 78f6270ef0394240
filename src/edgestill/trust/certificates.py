"""Certificates by which devices show who they are (X.509 v3; RFC 5280): the key, the request, and what is believed of one.

- The key is ECDSA over P-256: every TLS library, secure element and TPM has it, and TLS 1.3 makes it mandatory
  (RFC 8446, 9.1). Other keys are refused, so that there is one thing to get right.
- A request (PKCS #10; RFC 2986) proves that its sender holds the key, and nothing else. Of what it says only the public key is
  taken; names and extensions that it asks for are not even looked at.
- An authority's certificate is a trust anchor (RFC 5280, 6.1): it is believed because it was vouched for by its digest. A
  member's certificate is signed by one of them directly; there are no chains that somebody could lengthen.
- Who a member is stands in one place: a URI among the subject's alternative names (RFC 5280, 4.2.1.6),
  `urn:edgestill:FLEET:device:NAME`. There is no common name: a device called `localhost` must not pass for that host with
  clients that still take a common name for a host's (RFC 9525, 1.4.1 and 6.3, says not to).
- Time is an argument. Revoking is not looked up here: whoever lets a member in knows who was revoked.
"""

from __future__ import annotations

import re
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self, final

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID

from edgestill.core.digest import Digest
from edgestill.core.errors import ExpiredError, MessageError, TrustError
from edgestill.core.wire import MAX_AUTHORITIES_BYTES, MAX_CERTIFICATE_BYTES, MAX_REQUEST_BYTES
from edgestill.trust.keys import MAX_PEM_BYTES

if TYPE_CHECKING:
    from collections.abc import Iterator

BACKDATED: Final = 3 * 86_400.0
"""Seconds before its issue at which a certificate begins to hold, or its lifetime where that is less: clocks of devices may be behind."""
MAX_AUTHORITIES: Final = 4
"""At a time: the one that issues, and those before it."""
FLEET: Final = r"[0-9a-f]{16}"
NAME: Final = r"[A-Za-z0-9_-]{1,64}"

_DEVICE: Final = re.compile(rf"urn:edgestill:({FLEET}):device:({NAME})")
_AUTHORITY: Final = re.compile(rf"urn:edgestill:({FLEET}):authority")
_KNOWN: Final = frozenset(
    {
        ExtensionOID.BASIC_CONSTRAINTS,
        ExtensionOID.KEY_USAGE,
        ExtensionOID.EXTENDED_KEY_USAGE,
        ExtensionOID.SUBJECT_ALTERNATIVE_NAME,
    }
)
"""What is looked at; another one that is critical is refused (RFC 5280, 4.2)."""
_REJECTED: Final = (
    ValueError,
    TypeError,
    InvalidSignature,
    UnsupportedAlgorithm,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.ExtensionNotFound,
    x509.UnsupportedGeneralNameType,
)
"""What the parser raises over bytes that are none of ours."""


def device_uri(fleet: str, device: str) -> str:
    """Who a device is, as its certificate says it (a URN in form, RFC 8141; the name space is our own)."""
    return f"urn:edgestill:{fleet}:device:{device}"


def authority_uri(fleet: str) -> str:
    """What the certificate of a fleet's authority says that it is."""
    return f"urn:edgestill:{fleet}:authority"


def hub_uri(fleet: str) -> str:
    """What a server certificate of the fleet's hub says that it is."""
    return f"urn:edgestill:{fleet}:hub"


def key_id(public: ec.EllipticCurvePublicKey) -> str:
    """What a public key goes by: SHA-256 of its SubjectPublicKeyInfo (RFC 5280, 4.1.2.7) as 64 hex digits."""
    return Digest.of(public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hex


@final
@dataclass(frozen=True, slots=True, eq=False)
class IdentityKey:
    """The private key of a device or a server. Made by `generate` or `from_pem`.

    Attributes:
        id: of the public half.
    """

    id: str
    private: ec.EllipticCurvePrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's randomness."""
        return cls._of(ec.generate_private_key(ec.SECP256R1()))

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Reads what `to_pem` gave.

        Raises:
            MessageError: not a PEM file of a private P-256 key.
        """
        private: object = None
        if len(pem) <= MAX_PEM_BYTES:
            try:
                private = load_pem_private_key(pem, None)
            except _REJECTED:
                private = None
        if not isinstance(private, ec.EllipticCurvePrivateKey) or not isinstance(private.curve, ec.SECP256R1):
            raise MessageError(
                "not a key of an identity",
                where="identity key",
                expected="a PEM file (PKCS #8) of a private P-256 key",
                got="something else" if private is None else type(private).__name__,
            )
        return cls._of(private)

    def to_pem(self) -> bytes:
        """The private key as PKCS #8 PEM, not locked: for a file that is its owner's alone."""
        return self.private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def request(self) -> bytes:
        """A request for a certificate (PEM): the public key, signed by the private one, and no name."""
        made = x509.CertificateSigningRequestBuilder().subject_name(x509.Name([]))
        return made.sign(self.private, SHA256()).public_bytes(Encoding.PEM)

    @classmethod
    def _of(cls, private: ec.EllipticCurvePrivateKey) -> Self:
        return cls(key_id(private.public_key()), private)


@final
@dataclass(frozen=True, slots=True, eq=False)
class Requested:
    """What is taken of a request. Made by `from_pem`.

    Attributes:
        key: id of the public key.
        public: that key; its owner has proved to hold the other half.
    """

    key: str
    public: ec.EllipticCurvePublicKey = field(repr=False)

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Reads a request and checks its signature (RFC 2986, 3).

        Raises:
            MessageError: too long, not a request, or for another kind of key.
            TrustError: not signed by the key that it names.
        """
        where = "certificate request"
        _check_length(pem, MAX_REQUEST_BYTES, where)
        with _reading(where):
            request = x509.load_pem_x509_csr(pem)
            public = _p256(request.public_key(), where)
            signed = request.is_signature_valid
        if not signed:
            raise TrustError(
                "a certificate request is not signed by its own key",
                where=where,
                expected="a signature that proves that the sender holds the key",
                got="another",
                fix="make the request anew, with the key at hand",
            )
        return cls(key_id(public), public)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Member:
    """Whom a certificate speaks for.

    Attributes:
        fleet: its fleet.
        device: its name there.
        key: id of its public key.
        begins: seconds since 1970 from which it holds.
        ends: the last second in which it does.
        issuer: digest of the authority that has issued it.
    """

    fleet: str
    device: str
    key: str
    begins: float
    ends: float
    issuer: str

    def check_time(self, now: float) -> None:
        """Refuses it outside of its time, both ends of which belong to it (RFC 5280, 4.1.2.5).

        Raises:
            ExpiredError: too early, or too late.
        """
        if not self.begins <= now <= self.ends:
            raise ExpiredError(
                "a certificate does not hold" + (" yet" if now < self.begins else " any more"),
                where=f"certificate of {self.device}",
                expected=f"now between {self.begins:.0f} and {self.ends:.0f} (seconds since 1970)",
                got=int(now),
                fix="set the clock; if it is right, ask for a new certificate",
            )

    def is_due(self, now: float) -> bool:
        """Whether it is time for the next one: a third of its life is left, or less; what lies before its issue does not count."""
        whole = self.ends - self.begins
        return now >= self.ends - max(whole - BACKDATED, whole / 2) / 3


@final
@dataclass(frozen=True, slots=True)
class Authorities:
    """Who may say who belongs to a fleet. Made by `from_pem`.

    Attributes:
        fleet: which fleet.
        digests: SHA-256 of each certificate's DER, as hex; the first is the one that issues now.
    """

    fleet: str
    digests: tuple[str, ...]
    certificates: tuple[x509.Certificate, ...] = field(repr=False, compare=False)

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Reads certificates of authorities, all of one fleet.

        Whether to trust them is the caller's to know: see `only`.

        Raises:
            MessageError: none, too many, too long, or not certificates.
            TrustError: one that is no authority's, or they are of different fleets.
        """
        _check_length(pem, MAX_AUTHORITIES_BYTES, "authorities")
        with _reading("authorities"):
            return cls.of(tuple(x509.load_pem_x509_certificates(pem)))

    @classmethod
    def of(cls, certificates: tuple[x509.Certificate, ...]) -> Self:
        """The same of certificates that are read already."""
        if not 1 <= len(certificates) <= MAX_AUTHORITIES:
            raise MessageError(
                "a wrong number of authorities",
                where="authorities",
                expected=f"1 to {MAX_AUTHORITIES}",
                got=len(certificates),
            )
        with _reading("authorities"):
            fleets = {_fleet_of_authority(one) for one in certificates}
        if len(fleets) != 1:
            raise TrustError(
                "authorities of different fleets",
                where="authorities",
                expected="one fleet",
                got=", ".join(sorted(fleets)),
            )
        digests = tuple(Digest.of(one.public_bytes(Encoding.DER)).hex for one in certificates)
        return cls(fleets.pop(), digests, certificates)

    def to_pem(self) -> bytes:
        """What `from_pem` reads."""
        return b"".join(one.public_bytes(Encoding.PEM) for one in self.certificates)

    def only(self, digest: str) -> Self:
        """The one that was vouched for, and none that somebody may have put beside it.

        Raises:
            TrustError: it is not among them.
        """
        found = tuple(
            one for one, known in zip(self.certificates, self.digests, strict=True) if known == digest
        )
        if not found:
            raise TrustError(
                "another authority than the one that was vouched for",
                where="authorities",
                expected=f"sha256:{digest}",
                got=", ".join(f"sha256:{known}" for known in self.digests),
                fix="ask the operator for a new join token; do not trust this hub",
            )
        return self.of(found)

    def member(self, pem: bytes) -> Member:
        """Whom a certificate speaks for; its time is not looked at: see `Member.check_time`.

        What RFC 5280, 6.1.3 asks of the last certificate of a path of length one: signed by the issuer that it names, and no
        critical extension that is not understood; and what TLS asks of a client's (RFC 8446, 4.4.2.4 leaves to the
        application what to make of one): it may sign, may be used by clients, and is no authority.

        Args:
            pem: the certificate; of several the first.

        Raises:
            MessageError: not a certificate, or too long.
            TrustError: of another fleet, forged, or not a device's.
        """
        where = "certificate"
        _check_length(pem, MAX_CERTIFICATE_BYTES, where)
        with _reading(where):
            certificate = x509.load_pem_x509_certificate(pem)
            public = _p256(certificate.public_key(), where)
            pairs = zip(self.digests, self.certificates, strict=True)
            issuer = next((digest for digest, one in pairs if _is_by(certificate, one)), None)
            if issuer is None:
                raise TrustError(
                    "a certificate that no authority of this fleet has signed",
                    where=where,
                    expected=f"a signature of an authority of fleet {self.fleet}",
                    got="another signature",
                    fix="enrol the device with this fleet's hub",
                )
            name = _device_of(certificate)
            begins, ends = certificate.not_valid_before_utc, certificate.not_valid_after_utc
        if name is None or name[0] != self.fleet:
            raise TrustError(
                "not a certificate of a device of this fleet",
                where=where,
                expected=device_uri(self.fleet, "NAME"),
                got="none" if name is None else device_uri(*name),
                fix="show the device's own certificate",
            )
        return Member(
            fleet=name[0],
            device=name[1],
            key=key_id(public),
            begins=begins.timestamp(),
            ends=ends.timestamp(),
            issuer=issuer,
        )


def _is_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    """Whether an authority has issued a certificate: the names match, and the signature is good."""
    try:
        certificate.verify_directly_issued_by(authority)
    except _REJECTED:
        return False
    return True


def uris_of(certificate: x509.Certificate) -> list[str]:
    """The URIs among the alternative names of its subject; ExtensionNotFound where it has none of these."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return names.get_values_for_type(x509.UniformResourceIdentifier)


def _fleet_of_authority(certificate: x509.Certificate) -> str:
    """The fleet that an authority speaks for; TrustError where it is none."""
    _p256(certificate.public_key(), "authorities")
    extensions = certificate.extensions
    may_issue = (
        extensions.get_extension_for_class(x509.BasicConstraints).value.ca
        and extensions.get_extension_for_class(x509.KeyUsage).value.key_cert_sign
    )
    found = [match[1] for uri in uris_of(certificate) if (match := _AUTHORITY.fullmatch(uri))]
    if not may_issue or len(found) != 1:
        raise TrustError(
            "not the certificate of a fleet's authority",
            where="authorities",
            expected=f"one that may sign certificates, with {authority_uri('FLEET')}",
            got="another",
        )
    return found[0]


def _device_of(certificate: x509.Certificate) -> tuple[str, str] | None:
    """Fleet and name of the device whose certificate it is; None where it is not one for a device to show."""
    extensions = certificate.extensions
    if any(one.critical and one.oid not in _KNOWN for one in extensions):
        return None
    purposes = extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    usage = extensions.get_extension_for_class(x509.KeyUsage).value
    is_leaf = not extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    names = list(extensions.get_extension_for_class(x509.SubjectAlternativeName).value)
    if not is_leaf or not usage.digital_signature or ExtendedKeyUsageOID.CLIENT_AUTH not in purposes:
        return None
    if len(names) != 1 or not isinstance(names[0], x509.UniformResourceIdentifier):
        return None
    match = _DEVICE.fullmatch(names[0].value)
    return None if match is None else (match[1], match[2])


def _p256(public: object, where: str) -> ec.EllipticCurvePublicKey:
    if not isinstance(public, ec.EllipticCurvePublicKey) or not isinstance(public.curve, ec.SECP256R1):
        raise MessageError(
            "not a key that is used here", where=where, expected="P-256", got=type(public).__name__
        )
    return public


def _check_length(pem: bytes, at_most: int, where: str) -> None:
    if len(pem) > at_most:
        raise MessageError("too long", where=where, expected=f"at most {at_most} bytes", got=len(pem))


@contextmanager
def _reading(where: str) -> Iterator[None]:
    """Makes what the parser raises a MessageError."""
    try:
        yield
    except _REJECTED as error:
        raise MessageError(
            "not what it should be", where=where, expected="PEM (RFC 7468), well formed", got=error
        ) from error
