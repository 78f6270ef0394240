"""RSA keys for images that other updaters verify: SWUpdate wants CMS, or a bare RSA signature, and knows no Ed25519 and no TUF.

- Only signatures that are a function of key and bytes are made, so that an image built twice has the same bytes: RSASSA-PKCS1-v1_5 with
  SHA-256 (RFC 8017, 8.2), and a CMS message (RFC 5652) without signed attributes, of which the time would be one. PSS and ECDSA draw
  random numbers.
- A certificate is looked at before it is used: that it belongs to the key, holds now, and is for signing. A device would find out later.
- The key belongs to the publisher, as those of the list do. The hub never has it.
"""

from __future__ import annotations

import datetime as dt
from dataclasses import dataclass, field
from typing import Final, Self, final

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, load_pem_private_key, pkcs7
from cryptography.x509.oid import ExtendedKeyUsageOID

from edgestill.core.errors import ExpiredError, MessageError, TrustError

MAX_PEM_BYTES: Final = 20_000
LEAST_BITS: Final = 2048
MOST_BITS: Final = 8192

_PURPOSES: Final = {ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.CODE_SIGNING}
_OPTIONS: Final = [
    pkcs7.PKCS7Options.DetachedSignature,
    pkcs7.PKCS7Options.Binary,
    pkcs7.PKCS7Options.NoAttributes,
]


@final
@dataclass(frozen=True, slots=True, eq=False)
class ImageKey:
    """The publisher's half of what devices verify images by. Made by `from_pem`."""

    _private: RSAPrivateKey = field(repr=False)

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> Self:
        """Reads a private RSA key.

        Raises:
            MessageError: not a PEM file of a private RSA key of 2048 to 8192 bits.
            TrustError: the passphrase is missing, wrong, or given for a key that has none.
        """
        try:
            private = None if len(pem) > MAX_PEM_BYTES else load_pem_private_key(pem, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            if b"ENCRYPTED" in pem or isinstance(error, TypeError):
                raise TrustError(
                    "a key does not open",
                    got=error,
                    fix="give the passphrase it was written with",
                    where="image key",
                    expected="its passphrase",
                ) from error
            private = None
        if not isinstance(private, RSAPrivateKey) or not LEAST_BITS <= private.key_size <= MOST_BITS:
            raise MessageError(
                "not a key that signs images",
                where="image key",
                expected=f"a PEM file of a private RSA key of {LEAST_BITS} to {MOST_BITS} bits",
                got=f"{private.key_size} bits" if isinstance(private, RSAPrivateKey) else "something else",
                fix="make one: openssl req -x509 -newkey rsa:4096 -keyout image.key -out image.crt -days 3650",
            )
        return cls(private)

    def sign(self, data: bytes) -> bytes:
        """The bare signature, for an SWUpdate that was built for `RAWRSA`."""
        return self._private.sign(data, PKCS1v15(), SHA256())

    def sign_cms(self, data: bytes, certificate: bytes, *, now: float) -> bytes:
        """A detached CMS message in DER with the certificate in it, for an SWUpdate that was built for `CMS`, as Debian's is.

        Args:
            data: to sign; not part of the message.
            certificate: PEM, of this key.
            now: seconds since 1970.

        Raises:
            MessageError: no certificate. ExpiredError: one that does not hold now.
            TrustError: one of another key, or not for signing.
        """
        found = self._checked(certificate, now)
        builder = pkcs7.PKCS7SignatureBuilder().set_data(data).add_signer(found, self._private, SHA256())
        return builder.sign(Encoding.DER, _OPTIONS)

    def _checked(self, pem: bytes, now: float) -> x509.Certificate:
        try:
            found = x509.load_pem_x509_certificate(pem[: MAX_PEM_BYTES + 1])
            key, extensions = found.public_key(), found.extensions
        except (ValueError, UnsupportedAlgorithm) as error:
            raise MessageError(
                "not a certificate",
                where="image certificate",
                expected="a PEM file",
                got="something else",
                fix="is it the right file?",
            ) from error
        if key != self._private.public_key():
            raise _unfit("the certificate is of another key", "that of the image key", "another key")
        moment = dt.datetime.fromtimestamp(now, dt.UTC)
        if not found.not_valid_before_utc <= moment <= found.not_valid_after_utc:
            raise ExpiredError(
                "the certificate does not hold now",
                where="image certificate",
                expected=f"{found.not_valid_before_utc} to {found.not_valid_after_utc}",
                got=moment,
            )
        for extension in extensions:
            value = extension.value
            if isinstance(value, x509.KeyUsage) and not value.digital_signature:
                raise _unfit(
                    "the certificate is not for signing", "key usage digitalSignature", "other usages"
                )
            if isinstance(value, x509.ExtendedKeyUsage) and not _PURPOSES.intersection(value):
                raise _unfit(
                    "the certificate is for another purpose", "emailProtection or codeSigning", "others"
                )
        return found


def _unfit(what: str, expected: str, got: str) -> TrustError:
    return TrustError(
        what,
        where="image certificate",
        expected=expected,
        got=got,
        fix="name the certificate that was made with the key, for signing",
    )
