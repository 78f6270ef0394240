"""Keys of a publisher that are elsewhere: named by a URI, of either kind, checked at every signature; a device believes what they sign."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
)
from hypothesis import given
from hypothesis import strategies as st
from securesystemslib.signer import CryptoSigner, Signature  # type: ignore[attr-defined]  # re-exported there without saying so

from edgestill.cli import naming
from edgestill.core.digest import Digest
from edgestill.core.errors import ConflictError, MessageError, NotFoundError, SettingError, TrustError
from edgestill.testing.clock import FakeClock
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import EcdsaKey, PublicKey, SigningKey, role_key, role_key_of
from edgestill.trust.metadata import TargetInfo
from edgestill.trust.named import NamedKey
from edgestill.trust.publisher import Publisher
from edgestill.trust.repository import file_name, freshen

if TYPE_CHECKING:
    from collections.abc import Callable

CLOCK = FakeClock()
NOW = CLOCK.now()
ONLINE = SigningKey.generate()
ONE, TWO = "watch/1.0.0/any.esb", "watch/1.1.0/any.esb"
KINDS = ("ed25519", "ecdsa")


def private_of(kind: str) -> Any:
    """A new key of that kind."""
    return Ed25519PrivateKey.generate() if kind == "ed25519" else ec.generate_private_key(ec.SECP256R1())


def public_pem(private: Any) -> bytes:
    """Its public half."""
    return bytes(private.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def named(folder: Path, name: str, kind: str) -> NamedKey:
    """A key that securesystemslib reaches as a file of its own."""
    private = private_of(kind)
    path = folder / f"{name}.key"
    path.write_bytes(private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return NamedKey(f"file2:{path}", role_key_of(public_pem(private)))


def info(name: str = ONE) -> TargetInfo:
    """What a list says of a bundle."""
    return TargetInfo(10, Digest.of(name.encode()))


class Device:
    """A device that trusts a publisher's first root, and the hub that serves it."""

    def __init__(self, publisher: Publisher, folder: Path, anchor: bytes) -> None:
        self._publisher = publisher
        self._snapshot: bytes | None = None
        self._timestamp: bytes | None = None
        self._client = TrustedClient(KeptMetadata(folder), root=anchor, fetch=self._fetch, clock=CLOCK)

    def listed(self) -> list[str]:
        """What it may install."""
        root, targets = self._publisher.root, self._publisher.targets
        assert root is not None
        assert targets is not None
        fresh = freshen(
            root=root,
            targets=targets,
            previous_snapshot=self._snapshot,
            previous_timestamp=self._timestamp,
            online=ONLINE,
            now=NOW,
            lifetime=3600,
        )
        self._snapshot, self._timestamp = fresh.snapshot, fresh.timestamp
        self._files = {
            f"metadata/{file_name(one)}": one for one in (targets, fresh.snapshot, fresh.timestamp)
        }
        for version in range(1, self._publisher.version + 1):
            self._files[f"metadata/{version}.root.json"] = self._publisher.root_of(version)
        self._client.refresh()
        return sorted(self._client.targets())

    def _fetch(self, path: str, at_most: int) -> bytes:
        if path not in self._files:
            raise NotFoundError("none", where=path, expected="a file", got="none")
        assert len(self._files[path]) <= at_most
        return self._files[path]


# Public keys


@pytest.mark.parametrize("kind", KINDS)
def test_a_public_key_of_a_role_is_read_as_it_was_written(kind: str) -> None:
    """As PEM and as TUF has it, which is as securesystemslib writes it."""
    from securesystemslib.signer import SSlibKey  # type: ignore[attr-defined]  # re-exported there without saying so

    private = private_of(kind)
    key = role_key_of(public_pem(private))
    assert role_key(key.as_json()) == key
    assert role_key_of(key.to_pem()) == key
    known = SSlibKey.from_crypto(private.public_key())
    assert known.to_dict() == key.as_json()
    assert len({key.keyid, role_key_of(public_pem(private_of(kind))).keyid}) == 2


@given(data=st.binary(max_size=200), other=st.binary(max_size=200))
def test_an_ecdsa_signature_counts_for_its_own_bytes_only(data: bytes, other: bytes) -> None:
    """Whatever is signed; other bytes, and bytes that are no signature, are a no and never an error."""
    from cryptography.hazmat.primitives.hashes import SHA256

    private = ec.generate_private_key(ec.SECP256R1())
    key = role_key_of(public_pem(private))
    signature = private.sign(data, ec.ECDSA(SHA256()))
    assert key.verifies(signature, data)
    assert key.verifies(signature, other) == (data == other)
    assert not key.verifies(other, data)


