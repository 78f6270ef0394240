"""Keys: their names, their files, and that only the right one verifies."""

from __future__ import annotations

import hashlib

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.core.errors import MessageError, SettingError, TrustError
from edgestill.trust.keys import PublicKey, SigningKey

KEY = SigningKey.generate()
OTHER = SigningKey.generate()

# RFC 8032, section 7.1, test 2
RFC_PUBLIC = "3d4017c3e843895a92b70aa74d1b7ebc9c982ccf2ec4968cc0cd55f12af4660c"
RFC_SIGNATURE = (
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


def test_verifies_the_published_vector() -> None:
    """The signature of RFC 8032's second test vector is good, and not for another message."""
    key = PublicKey(RFC_PUBLIC)
    assert key.verifies(bytes.fromhex(RFC_SIGNATURE), b"\x72")
    assert not key.verifies(bytes.fromhex(RFC_SIGNATURE), b"\x73")


@given(data=st.binary(max_size=300), other=st.binary(max_size=300))
def test_only_the_signed_bytes_verify(data: bytes, other: bytes) -> None:
    """A signature is good for its own bytes, by its own key, and for nothing else."""
    signature = KEY.sign(data)
    assert KEY.public.verifies(signature, data)
    assert KEY.public.verifies(signature, other) == (other == data)
    assert not OTHER.public.verifies(signature, data)


@given(signature=st.binary(max_size=80))
def test_any_bytes_are_an_answer(signature: bytes) -> None:
    """Whatever stands in place of a signature, of whatever length, the answer is no, and no error."""
    assert not KEY.public.verifies(signature, b"data")


def test_a_public_key_that_is_no_point_verifies_nothing() -> None:
    """A public key that is not on the curve refuses every signature."""
    assert not PublicKey("ff" * 32).verifies(KEY.sign(b"data"), b"data")


def test_keyid_is_the_one_of_tuf() -> None:
    """The id is the SHA-256 of the canonical JSON of the public form, as the TUF library computes it."""
    key = KEY.public
    text = f'{{"keytype":"ed25519","keyval":{{"public":"{key.hex}"}},"scheme":"ed25519"}}'
    assert key.keyid == hashlib.sha256(text.encode()).hexdigest()
    theirs = SSlibKey.from_dict(key.keyid, key.as_json().copy())
    assert SSlibKey.from_crypto(theirs._crypto_key()).keyid == key.keyid


def test_public_form_comes_back() -> None:
    """What `as_json` gives, `from_json` reads."""
    assert PublicKey.from_json(KEY.public.as_json()) == KEY.public


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"keytype": "rsa"}, "keytype"),
        ({"scheme": "rsassa-pss-sha256"}, "scheme"),
        ({"keyval": {"public": KEY.public.hex.upper()}}, "public"),
        ({"keyval": {"public": KEY.public.hex[:-2]}}, "public"),
        ({"keyval": {}}, "a field is missing"),
        ({"keyval": "text"}, "not a JSON object"),
    ],
)
def test_another_kind_of_key_is_refused(change: dict[str, object], complaint: str) -> None:
    """Another algorithm, or a key of another length or spelling, is no key here."""
    with pytest.raises(MessageError, match=complaint):
        PublicKey.from_json(KEY.public.as_json() | change)  # type: ignore[arg-type]  # some are wrong on purpose


@pytest.mark.parametrize("where", ["outside", "inside"])
def test_one_key_under_two_ids_is_refused(where: str) -> None:
    """Attack: a further field would give the same key a second id, to count twice towards a threshold."""
    value = KEY.public.as_json()
    if where == "outside":
        value["x"] = 1
    else:
        value["keyval"] = {"public": KEY.public.hex, "private": ""}
    with pytest.raises(MessageError, match="unknown field"):
        PublicKey.from_json(value)


@pytest.mark.parametrize("passphrase", [None, b"open sesame", bytes(range(1, 200))])
def test_pem_comes_back(passphrase: bytes | None) -> None:
    """A key written as PEM, locked or not, is the same key when read."""
    pem = KEY.to_pem(passphrase)
    assert pem.startswith(
        b"-----BEGIN PRIVATE KEY-----" if passphrase is None else b"-----BEGIN ENCRYPTED PRIVATE KEY-----"
    )
    again = SigningKey.from_pem(pem, passphrase)
    assert again.public == KEY.public
    assert KEY.public.verifies(again.sign(b"data"), b"data")


@pytest.mark.parametrize(
    ("written", "read"), [(b"right", b"wrong"), (b"right", None), (None, b"given for nothing")]
)
def test_the_wrong_passphrase_does_not_open(written: bytes | None, read: bytes | None) -> None:
    """A missing, wrong or needless passphrase is told apart from a file that is no key."""
    with pytest.raises(TrustError, match=r"a key does not open.*give the passphrase it was written with"):
        SigningKey.from_pem(KEY.to_pem(written), read)


@pytest.mark.parametrize("pem", [b"", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_no_key_is_refused(pem: bytes) -> None:
    """Bytes that are no PEM of a key are refused as such."""
    with pytest.raises(MessageError, match="not a key"):
        SigningKey.from_pem(pem)


def test_another_algorithm_is_refused() -> None:
    """A PEM file of an elliptic-curve key is not one that signs here."""
    other = ec.generate_private_key(ec.SECP256R1())
    pem = other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(MessageError, match="expected Ed25519"):
        SigningKey.from_pem(pem)


def test_an_oversize_key_file_is_refused_unread() -> None:
    """Attack: a key file of any length is bounded before it is parsed."""
    with pytest.raises(MessageError, match=r"a key file is too long.*got 10001"):
        SigningKey.from_pem(b"x" * 10_001)


@pytest.mark.parametrize("passphrase", [b"", b"x" * 1024])
def test_an_unusable_passphrase_is_refused(passphrase: bytes) -> None:
    """A passphrase that is empty or too long is refused before anything is written."""
    with pytest.raises(SettingError, match="expected 1 to 1023 bytes"):
        KEY.to_pem(passphrase)


def test_a_private_key_does_not_show_itself() -> None:
    """Neither `repr` nor `str` of a key tells anything private, or even that an object holds it."""
    raw = KEY._private.private_bytes_raw()
    for text in (repr(KEY), str(KEY)):
        assert KEY.public.hex in text
        assert raw.hex() not in text
        assert "private" not in text.lower()
