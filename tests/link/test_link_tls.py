"""TLS contexts against real peers: whom a device believes as its hub, and whom as a member of its fleet."""

from __future__ import annotations

import contextlib
import socket
import ssl
import threading
from typing import TYPE_CHECKING, Self

import pytest

from edgestill.core.clock import SystemClock
from edgestill.core.errors import MessageError, UnreachableError
from edgestill.core.protocols import Request
from edgestill.link.http import HttpTransport
from edgestill.link.tls import hub_context, member_context, unverified_context
from edgestill.trust.authority import Authority
from edgestill.trust.certificates import IdentityKey, Requested, device_uri

if TYPE_CHECKING:
    from pathlib import Path

DAY = 86_400.0
FLEET = "0123456789abcdef"
AUTHORITY, STRANGER = Authority.create(FLEET), Authority.create(FLEET)
TRUSTED = AUTHORITY.authorities.to_pem().decode()


class Peer:
    """A TLS server on the loopback interface: answers each connection's first request, and remembers what was shown."""

    def __init__(self, pem: Path, *, asks: str = "") -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        if asks:
            self._context.load_verify_locations(cadata=asks)
            self._context.verify_mode = ssl.CERT_OPTIONAL
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.shown: list[bytes | None] = []

    @property
    def url(self) -> str:
        """Where it is."""
        return f"https://localhost:{self._listener.getsockname()[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(10)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            with connection, contextlib.suppress(OSError):
                connection.settimeout(10)
                with self._context.wrap_socket(connection, server_side=True) as wrapped:
                    self._answer(wrapped)

    def _answer(self, wrapped: ssl.SSLSocket) -> None:
        """One connection, as long as it asks."""
        self.shown.append(wrapped.getpeercert(binary_form=True))
        while wrapped.recv(65_536):
            wrapped.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")


def paper(folder: Path, name: str, authority: Authority = AUTHORITY, *, lifetime: float = DAY) -> Path:
    """Key and certificate of a device, in one file."""
    key = IdentityKey.generate()
    now = SystemClock().now()
    certificate = authority.device(Requested.from_pem(key.request()), name, now=now, lifetime=lifetime)
    path = folder / f"{name}.pem"
    path.write_bytes(key.to_pem() + certificate)
    return path


def hub_paper(folder: Path, *hosts: str, authority: Authority = AUTHORITY) -> Path:
    """Key and certificate of a hub."""
    key = IdentityKey.generate()
    path = folder / "hub.pem"
    now = SystemClock().now()
    path.write_bytes(key.to_pem() + authority.server(key, hosts, now=now, lifetime=DAY))
    return path


def ask(context: ssl.SSLContext, url: str) -> bytes:
    """One question over a new connection."""
    with HttpTransport(tls=context) as transport:
        return b"".join(transport.send(Request("GET", url), timeout=10).chunks())


def refuses(context: ssl.SSLContext, url: str, text: str) -> None:
    """No question is asked there, for this reason."""
    with pytest.raises(UnreachableError, match=text):
        ask(context, url)


# The hub


def test_a_hub_of_the_fleets_authority_is_believed_for_its_host(tmp_path: Path) -> None:
    """By name and by address; by nobody who does not know the authority."""
    with Peer(hub_paper(tmp_path, "localhost", "127.0.0.1")) as peer:
        assert ask(hub_context(TRUSTED), peer.url) == b"ok"
        assert ask(hub_context(TRUSTED), peer.url.replace("localhost", "127.0.0.1")) == b"ok"
        refuses(hub_context(), peer.url, "certificate verify failed")


def test_a_hub_is_not_believed_for_another_host(tmp_path: Path) -> None:
    """The certificate is right, and somebody else's."""
    with Peer(hub_paper(tmp_path, "hub.example")) as peer:
        refuses(hub_context(TRUSTED), peer.url, "Hostname mismatch")


def test_attack_a_device_that_answers_in_the_hubs_place(tmp_path: Path) -> None:
    """Attack: a device enrols as `localhost`, and answers there with its own certificate, which is of the right fleet."""
    with Peer(paper(tmp_path, "localhost")) as peer:
        refuses(hub_context(TRUSTED), peer.url, "Hostname mismatch")


def test_attack_a_hub_with_an_authority_of_the_same_name(tmp_path: Path) -> None:
    """Attack: the names are right, and the key is another."""
    with Peer(hub_paper(tmp_path, "localhost", authority=STRANGER)) as peer:
        refuses(hub_context(TRUSTED), peer.url, "certificate verify failed")