@pytest.mark.parametrize(
    "pem",
    [
        public_pem(ec.generate_private_key(ec.SECP384R1())),
        public_pem(rsa.generate_private_key(65_537, 2048)),
        SigningKey.generate().to_pem(None),
        b"",
        b"x" * 20_000,
    ],
    ids=["p384", "rsa", "private", "nothing", "long"],
)
def test_attack_another_kind_of_key(pem: bytes) -> None:
    """Attack: neither Ed25519 nor P-256; or a private key, which should not have left its owner."""
    with pytest.raises(MessageError):
        role_key_of(pem)


def test_attack_one_key_under_two_ids() -> None:
    """Attack: other line ends, words around the PEM, a further field, another scheme: one key has one text."""
    key = role_key_of(public_pem(private_of("ecdsa")))
    assert isinstance(key, EcdsaKey)
    for text in (key.pem.replace("\n", "\r\n"), "hello\n" + key.pem, key.pem + "\n", key.pem.strip()):
        with pytest.raises(MessageError):
            EcdsaKey(text)
    value = key.as_json()
    for wrong in (value | {"more": 1}, value | {"scheme": "ecdsa-sha2-nistp384"}, value | {"keyval": {}}):
        with pytest.raises(MessageError):
            role_key(wrong)


# Naming one


@pytest.mark.parametrize(
    "uri", ["", "hsm", "/etc/passwd", "file:/x", "nothing:1", "HSM:2", "hsm:\n2", "hsm:" + "2" * 2000]
)
def test_a_uri_that_nothing_reaches_is_refused(uri: str) -> None:
    """Before anything is written; the schemes that there are, are said."""
    with pytest.raises(SettingError, match=r"awskms:.*hsm:"):
        NamedKey(uri, SigningKey.generate().public)


def test_a_named_key_is_read_as_it_was_written(tmp_path: Path) -> None:
    """And nothing more is in its file."""
    key = named(tmp_path, "root", "ecdsa")
    again = NamedKey.from_bytes(key.to_bytes())
    assert (again.uri, again.public) == (key.uri, key.public)
    for wrong in (b"{}", b"[]", key.to_bytes()[:-1] + b',"x":1}', b"x" * 20_000):
        with pytest.raises(MessageError):
            NamedKey.from_bytes(wrong)


def test_attack_another_key_under_the_same_uri(tmp_path: Path) -> None:
    """Attack: the key was replaced where it is kept, or what holds it signs wrongly: found out before anybody sees it."""
    key = named(tmp_path, "root", "ecdsa")
    assert key.public.verifies(key.sign(b"data"), b"data")
    named(tmp_path, "root", "ecdsa")
    with pytest.raises(TrustError):
        key.sign(b"data")
    (tmp_path / "root.key").unlink()
    with pytest.raises(TrustError, match="a key that was named cannot sign"):
        key.sign(b"data")

    key, signs = named(tmp_path, "root", "ecdsa"), CryptoSigner.sign

    def other(signer: CryptoSigner, payload: bytes) -> Signature:
        return signs(signer, payload + b"x")

    with patch.object(CryptoSigner, "sign", other), pytest.raises(TrustError, match="not its own"):
        key.sign(b"data")


# A publisher with such keys


@pytest.mark.parametrize("kind", KINDS)
def test_a_device_believes_what_named_keys_have_signed(tmp_path: Path, kind: str) -> None:
    """Root and targets elsewhere from the beginning; one release after the other, and the next root."""
    keys = {role: [named(tmp_path, role, kind)] for role in ("root", "targets")}
    publisher = Publisher.init(tmp_path / "publisher", None, named=keys)
    assert sorted(path.name for path in publisher.folder.iterdir()) == ["root-1.json", "targets-1.json"]
    device = Device(publisher, tmp_path / "device", publisher.sign_root(ONLINE.public, now=NOW))
    first = publisher.sign_targets(served=None, add={ONE: info()}, now=NOW)
    assert device.listed() == [ONE]
    publisher.sign_targets(served=first, add={TWO: info(TWO)}, now=NOW)
    publisher.sign_root(ONLINE.public, now=NOW)
    assert device.listed() == [ONE, TWO]


