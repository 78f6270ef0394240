"""Ed25519 keys (RFC 8032), named as TUF names them; and the public half of ECDSA keys, which hardware of a publisher holds (`trust.named`).

- What this project makes and what hub and devices sign with is Ed25519. Few security modules and key services have that, and nearly all have
  ECDSA over P-256: so a publisher's root and targets keys may be of that kind (FIPS 186-5, 6), and no other's.
- A key's id is the SHA-256 of its public form in canonical JSON, so that a key cannot appear under two names: the id
  is computed here and never taken from a message.
- A signature by the wrong key, over other bytes, or of the wrong length is one answer: `verifies` is false.
- A private key shows itself to nobody: its `repr` is the public id, and it leaves only as PEM, by request.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Self, final

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    KeySerializationEncryption,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError, SettingError, TrustError
from edgestill.core.jsonio import Fields, canonical

if TYPE_CHECKING:
    from edgestill.core.jsonio import Json, JsonObject

MAX_PEM_BYTES: Final = 10_000
MAX_PASSPHRASE_BYTES: Final = 1023
"""What PKCS #8 encryption takes."""

_ED25519: Final = "ed25519"
_ECDSA: Final = ("ecdsa", "ecdsa-sha2-nistp256")


@final
@dataclass(frozen=True, slots=True)
class PublicKey:
    """The half that everybody may see.

    Attributes:
        hex: the 32 bytes of the key as 64 lower-case hex digits.
    """

    hex: str

    def __post_init__(self) -> None:
        Fields({"public": self.hex}, "public key").text("public", pattern=r"[0-9a-f]{64}")

    @property
    def keyid(self) -> str:
        """The name of the key: 64 hex digits."""
        return Digest.of(canonical(self.as_json())).hex

    def as_json(self) -> JsonObject:
        """The public form that TUF metadata holds."""
        return {"keytype": _ED25519, "scheme": _ED25519, "keyval": {"public": self.hex}}

    @classmethod
    def from_json(cls, value: Json, *, where: str = "public key") -> Self:
        """Reads what `as_json` gave.

        Raises:
            MessageError: another kind of key, or more than a key. A further field would give the same key a second id.
        """
        fields = Fields.of(value, where)
        fields.only(("keytype", "scheme", "keyval"))
        fields.text("keytype", pattern=_ED25519)
        fields.text("scheme", pattern=_ED25519)
        inner = fields.inner("keyval")
        inner.only(("public",))
        return cls(inner.text("public", pattern=r"[0-9a-f]{64}"))

    def to_pem(self) -> bytes:
        """The key as PEM (SubjectPublicKeyInfo, RFC 8410): what somebody hands over to be named."""
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.hex))
        return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    @classmethod
    def from_pem(cls, pem: bytes) -> Self:
        """Reads what `to_pem` gave.

        Raises:
            MessageError: not a PEM file of an Ed25519 public key; a private one is refused, it should not have left its owner.
        """
        try:
            key = load_pem_public_key(pem) if len(pem) <= MAX_PEM_BYTES else None
        except (ValueError, UnsupportedAlgorithm):
            key = None
        if not isinstance(key, Ed25519PublicKey):
            raise MessageError(
                "not a public key that may be named",
                expected="a PEM file of an Ed25519 public key",
                where="key file",
                got="a private key" if b"PRIVATE KEY" in pem else "something else",
                fix="ask for the .pub.pem of its owner; the other half stays there",
            )
        return cls(key.public_bytes(Encoding.Raw, PublicFormat.Raw).hex())

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` was made over `data` by the private half of this key."""
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(self.hex)).verify(signature, data)
        except (InvalidSignature, ValueError):
            return False
        return True


@final
@dataclass(frozen=True, slots=True)
class EcdsaKey:
    """The public half of a P-256 key, of a publisher's role.

    Attributes:
        pem: SubjectPublicKeyInfo as PEM, as the library writes it: one key has one text, and so one id.
    """

    pem: str

    def __post_init__(self) -> None:
        if _ec_pem(self.pem.encode("ascii", "replace")) != self.pem:
            raise MessageError(
                "not a public key of a role",
                where="public key",
                expected="P-256, as PEM",
                got="something else",
            )

    @property
    def keyid(self) -> str:
        """The name of the key: 64 hex digits."""
        return Digest.of(canonical(self.as_json())).hex

    def as_json(self) -> JsonObject:
        """The public form that TUF metadata holds."""
        return {"keytype": _ECDSA[0], "scheme": _ECDSA[1], "keyval": {"public": self.pem}}

    def to_pem(self) -> bytes:
        """The key as PEM."""
        return self.pem.encode("ascii")

    def verifies(self, signature: bytes, data: bytes) -> bool:
        """Whether `signature` (DER, RFC 3279, 2.2.3) was made over `data` by the private half of this key."""
        key = load_pem_public_key(self.to_pem())
        assert isinstance(key, ec.EllipticCurvePublicKey)
        try:
            key.verify(signature, data, ec.ECDSA(SHA256()))
        except (InvalidSignature, ValueError):
            return False
        return True


AnyKey = PublicKey | EcdsaKey
"""Public, of a publisher's role."""


def role_key(value: Json, *, where: str = "public key") -> AnyKey:
    """Reads what `as_json` of either kind gave.

    Raises:
        MessageError: another kind of key, or more than a key.
    """
    fields = Fields.of(value, where)
    if not fields.has("keytype") or fields.text("keytype", at_most=20) != _ECDSA[0]:
        return PublicKey.from_json(value, where=where)
    fields.only(("keytype", "scheme", "keyval"))
    fields.text("scheme", pattern=_ECDSA[1])
    inner = fields.inner("keyval")
    inner.only(("public",))
    return EcdsaKey(inner.text("public", at_most=MAX_PEM_BYTES))


def role_key_of(pem: bytes) -> AnyKey:
    """A public key, Ed25519 or P-256, out of a PEM file.

    Raises:
        MessageError: neither; a private one is refused, it should not have left its owner.
    """
    text = _ec_pem(pem)
    return PublicKey.from_pem(pem) if text is None else EcdsaKey(text)


@final
@dataclass(frozen=True, slots=True, eq=False)
class SigningKey:
    """The half that signs. Made by `generate` or `from_pem`.

    Attributes:
        public: the other half.
    """

    public: PublicKey
    _private: Ed25519PrivateKey = field(repr=False)

    @classmethod
    def generate(cls) -> Self:
        """A new key from the operating system's randomness."""
        return cls._of(Ed25519PrivateKey.generate())

    @classmethod
    def from_pem(cls, pem: bytes, passphrase: bytes | None = None) -> Self:
        """Reads what `to_pem` gave.

        Raises:
            MessageError: not a PEM file of an Ed25519 private key.
            TrustError: the passphrase is missing, wrong, or given for a key that has none.
        """
        if len(pem) > MAX_PEM_BYTES:
            raise MessageError(
                "a key file is too long",
                expected=f"at most {MAX_PEM_BYTES} bytes",
                got=len(pem),
                where="key file",
                fix="is it the right file?",
            )
        try:
            private = load_pem_private_key(pem, passphrase)
        except (ValueError, TypeError, UnsupportedAlgorithm) as error:
            if _is_locked(pem) or isinstance(error, TypeError):
                raise TrustError(
                    "a key does not open",
                    got=error,
                    fix="give the passphrase it was written with",
                    where="key file",
                    expected="its passphrase",
                ) from error
            raise MessageError(
                "not a key",
                expected="a PEM file (PKCS #8) of a private key",
                where="key file",
                got="something else",
                fix="is it the right file, and the private key?",
            ) from error
        if not isinstance(private, Ed25519PrivateKey):
            raise MessageError(
                "not a key that signs here",
                expected="Ed25519",
                got=type(private).__name__,
                where="key file",
                fix="make an Ed25519 key",
            )
        return cls._of(private)

    def to_pem(self, passphrase: bytes | None) -> bytes:
        """The private key as PKCS #8 PEM, locked with `passphrase`; None leaves it open.

        Raises:
            SettingError: an empty passphrase, or one longer than 1023 bytes.
        """
        if passphrase is not None and not 1 <= len(passphrase) <= MAX_PASSPHRASE_BYTES:
            raise SettingError(
                "a passphrase cannot lock a key",
                expected=f"1 to {MAX_PASSPHRASE_BYTES} bytes, or None",
                got=len(passphrase),
                where="passphrase",
                fix="choose one of that length",
            )
        lock: KeySerializationEncryption = (
            NoEncryption() if passphrase is None else BestAvailableEncryption(passphrase)
        )
        return self._private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock)

    def sign(self, data: bytes) -> bytes:
        """The signature (64 bytes) over `data`."""
        return self._private.sign(data)

    @classmethod
    def _of(cls, private: Ed25519PrivateKey) -> Self:
        raw = private.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        return cls(PublicKey(raw.hex()), private)


def _ec_pem(pem: bytes) -> str | None:
    """A P-256 key as the library writes it; None where it is none."""
    try:
        key = load_pem_public_key(pem) if len(pem) <= MAX_PEM_BYTES else None
    except (ValueError, UnsupportedAlgorithm):
        return None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        return None
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode("ascii")


def _is_locked(pem: bytes) -> bool:
    return b"ENCRYPTED" in pem
