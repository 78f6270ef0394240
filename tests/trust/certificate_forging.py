"""Certificates and requests that nobody should believe: what an attacker, or a mistake, would make."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgestill.trust.certificates import device_uri

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes

    from edgestill.trust.authority import Authority

USAGE = x509.KeyUsage(
    digital_signature=True,
    content_commitment=False,
    key_encipherment=False,
    data_encipherment=False,
    key_agreement=False,
    key_cert_sign=False,
    crl_sign=False,
    encipher_only=False,
    decipher_only=False,
)
CLIENT = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH])
SERVER = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
LEAF = x509.BasicConstraints(ca=False, path_length=None)


def named(*names: str | x509.GeneralName) -> x509.SubjectAlternativeName:
    """Alternative names; texts are URIs."""
    return x509.SubjectAlternativeName(
        [x509.UniformResourceIdentifier(one) if isinstance(one, str) else one for one in names]
    )


def forged(
    authority: Authority,
    *,
    signer: CertificateIssuerPrivateKeyTypes | None = None,
    public: Any = None,
    begins: float = 1_799_000_000.0,
    ends: float = 1_801_000_000.0,
    extensions: Sequence[tuple[x509.ExtensionType, bool]] | None = None,
    names: x509.SubjectAlternativeName | None = None,
) -> bytes:
    """A certificate (PEM) as this authority would make it, but for what the test says; the default is a good one.

    Args:
        authority: whose name it bears.
        signer: who signs instead of it.
        public: for which key; a new one where None.
        begins: seconds since 1970.
        ends: likewise.
        extensions: all of them, each with whether it is critical.
        names: the alternative names.
    """
    issuer = authority.authorities.certificates[0]
    fleet = authority.authorities.fleet
    usual = [
        (LEAF, True),
        (USAGE, True),
        (CLIENT, False),
        (names or named(device_uri(fleet, "d1")), False),
    ]
    builder = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "d1")]))
        .issuer_name(issuer.subject)
        .public_key(public or ec.generate_private_key(ec.SECP256R1()).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(datetime.fromtimestamp(begins, UTC))
        .not_valid_after(datetime.fromtimestamp(ends, UTC))
    )
    for extension, critical in usual if extensions is None else extensions:
        builder = builder.add_extension(extension, critical=critical)
    return builder.sign(signer or authority._key.private, SHA256()).public_bytes(Encoding.PEM)


def request_with(
    private: Any,
    *,
    name: str = "CN",
    extensions: Sequence[x509.ExtensionType] = (),
    algorithm: Any = None,
) -> bytes:
    """A request (PEM) that asks for more than a key."""
    builder = x509.CertificateSigningRequestBuilder().subject_name(
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=True)
    return builder.sign(private, algorithm).public_bytes(Encoding.PEM)
