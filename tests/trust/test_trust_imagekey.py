"""Signatures on images: always the same bytes, verified by OpenSSL as SWUpdate does it, and no certificate that a device would refuse."""

from __future__ import annotations

import datetime as dt
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from edgestill.core.errors import ExpiredError, MessageError, TrustError
from edgestill.trust.imagekey import ImageKey

if TYPE_CHECKING:
    from pathlib import Path

NOW = 1_800_000_000.0
DATA = b"software = ...\n"
YEAR = dt.timedelta(days=365)
OPENSSL = shutil.which("openssl")

needs_openssl = pytest.mark.skipif(OPENSSL is None, reason="needs OpenSSL: apt-get install openssl")


@pytest.fixture(scope="module")
def private() -> rsa.RSAPrivateKey:
    """A key of the least size that is taken."""
    return rsa.generate_private_key(65537, 2048)


def pem_of(
    key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey,
    lock: KeySerializationEncryption | None = None,
) -> bytes:
    """The key's file."""
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock or NoEncryption())


def certificate(
    key: rsa.RSAPrivateKey,
    *extensions: x509.ExtensionType,
    begins: dt.timedelta = -YEAR,
    ends: dt.timedelta = YEAR,
) -> bytes:
    """The key's own certificate."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "publisher")])
    now = dt.datetime.fromtimestamp(NOW, dt.UTC)
    builder = x509.CertificateBuilder(name, name, key.public_key(), 7, now + begins, now + ends)
    for one in extensions:
        builder = builder.add_extension(one, critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(Encoding.PEM)


def usage(*, signature: bool) -> x509.KeyUsage:
    """What a key is for."""
    return x509.KeyUsage(
        digital_signature=signature,
        content_commitment=False,
        key_encipherment=True,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def test_a_signature_is_always_the_same(private: rsa.RSAPrivateKey) -> None:
    """Bare and as CMS: an image that is made anew has the same bytes."""
    held = certificate(private)
    first, second = ImageKey.from_pem(pem_of(private)), ImageKey.from_pem(pem_of(private))
    assert first.sign(DATA) == second.sign(DATA) != first.sign(DATA + b"x")
    assert first.sign_cms(DATA, held, now=NOW) == second.sign_cms(DATA, held, now=NOW + 86_400)
    assert DATA not in first.sign_cms(DATA, held, now=NOW), "what is signed lies beside it"


@needs_openssl
def test_openssl_verifies_the_cms_message(private: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    """With the certificate as the only one that is trusted, over these bytes and no others."""
    held = certificate(private)
    (tmp_path / "sig").write_bytes(ImageKey.from_pem(pem_of(private)).sign_cms(DATA, held, now=NOW))
    (tmp_path / "crt").write_bytes(held)
    for data, code in ((DATA, 0), (DATA + b"x", 4)):
        (tmp_path / "data").write_bytes(data)
        assert (
            openssl(
                tmp_path,
                "cms",
                "-verify",
                "-binary",
                "-inform",
                "DER",
                "-in",
                "sig",
                "-content",
                "data",
                "-CAfile",
                "crt",
                "-attime",
                str(int(NOW)),
            )
            == code
        )


@needs_openssl
def test_openssl_verifies_the_bare_signature(private: rsa.RSAPrivateKey, tmp_path: Path) -> None:
    """By the public key alone."""
    (tmp_path / "sig").write_bytes(ImageKey.from_pem(pem_of(private)).sign(DATA))
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "pub").write_bytes(public)
    for data, code in ((DATA, 0), (DATA + b"x", 1)):
        (tmp_path / "data").write_bytes(data)
        assert openssl(tmp_path, "dgst", "-sha256", "-verify", "pub", "-signature", "sig", "data") == code


def openssl(folder: Path, *arguments: str) -> int:
    """Its exit code."""
    assert OPENSSL is not None
    return subprocess.run([OPENSSL, *arguments], cwd=folder, capture_output=True, check=False).returncode


def test_a_locked_key_opens_with_its_passphrase_only(private: rsa.RSAPrivateKey) -> None:
    """Missing, wrong, or given for a key that has none."""
    locked = pem_of(private, BestAvailableEncryption(b"correct horse"))
    opened = ImageKey.from_pem(locked, b"correct horse")
    assert opened.sign(DATA) == ImageKey.from_pem(pem_of(private)).sign(DATA)
    for pem, passphrase in ((locked, None), (locked, b"wrong"), (pem_of(private), b"correct horse")):
        with pytest.raises(TrustError, match="a key does not open"):
            ImageKey.from_pem(pem, passphrase)


def test_keys_that_sign_no_image_are_refused(private: rsa.RSAPrivateKey) -> None:
    """Other kinds (whose signatures differ each time, or which SWUpdate does not know), short keys, public keys, other files."""
    public = private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    others = [
        pem_of(ec.generate_private_key(ec.SECP256R1())),
        pem_of(ed25519.Ed25519PrivateKey.generate()),
        pem_of(rsa.generate_private_key(65537, 1024)),
        public,
        b"",
        b"x" * 30_000,
        pem_of(private)[:-200],
    ]
    for pem in others:
        with pytest.raises(MessageError, match="not a key that signs images"):
            ImageKey.from_pem(pem)


def test_a_certificate_that_fits_is_taken(private: rsa.RSAPrivateKey) -> None:
    """For signing, with either of the purposes that SWUpdate may be told to expect."""
    key = ImageKey.from_pem(pem_of(private))
    for purpose in (ExtendedKeyUsageOID.EMAIL_PROTECTION, ExtendedKeyUsageOID.CODE_SIGNING):
        held = certificate(private, usage(signature=True), x509.ExtendedKeyUsage([purpose]))
        assert key.sign_cms(DATA, held, now=NOW)


def test_certificates_that_a_device_would_refuse_are_refused_at_once(private: rsa.RSAPrivateKey) -> None:
    """Of another key, ended, not yet begun, not for signing, for another purpose, or none at all."""
    key, other = ImageKey.from_pem(pem_of(private)), rsa.generate_private_key(65537, 2048)
    server = x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH])
    refused: list[tuple[bytes, type[Exception], str]] = [
        (certificate(other), TrustError, "of another key"),
        (certificate(private, ends=-YEAR / 2), ExpiredError, "does not hold now"),
        (certificate(private, begins=YEAR / 2), ExpiredError, "does not hold now"),
        (certificate(private, usage(signature=False)), TrustError, "not for signing"),
        (certificate(private, server), TrustError, "another purpose"),
        (b"", MessageError, "not a certificate"),
        (pem_of(private), MessageError, "not a certificate"),
        (b"x" * 30_000, MessageError, "not a certificate"),
    ]
    for held, kind, why in refused:
        with pytest.raises(kind, match=why):
            key.sign_cms(DATA, held, now=NOW)


def test_a_key_shows_itself_to_nobody(private: rsa.RSAPrivateKey) -> None:
    """Not even in a traceback."""
    assert "RSAPrivateKey" not in repr(ImageKey.from_pem(pem_of(private)))