def test_anybody_is_heard_about_what_is_public(tmp_path: Path) -> None:
    """To fetch an authority before it is known; what comes is judged by its digest."""
    with Peer(hub_paper(tmp_path, "elsewhere", authority=STRANGER)) as peer:
        assert ask(unverified_context(), peer.url) == b"ok"


@pytest.mark.parametrize(
    "told", ["nonsense", "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"]
)
def test_what_are_no_authorities_is_told(told: str) -> None:
    """As an error of ours."""
    with pytest.raises(MessageError, match="what TLS needs cannot be used"):
        hub_context(told)


def test_files_that_do_not_belong_together_are_told(tmp_path: Path) -> None:
    """Another's key, or none."""
    one, other = paper(tmp_path, "one"), paper(tmp_path, "other")
    for files in ((one, other), (one, tmp_path / "nowhere")):
        with pytest.raises(MessageError, match="what TLS needs cannot be used"):
            hub_context(TRUSTED, files)


def test_a_certificate_is_shown_where_it_is_asked_for(tmp_path: Path) -> None:
    """And none where there is none."""
    mine = paper(tmp_path, "d1")
    with Peer(hub_paper(tmp_path, "localhost"), asks=TRUSTED) as peer:
        assert ask(hub_context(TRUSTED, (mine, mine)), peer.url) == b"ok"
        assert ask(hub_context(TRUSTED), peer.url) == b"ok"
    shown, nothing = peer.shown
    assert shown is not None
    assert AUTHORITY.authorities.member(ssl.DER_cert_to_PEM_cert(shown).encode()).device == "d1"
    assert nothing is None


@pytest.mark.parametrize("wrong", ["stranger", "expired"])
def test_attack_a_certificate_that_ends_in_the_handshake(tmp_path: Path, wrong: str) -> None:
    """Attack: of another authority, or past its time: no request is heard on that connection."""
    mine = paper(tmp_path, "d1", STRANGER) if wrong == "stranger" else paper(tmp_path, "d1", lifetime=-60.0)
    with Peer(hub_paper(tmp_path, "localhost"), asks=TRUSTED) as peer:
        with pytest.raises(UnreachableError):
            ask(hub_context(TRUSTED, (mine, mine)), peer.url)
        assert peer.shown == []


def test_another_context_closes_what_is_kept(tmp_path: Path) -> None:
    """A renewed certificate is shown from the next request on; until then the connection is used again."""
    first, second = paper(tmp_path, "d1"), paper(tmp_path, "d2")
    contexts = [hub_context(TRUSTED, (first, first)), hub_context(TRUSTED, (second, second))]
    given = [contexts[0], contexts[0], contexts[1], contexts[1]]
    with (
        Peer(hub_paper(tmp_path, "localhost"), asks=TRUSTED) as peer,
        HttpTransport(tls=lambda: given.pop(0)) as transport,
    ):
        for _ in range(4):
            assert b"".join(transport.send(Request("GET", peer.url), timeout=10).chunks()) == b"ok"
    names = [
        AUTHORITY.authorities.member(ssl.DER_cert_to_PEM_cert(one or b"").encode()).device
        for one in peer.shown
    ]
    assert names == ["d1", "d2"]


# Members of the fleet


@pytest.mark.parametrize("uri", [device_uri(FLEET, "gateway"), device_uri(FLEET, "*")])
def test_a_member_is_known_by_its_name_and_not_by_its_host(tmp_path: Path, uri: str) -> None:
    """The certificate holds no host; the one that was meant, or any of the fleet."""
    with Peer(paper(tmp_path, "gateway")) as peer:
        assert ask(member_context(TRUSTED, uri), peer.url) == b"ok"


@pytest.mark.parametrize("uri", [device_uri(FLEET, "other"), device_uri("f" * 16, "*"), ""])
def test_attack_another_member_in_the_gateways_place(tmp_path: Path, uri: str) -> None:
    """Attack: a device of the fleet, with a good certificate, that is not the one that was meant."""
    with Peer(paper(tmp_path, "gateway")) as peer:
        refuses(member_context(TRUSTED, uri), peer.url, "of another member")


def test_attack_a_stranger_with_a_members_name(tmp_path: Path) -> None:
    """Attack: the same URI, from an authority that is not the fleet's; and the hub itself, which is no device."""
    with Peer(paper(tmp_path, "gateway", STRANGER)) as peer:
        refuses(member_context(TRUSTED, device_uri(FLEET, "gateway")), peer.url, "certificate verify failed")
    with Peer(hub_paper(tmp_path, "localhost")) as peer:
        refuses(member_context(TRUSTED, device_uri(FLEET, "*")), peer.url, "of another member")