@pytest.mark.parametrize("role", ["root", "targets"])
def test_a_publisher_goes_over_from_files_to_a_key_elsewhere_and_back(tmp_path: Path, role: str) -> None:
    """By a rotation, which both have signed; devices follow, and the old key does not count any more."""
    publisher = Publisher.init(tmp_path / "publisher", b"secret", root_keys=3)
    device = Device(publisher, tmp_path / "device", publisher.sign_root(ONLINE.public, now=NOW))
    listed = publisher.sign_targets(served=None, add={ONE: info()}, now=NOW)
    key = named(tmp_path, role, "ecdsa")
    publisher.rotate(role, served=listed, now=NOW, named=[key])
    assert publisher.counting()[role] == [f"{role}-{4 if role == 'root' else 2}.json"]
    assert device.listed() == [ONE]
    publisher.sign_targets(served=publisher.targets, add={TWO: info(TWO)}, now=NOW)
    publisher.rotate(role, served=publisher.targets, now=NOW)
    assert publisher.counting()[role][0].endswith(".pem")
    assert device.listed() == [ONE, TWO]
    with pytest.raises(ConflictError, match="this key is in the folder already"):
        publisher.rotate(role, served=publisher.targets, now=NOW, named=[key])


def test_a_root_key_in_a_safe_hinders_no_publishing(tmp_path: Path) -> None:
    """It is asked for only where it must sign; where it does not, nothing of what was begun is left."""
    publisher = Publisher.init(
        tmp_path / "publisher", None, named={"root": [named(tmp_path, "root", "ecdsa")]}
    )
    publisher.sign_root(ONLINE.public, now=NOW)
    (tmp_path / "root.key").rename(tmp_path / "safe.key")
    publisher.sign_targets(served=None, add={ONE: info()}, now=NOW)
    publisher.keys()
    with pytest.raises(TrustError, match="a key that was named cannot sign"):
        publisher.sign_root(ONLINE.public, now=NOW)
    assert publisher.version == 1
    (tmp_path / "safe.key").rename(tmp_path / "root.key")
    publisher.sign_root(ONLINE.public, now=NOW)
    assert publisher.version == 2


# On the command line


def test_keys_and_their_public_halves_go_together(tmp_path: Path) -> None:
    """Each URI with one, in the same order."""
    paths = []
    for number, kind in enumerate(KINDS):
        paths.append(tmp_path / f"{number}.pem")
        paths[-1].write_bytes(public_pem(private_of(kind)))
    found = naming.read(["hsm:2", "awskms:alias/x"], paths)
    assert [type(one.public) for one in found] == [PublicKey, EcdsaKey]
    assert naming.read(None, None) == []
    with pytest.raises(SettingError, match="do not go together"):
        naming.read(["hsm:2"], None)


