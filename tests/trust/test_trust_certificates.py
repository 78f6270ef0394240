"""Certificates and requests: what is issued, what is believed, and what an attacker would like to be."""

from __future__ import annotations

import base64
import ipaddress
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from certificate_forging import CLIENT, LEAF, SERVER, USAGE, forged, named, request_with
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import ExpiredError, MessageError, SettingError, TrustError
from edgestill.core.wire import MAX_CERTIFICATE_BYTES, MAX_REQUEST_BYTES
from edgestill.trust.authority import MOST_HOSTS, Authority
from edgestill.trust.certificates import (
    BACKDATED,
    MAX_AUTHORITIES,
    Authorities,
    IdentityKey,
    Requested,
    device_uri,
)

if TYPE_CHECKING:
    from pathlib import Path

FLEET, OTHER_FLEET = "0123456789abcdef", "f" * 16
NOW = 1_800_000_000.0
WEEK = 7 * 86_400.0
AUTHORITY = Authority.create(FLEET)
STRANGER = Authority.create(FLEET)
"""Bears the same name, and has another key."""
KEY = IdentityKey.generate()
REQUESTED = Requested.from_pem(KEY.request())


def issued(authority: Authority = AUTHORITY, device: str = "d1", lifetime: float = WEEK) -> bytes:
    """A device's certificate."""
    return authority.device(REQUESTED, device, now=NOW, lifetime=lifetime)


def parsed(pem: bytes) -> x509.Certificate:
    """As the library reads it."""
    return x509.load_pem_x509_certificate(pem)


# What is issued


def test_a_device_gets_what_says_who_it_is() -> None:
    """Fleet, name, key and time come back, and the key is the request's."""
    member = AUTHORITY.authorities.member(issued())
    assert (member.fleet, member.device, member.key) == (FLEET, "d1", KEY.id)
    assert (member.begins, member.ends) == (NOW - BACKDATED, NOW + WEEK)


def test_the_name_is_a_uri_and_no_common_name() -> None:
    """`urn:edgestill:FLEET:device:NAME`; with a common name a device called `localhost` could pass for that host."""
    certificate = parsed(issued(device="localhost"))
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert list(names) == [x509.UniformResourceIdentifier(f"urn:edgestill:{FLEET}:device:localhost")]
    assert certificate.subject.rfc4514_string() == f"UID=localhost,OU=device,O=edgestill fleet {FLEET}"
    assert not certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)


def test_what_is_issued_keeps_the_profile() -> None:
    """RFC 5280: no authority, may sign handshakes only, purposes of clients and servers, identifiers of both keys, a long serial number."""
    certificate = parsed(issued())
    found = {one.oid: one for one in certificate.extensions}
    assert found[ExtensionOID.BASIC_CONSTRAINTS].critical
    assert found[ExtensionOID.BASIC_CONSTRAINTS].value == LEAF
    assert found[ExtensionOID.KEY_USAGE].critical
    assert found[ExtensionOID.KEY_USAGE].value == USAGE
    assert set(found[ExtensionOID.EXTENDED_KEY_USAGE].value) == {
        ExtendedKeyUsageOID.CLIENT_AUTH,
        ExtendedKeyUsageOID.SERVER_AUTH,
    }
    authority = AUTHORITY.authorities.certificates[0]
    own = authority.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert found[ExtensionOID.AUTHORITY_KEY_IDENTIFIER].value.key_identifier == own.digest
    assert certificate.version == x509.Version.v3
    assert 2**64 < certificate.serial_number < 2**159
    assert parsed(issued()).serial_number != certificate.serial_number


def test_the_authority_may_have_no_other_below_it_and_has_no_end() -> None:
    """A path length of 0, and the year 9999 (RFC 5280, 4.2.1.9 and 4.1.2.5)."""
    (certificate,) = AUTHORITY.authorities.certificates
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert (constraints.critical, constraints.value) == (True, x509.BasicConstraints(ca=True, path_length=0))
    assert f"{certificate.not_valid_after_utc:%Y%m%d%H%M%SZ}" == "99991231235959Z"