def test_the_secret_of_a_key_comes_off_a_file_or_from_nobody(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Where nobody can be asked the error says how to give it, and for which key; a file that others can open is warned of."""
    (tmp_path / "pin").write_text("1234\n")
    (tmp_path / "pin").chmod(0o600)
    with patch.dict(os.environ, {naming.VARIABLE: str(tmp_path / "pin")}):
        assert naming.ask("pin", "hsm:2") == "1234"
        assert "others than its owner" not in caplog.text
        (tmp_path / "pin").chmod(0o640)
        assert naming.ask("pin", "hsm:2") == "1234"
    assert "others than its owner" in caplog.text
    assert "1234" not in caplog.text
    with patch.dict(os.environ), patch("sys.stdin.isatty", return_value=False):
        os.environ.pop(naming.VARIABLE, None)
        with pytest.raises(SettingError, match="nobody to ask") as caught:
            naming.ask("pin", "hsm:2?label=root")
    assert "hsm:2?label=root" in str(caught.value)


def test_who_is_asked_for_a_secret_is_told_for_which_key() -> None:
    """Number and label of the key, so that no PIN is tried at another token."""
    asked: list[tuple[str, str]] = []

    def answers(secret: str, key: str) -> str:
        asked.append((secret, key))
        return "1234"

    class Asks:
        """Of a scheme that asks, and has nothing to sign with."""

        @staticmethod
        def from_priv_key_uri(_uri: str, _key: object, handler: Callable[[str], str]) -> Any:
            """Asks as securesystemslib's do."""
            handler("pin")
            raise OSError("no token")

    key = NamedKey("hsm:2?label=root", SigningKey.generate().public, answers)
    with (
        patch.dict("securesystemslib.signer._signer.SIGNER_FOR_URI_SCHEME", {"hsm": Asks}),
        pytest.raises(TrustError) as caught,
    ):
        key.sign(b"data")
    assert asked == [("pin", "hsm:2?label=root")]
    assert "at hsm:2?label=root;" in str(caught.value)


@pytest.mark.parametrize(
    "uri",
    ["hsm:2?label=a&pin=SECRET1", "hv:root?token=SECRET1", "hsm:2?PIN=SECRET1", "hsm:2;pin-value=SECRET1", "hsm:2?label=a&pass%77ord=SECRET1",
     "hsm:2?a=b;secret=SECRET1", "hv:root#token=SECRET1", "awskms://me:SECRET1@host/key", "hsm:?label=a&%70in=SECRET1"],
)  # fmt: skip
def test_attack_a_secret_in_a_uri(uri: str) -> None:
    """Attack: it would be kept in the folder and stand in arguments and errors. It is refused, and not repeated."""
    with pytest.raises(SettingError, match="holds a secret") as caught:
        NamedKey(uri, SigningKey.generate().public)
    assert "SECRET1" not in str(caught.value)


@pytest.mark.parametrize(
    "uri", ["hsm:2?label=pin", "hsm:2?label=token", "awskms:alias/secret", "hv:pin", "hsm:2"]
)
def test_a_key_may_be_called_as_a_secret_is(uri: str) -> None:
    """Only a parameter of that name holds one."""
    assert NamedKey(uri, SigningKey.generate().public).uri == uri


# A security module


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], bytes]:
    """Makes keys in a token of SoftHSM; gives their public halves."""
    library = os.environ.get("EDGESTILL_SOFTHSM", "/usr/lib/softhsm/libsofthsm2.so")
    pkcs11 = pytest.importorskip("pkcs11", reason="needs python-pkcs11")
    if not Path(library).exists():
        pytest.skip("needs SoftHSM: EDGESTILL_SOFTHSM names its library")
    (tmp_path / "tokens").mkdir()
    (tmp_path / "softhsm2.conf").write_text(f"directories.tokendir = {tmp_path / 'tokens'}\n")
    monkeypatch.setenv("SOFTHSM2_CONF", str(tmp_path / "softhsm2.conf"))
    monkeypatch.setenv("PYKCS11LIB", library)
    util = os.environ.get("EDGESTILL_SOFTHSM_UTIL", "softhsm2-util")
    subprocess.run([util, "--module", library, "--init-token", "--free", "--label", "publisher", "--so-pin", "0000", "--pin", "1234"], check=True, capture_output=True)  # fmt: skip

    def make(number: int) -> bytes:
        curves = pytest.importorskip("pkcs11.util.ec")
        token = pkcs11.lib(library).get_token(token_label="publisher")
        with token.open(rw=True, user_pin="1234") as session:
            domain = {pkcs11.Attribute.EC_PARAMS: curves.encode_named_curve_parameters("secp256r1")}
            parameters = session.create_domain_parameters(pkcs11.KeyType.EC, domain, local=True)
            public, _ = parameters.generate_keypair(store=True, id=bytes([number]), label=f"key {number}")
            key = load_der_public_key(curves.encode_ec_public_key(public))
            return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)

    return make


def test_a_publisher_signs_with_a_security_module(tmp_path: Path, module: Callable[[int], bytes]) -> None:
    """Root and targets key in one token (PKCS #11), its PIN asked for; a device believes what they sign, and a wrong PIN is told."""
    uris = {"root": "hsm:2?label=publisher", "targets": "hsm:3?label=publisher"}
    keys = {
        role: [NamedKey(uri, role_key_of(module(int(uri[4]))), lambda _, __: "1234")]
        for role, uri in uris.items()
    }
    Publisher.init(tmp_path / "publisher", None, named=keys)
    publisher = Publisher(tmp_path / "publisher", None, ask=lambda _, __: "1234")
    device = Device(publisher, tmp_path / "device", publisher.sign_root(ONLINE.public, now=NOW))
    publisher.sign_targets(served=None, add={ONE: info()}, now=NOW)
    assert device.listed() == [ONE]
    wrong = Publisher(tmp_path / "publisher", None, ask=lambda _, __: "9999")
    with pytest.raises(TrustError, match="a key that was named cannot sign"):
        wrong.sign_root(ONLINE.public, now=NOW)