def test_the_hub_gets_a_server_certificate_for_its_hosts() -> None:
    """Names and addresses, which may also be written in brackets; and no purpose of clients."""
    pem = AUTHORITY.server(KEY, ["Hub.Example", "127.0.0.1", "[::1]"], now=NOW, lifetime=WEEK)
    extensions = parsed(pem).extensions
    names = extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["hub.example"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("127.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    assert list(extensions.get_extension_for_class(x509.ExtendedKeyUsage).value) == [
        ExtendedKeyUsageOID.SERVER_AUTH
    ]


@pytest.mark.parametrize(
    "hosts", [[], ["h"] * (MOST_HOSTS + 1), ["a b"], ["*.example"], [""], ["-a"], ["a" * 64], ["ä.example"]]
)
def test_a_host_that_is_none_is_refused(hosts: list[str]) -> None:
    """No wildcards either: a hub has its own names."""
    with pytest.raises(SettingError):
        AUTHORITY.server(KEY, hosts, now=NOW, lifetime=WEEK)


@pytest.mark.parametrize("device", ["", "a" * 65, "a b", "a:b", "ä", "d1\n"])
def test_a_device_name_that_is_none_is_refused(device: str) -> None:
    """A colon would begin another part of the URI."""
    with pytest.raises(SettingError, match="a name that cannot be used"):
        issued(device=device)


@pytest.mark.parametrize("fleet", ["", "0" * 15, "0" * 17, "G" * 16])
def test_a_fleet_id_that_is_none_is_refused(fleet: str) -> None:
    """Sixteen hex digits."""
    with pytest.raises(SettingError, match="not the id of a fleet"):
        Authority.create(fleet)


def test_an_authority_is_opened_as_it_was_made() -> None:
    """What it issues afterwards is believed by who believed it before."""
    again = Authority.open(AUTHORITY.key_pem(), AUTHORITY.authorities.to_pem())
    assert again.authorities == AUTHORITY.authorities
    assert AUTHORITY.authorities.member(issued(again)).device == "d1"
    assert "PRIVATE" not in repr(again)


def test_the_key_of_another_authority_is_refused() -> None:
    """Two files of different backups."""
    with pytest.raises(TrustError, match="the authority's key is not its certificate's"):
        Authority.open(STRANGER.key_pem(), AUTHORITY.authorities.to_pem())


def test_openssl_agrees(tmp_path: Path) -> None:
    """Another implementation verifies both certificates for their purposes, in its strict mode."""
    (tmp_path / "ca.pem").write_bytes(AUTHORITY.authorities.to_pem())
    (tmp_path / "device.pem").write_bytes(issued())
    (tmp_path / "hub.pem").write_bytes(AUTHORITY.server(KEY, ["hub"], now=NOW, lifetime=WEEK))
    program = ["openssl", "verify", "-x509_strict", "-attime", f"{NOW:.0f}", "-CAfile", "ca.pem"]
    for purpose, name in (("sslclient", "device.pem"), ("sslserver", "device.pem"), ("sslserver", "hub.pem")):
        done = _openssl([*program, "-purpose", purpose, name], tmp_path)
        assert done.returncode == 0, done.stderr
    assert _openssl([*program, "-purpose", "sslclient", "hub.pem"], tmp_path).returncode != 0


def _openssl(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("openssl is not installed here")


# Keys


def test_a_key_is_read_as_it_was_written() -> None:
    """And shows itself to nobody."""
    again = IdentityKey.from_pem(KEY.to_pem())
    assert again.id == KEY.id
    assert again.private.private_numbers() == KEY.private.private_numbers()
    assert repr(KEY) == f"IdentityKey(id={KEY.id!r})"


def test_a_key_is_named_by_its_public_half() -> None:
    """SHA-256 of the SubjectPublicKeyInfo, the same whoever computes it."""
    spki = KEY.private.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert KEY.id == REQUESTED.key == Digest.of(spki).hex


@pytest.mark.parametrize(
    "private",
    [
        ed25519.Ed25519PrivateKey.generate(),
        ec.generate_private_key(ec.SECP384R1()),
        rsa.generate_private_key(65537, 2048),
    ],
    ids=["ed25519", "p384", "rsa"],
)
def test_attack_another_kind_of_key(private: Any) -> None:
    """Attack: a weak or unusual key; neither a key file nor a request nor a certificate may hold one."""
    pem = private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    with pytest.raises(MessageError, match="not a key of an identity"):
        IdentityKey.from_pem(pem)
    algorithm = None if isinstance(private, ed25519.Ed25519PrivateKey) else SHA256()
    with pytest.raises(MessageError, match=r"not a key that is used here.*expected P-256"):
        Requested.from_pem(request_with(private, algorithm=algorithm))
    with pytest.raises(MessageError, match="not a key that is used here"):
        AUTHORITY.authorities.member(forged(AUTHORITY, public=private.public_key()))


@pytest.mark.parametrize("pem", [b"", b"no key", b"x" * 20_000])
def test_what_is_no_key_is_refused(pem: bytes) -> None:
    """However long."""
    with pytest.raises(MessageError, match="not a key of an identity"):
        IdentityKey.from_pem(pem)


# Requests


def test_attack_a_request_that_asks_for_names_and_powers() -> None:
    """Attack: a request for an authority's certificate, under another device's name, for a host: nothing of it is taken but the key."""
    wanted = [
        x509.BasicConstraints(ca=True, path_length=None),
        named(device_uri(FLEET, "another"), x509.DNSName("hub.example")),
        x509.ExtendedKeyUsage([ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE]),
    ]
    asked = request_with(KEY.private, name="another", extensions=wanted, algorithm=SHA256())
    requested = Requested.from_pem(asked)
    given = parsed(AUTHORITY.device(requested, "d1", now=NOW, lifetime=WEEK))
    plain = parsed(issued())
    assert given.subject == plain.subject
    assert [(one.oid, one.critical, one.value) for one in given.extensions] == [
        (one.oid, one.critical, one.value) for one in plain.extensions
    ]


def test_attack_a_request_for_somebody_elses_key() -> None:
    """Attack: the public key of another device in a request that its sender cannot sign."""
    pem = KEY.request()
    der = bytearray(x509.load_pem_x509_csr(pem).public_bytes(Encoding.DER))
    mine = (
        IdentityKey.generate()
        .private.public_key()
        .public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    )
    theirs = KEY.private.public_key().public_bytes(Encoding.X962, PublicFormat.UncompressedPoint)
    swapped = bytes(der).replace(theirs, mine)
    assert swapped != bytes(der)
    forged_request = x509.load_der_x509_csr(swapped).public_bytes(Encoding.PEM)
    with pytest.raises(TrustError, match="not signed by its own key"):
        Requested.from_pem(forged_request)


@pytest.mark.parametrize("size", [MAX_REQUEST_BYTES + 1, 10_000_000])
def test_attack_an_oversize_request(size: int) -> None:
    """Attack: it is refused before it is parsed."""
    with pytest.raises(MessageError, match=r"too long.*expected at most 4096 bytes"):
        Requested.from_pem(b"-" * size)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_request_with_any_bit_turned_is_refused(at: int, bit: int) -> None:
    """No byte of what is signed can be changed, and whatever comes of it is an error of ours."""
    der = bytearray(x509.load_pem_x509_csr(KEY.request()).public_bytes(Encoding.DER))
    der[at % len(der)] ^= 1 << bit
    pem = ssl_pem(bytes(der), "CERTIFICATE REQUEST")
    with pytest.raises((MessageError, TrustError)):
        Requested.from_pem(pem)


def ssl_pem(der: bytes, label: str) -> bytes:
    """PEM of any bytes."""
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


# What is believed


def test_attack_a_certificate_of_another_fleet() -> None:
    """Attack: made by another fleet's authority, however right it is there."""
    other = Authority.create(OTHER_FLEET)
    with pytest.raises(TrustError, match="no authority of this fleet has signed"):
        AUTHORITY.authorities.member(issued(other))


def test_attack_an_authority_of_the_same_name() -> None:
    """Attack: an authority that bears the same names, with a key of the attacker's own."""
    assert STRANGER.authorities.certificates[0].subject == AUTHORITY.authorities.certificates[0].subject
    with pytest.raises(TrustError, match="no authority of this fleet has signed"):
        AUTHORITY.authorities.member(issued(STRANGER))


def test_attack_a_device_that_certifies_itself_or_others() -> None:
    """Attack: a certificate signed with a device's own key, in the authority's name; and one below a device's certificate."""
    with pytest.raises(TrustError, match="no authority of this fleet has signed"):
        AUTHORITY.authorities.member(forged(AUTHORITY, signer=KEY.private))
    below = forged(AUTHORITY, signer=KEY.private, names=named(device_uri(FLEET, "d2")))
    with pytest.raises(TrustError, match="no authority of this fleet has signed"):
        AUTHORITY.authorities.member(below + issued())


FLEET_URI = device_uri(FLEET, "d1")


@pytest.mark.parametrize(
    "names",
    [
        named(device_uri(OTHER_FLEET, "d1")),
        named(device_uri(FLEET, "d1/../d2")),
        named(device_uri(FLEET, "")),
        named(f"{FLEET_URI}\n"),
        named(FLEET_URI.upper()),
        named(f"urn:edgestill:{FLEET}:hub"),
        named(FLEET_URI, device_uri(FLEET, "d2")),
        named(FLEET_URI, x509.DNSName("hub.example")),
        named(x509.DNSName("d1")),
    ],
)
def test_attack_a_forged_name(names: x509.SubjectAlternativeName) -> None:
    """Attack: another fleet's, none, two, or a host's beside it; even if the authority had signed it."""
    with pytest.raises(TrustError, match="not a certificate of a device of this fleet"):
        AUTHORITY.authorities.member(forged(AUTHORITY, names=names))


USUAL: list[tuple[x509.ExtensionType, bool]] = [
    (LEAF, True),
    (USAGE, True),
    (CLIENT, False),
    (named(FLEET_URI), False),
]


def test_a_good_certificate_is_believed_by_the_same_rules() -> None:
    """The forger's default is a good one, so that what is refused is refused for its own reason."""
    assert AUTHORITY.authorities.member(forged(AUTHORITY, extensions=USUAL)).device == "d1"
    unknown = x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00")
    beside = [*USUAL, (unknown, False)]
    assert AUTHORITY.authorities.member(forged(AUTHORITY, extensions=beside)).device == "d1"


@pytest.mark.parametrize(
    "extensions",
    [
        [(x509.BasicConstraints(ca=True, path_length=None), True), *USUAL[1:]],
        [USUAL[0], USUAL[1], (SERVER, False), USUAL[3]],
        [
            *USUAL,
            (x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3.4"), b"\x05\x00"), True),
        ],
    ],
    ids=["authority", "server only", "unknown and critical"],
)
def test_a_certificate_for_another_use_is_refused(extensions: Any) -> None:
    """An authority's, a server's, and one with a critical extension that is not understood (RFC 5280, 4.2)."""
    with pytest.raises(TrustError, match="not a certificate of a device"):
        AUTHORITY.authorities.member(forged(AUTHORITY, extensions=extensions))


@pytest.mark.parametrize("missing", range(4))
def test_a_certificate_that_lacks_an_extension_is_refused(missing: int) -> None:
    """What does not say what it is for is for nothing."""
    left = [one for at, one in enumerate(USUAL) if at != missing]
    with pytest.raises(MessageError, match="not what it should be"):
        AUTHORITY.authorities.member(forged(AUTHORITY, extensions=left))


def test_the_hubs_own_certificate_is_no_devices() -> None:
    """Whoever has the server's key cannot call as a device."""
    pem = AUTHORITY.server(KEY, ["hub"], now=NOW, lifetime=WEEK)
    with pytest.raises(TrustError, match="not a certificate of a device"):
        AUTHORITY.authorities.member(pem)


@pytest.mark.parametrize(
    ("now", "text"),
    [
        (NOW - BACKDATED - 1, "does not hold yet"),
        (NOW - BACKDATED, ""),
        (NOW + WEEK, ""),
        (NOW + WEEK + 1, "does not hold any more"),
        (0.0, "does not hold yet"),
        (1e11, "does not hold any more"),
    ],
)
def test_attack_an_expired_certificate(now: float, text: str) -> None:
    """Attack: one from before or after its time; both ends belong to it (RFC 5280, 4.1.2.5)."""
    member = AUTHORITY.authorities.member(issued())
    if not text:
        member.check_time(now)
        return
    with pytest.raises(ExpiredError, match=text):
        member.check_time(now)


@pytest.mark.parametrize("lifetime", [3600.0, 2 * 86_400.0, WEEK, 52 * WEEK])
def test_the_next_one_is_due_when_a_third_is_left(lifetime: float) -> None:
    """And from then on; of the life that it was issued for, not of the days before."""
    member = AUTHORITY.authorities.member(
        AUTHORITY.device(Requested.from_pem(KEY.request()), "d1", now=NOW, lifetime=lifetime)
    )
    third = lifetime / 3
    assert not member.is_due(NOW)
    assert not member.is_due(member.ends - third - 1)
    assert member.is_due(member.ends - third)
    assert member.is_due(member.ends + WEEK)


def test_a_device_whose_clock_is_days_behind_believes_the_hub() -> None:
    """Three days, for a certificate that is not shorter; of a shorter one as long as it holds."""
    for lifetime, behind in ((30 * 86_400.0, 3 * 86_400.0), (WEEK, 3 * 86_400.0), (3600.0, 3600.0)):
        pem = AUTHORITY.server(KEY, ["hub"], now=NOW, lifetime=lifetime)
        assert AUTHORITY.server_times(KEY.to_pem() + pem, ["hub"]) == (NOW - behind, NOW + lifetime)


def test_a_server_certificate_is_known_again() -> None:
    """For the same hosts, with its own key, and of this authority; anything else is none."""
    pem = AUTHORITY.server(KEY, ["hub", "::1"], now=NOW, lifetime=WEEK)
    device = issued()
    other = Authority.create(FLEET)
    assert AUTHORITY.server_times(KEY.to_pem() + pem, ["hub", "[::1]"]) is not None
    for held, hosts in (
        (KEY.to_pem() + pem, ["hub"]),
        (IdentityKey.generate().to_pem() + pem, ["hub", "::1"]),
        (KEY.to_pem() + other.server(KEY, ["hub", "::1"], now=NOW, lifetime=WEEK), ["hub", "::1"]),
        (KEY.to_pem() + device, ["hub", "::1"]),
        (KEY.to_pem(), ["hub", "::1"]),
        (pem, ["hub", "::1"]),
        (KEY.to_pem() + pem[: len(pem) // 2], ["hub", "::1"]),
        (b"\0", ["hub", "::1"]),
    ):
        assert AUTHORITY.server_times(held, hosts) is None


@pytest.mark.parametrize("pem", [b"", b"nothing", b"-" * (MAX_CERTIFICATE_BYTES + 1), KEY.request()])
def test_what_is_no_certificate_is_refused(pem: bytes) -> None:
    """Whatever it is, the answer is an error of ours."""
    with pytest.raises(MessageError):
        AUTHORITY.authorities.member(pem)


@given(at=st.integers(0, 10_000), bit=st.integers(0, 7))
def test_a_certificate_with_any_bit_turned_is_refused(at: int, bit: int) -> None:
    """Signature, names, times and all."""
    der = bytearray(parsed(issued()).public_bytes(Encoding.DER))
    der[at % len(der)] ^= 1 << bit
    with pytest.raises((MessageError, TrustError)):
        AUTHORITY.authorities.member(ssl_pem(bytes(der), "CERTIFICATE"))


# Authorities


def test_authorities_are_read_as_they_were_written() -> None:
    """Of one fleet, the one that issues first; members of each are believed."""
    both = Authorities.of((*STRANGER.authorities.certificates, *AUTHORITY.authorities.certificates))
    again = Authorities.from_pem(both.to_pem())
    assert again == both
    assert again.digests == (*STRANGER.authorities.digests, *AUTHORITY.authorities.digests)
    assert again.member(issued()).device == again.member(issued(STRANGER)).device == "d1"


def test_attack_an_authority_put_beside_the_right_one() -> None:
    """Attack: whoever answers adds an authority of their own to the one that the token names; only that one is believed."""
    both = Authorities.from_pem(AUTHORITY.authorities.to_pem() + STRANGER.authorities.to_pem())
    kept = both.only(AUTHORITY.authorities.digests[0])
    assert kept == AUTHORITY.authorities
    with pytest.raises(TrustError, match="no authority of this fleet has signed"):
        kept.member(issued(STRANGER))
    with pytest.raises(
        TrustError, match=r"another authority than the one that was vouched for.*do not trust"
    ):
        STRANGER.authorities.only(AUTHORITY.authorities.digests[0])


@pytest.mark.parametrize(
    ("pem", "error"),
    [
        (b"", MessageError),
        (b"nothing", MessageError),
        (issued(), TrustError),
        (AUTHORITY.authorities.to_pem() * (MAX_AUTHORITIES + 1), MessageError),
        (AUTHORITY.authorities.to_pem() * 100, MessageError),
        (AUTHORITY.authorities.to_pem() + Authority.create(OTHER_FLEET).authorities.to_pem(), TrustError),
    ],
    ids=["empty", "text", "a device's", "too many", "too long", "two fleets"],
)
def test_what_are_no_authorities_is_refused(pem: bytes, error: type[Exception]) -> None:
    """Attack: a device's certificate in the place of an authority's, among others."""
    with pytest.raises(error):
        Authorities.from_pem(pem)
