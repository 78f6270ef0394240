"""The socket transport against real peers on the loopback interface, honest and hostile."""

from __future__ import annotations

import contextlib
import http.server
import ipaddress
import socket
import ssl
import threading
import time
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, ClassVar, Self

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from edgestill.core.errors import DeadlineError, RefusedError, SettingError, UnreachableError
from edgestill.core.protocols import Request
from edgestill.link.exchange import exchange
from edgestill.link.http import HttpTransport, check_url
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path


class _Peer:
    """A server that says, byte for byte, what a test wants said on each connection in turn."""

    def __init__(self, *scripts: Callable[[socket.socket], None]) -> None:
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._scripts = scripts
        self._connections: list[socket.socket] = []
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.served = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}/"

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for connection in self._connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(10)

    def _serve(self) -> None:
        for script in self._scripts:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self._connections.append(connection)
            self.served += 1
            with connection, contextlib.suppress(OSError):
                script(connection)


def _hear(connection: socket.socket) -> bytes:
    """One request without a body."""
    got = b""
    while not got.endswith(b"\r\n\r\n"):
        piece = connection.recv(65536)
        if not piece:
            raise ConnectionError
        got += piece
    return got


def _says(*pieces: bytes) -> Callable[[socket.socket], None]:
    def script(connection: socket.socket) -> None:
        _hear(connection)
        for piece in pieces:
            connection.sendall(piece)

    return script


def _drips(head: bytes, drop: bytes, pause: float = 0.02) -> Callable[[socket.socket], None]:
    """Says `head`, then one drop after another, each well within any timeout of a single read."""

    def script(connection: socket.socket) -> None:
        _hear(connection)
        connection.sendall(head)
        while True:
            connection.sendall(drop)
            time.sleep(pause)  # a real peer takes real time

    return script


def _stays_silent(connection: socket.socket) -> None:
    _hear(connection)
    connection.recv(1)


@pytest.fixture
def transport() -> Iterator[HttpTransport]:
    with HttpTransport() as opened:
        yield opened


def _get(transport: HttpTransport, url: str, *, timeout: float = 5.0) -> bytes:
    return b"".join(transport.send(Request("GET", url), timeout=timeout).chunks())


OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[tuple[str, str, dict[str, str], bytes]]] = []
    addresses: ClassVar[set[int]] = set()

    def _answer(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length", 0)))
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.seen.append((self.command, self.path, headers, body))
        self.addresses.add(self.client_address[1])
        self.send_response(201)
        self.send_header("X-Part", "one")
        self.send_header("x-part", "two")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        if self.command != "HEAD":
            for piece in (b"hello ", b"world"):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_HEAD = _answer  # noqa: N815  # names that the standard library looks up

    def log_message(self, *args: object) -> None:
        pass


class _Server(http.server.ThreadingHTTPServer):
    request_queue_size = 32

    def handle_error(self, *args: object) -> None:
        pass  # a client that hangs up is part of the tests


@pytest.fixture
def server() -> Iterator[str]:
    _Handler.seen.clear()
    _Handler.addresses.clear()
    with _Server(("127.0.0.1", 0), _Handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{running.server_port}"
        running.shutdown()
        thread.join()


def test_a_request_arrives_and_its_answer_comes_back(transport: HttpTransport, server: str) -> None:
    """Method, path, headers and body go there; status, headers and body come back."""
    request = Request("POST", f"{server}/a?b=1", {"x-colour": "blue"}, b"body")
    answer = transport.send(request, timeout=5)
    assert (answer.status, answer.headers["x-part"]) == (201, "one, two")
    assert b"".join(answer.chunks()) == b"hello world"
    method, path, headers, body = _Handler.seen[0]
    assert (method, path, body) == ("POST", "/a?b=1", b"body")
    assert headers["x-colour"] == "blue"
    assert headers["accept-encoding"] == "identity"


def test_a_connection_is_used_again(transport: HttpTransport, server: str) -> None:
    """Five exchanges, one connection; an answer that was not read costs its connection."""
    for _ in range(5):
        answer = transport.send(Request("GET", server), timeout=5)
        assert b"".join(answer.chunks()) == b"hello world"
        answer.close()
    assert len(_Handler.addresses) == 1
    answer = transport.send(Request("GET", server), timeout=5)
    answer.close()
    answer.close()
    assert _get(transport, server) == b"hello world"
    assert len(_Handler.addresses) == 2


def test_many_threads_share_a_transport(transport: HttpTransport, server: str) -> None:
    """Each exchange has its own connection while it lasts."""
    got: list[bytes] = []
    threads = [threading.Thread(target=lambda: got.append(_get(transport, server))) for _ in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [b"hello world"] * 12


def test_a_head_answer_has_no_body(transport: HttpTransport, server: str) -> None:
    """HEAD ends with the head."""
    assert list(transport.send(Request("HEAD", server), timeout=5).chunks()) == []


def test_nobody_there_is_unreachable(transport: HttpTransport) -> None:
    """A closed port is told at once."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/"
    with pytest.raises(UnreachableError, match=r"no connection, or it broke; at GET http://127"):
        _get(transport, url)


@pytest.mark.parametrize(
    "script",
    [
        _says(b""),
        _says(b"\x16\x03\x01 nonsense\r\n\r\n"),
        _says(b"HTTP/1.1 200 OK\r\nContent-Length: 1, 2\r\n\r\nx"),
        _says(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nshort"),
        _says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabc"),
        _says(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\nabc"),
    ],
)
def test_attack_broken_answers(transport: HttpTransport, script: Callable[[socket.socket], None]) -> None:
    """An answer that ends too early, or is no HTTP, never looks like a whole one."""
    with _Peer(script, script) as peer, pytest.raises(UnreachableError, match="no connection, or it broke"):
        _get(transport, peer.url)


@pytest.mark.parametrize(
    "answer", [b"HTTP/1.1 200 OK\r\nContent-Le", b"HTTP/1.0 200 OK\r\n\r\nall of it, or half"]
)
def test_attack_answers_without_an_end(transport: HttpTransport, answer: bytes) -> None:
    """An answer that only the end of its connection ends may have been cut by anybody."""
    with (
        _Peer(_says(answer)) as peer,
        pytest.raises(UnreachableError, match="an answer that does not say where it ends"),
    ):
        _get(transport, peer.url)


def test_attack_endless_head(transport: HttpTransport) -> None:
    """More fields, or longer ones, than anybody needs are refused before they fill memory."""
    many = b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 200 + b"\r\n"
    long = b"HTTP/1.1 200 OK\r\na: " + b"b" * 100_000 + b"\r\n\r\n"
    for head in (many, long):
        with _Peer(_says(head)) as peer, pytest.raises(UnreachableError, match="got"):
            _get(transport, peer.url)


def test_attack_endless_chunk_head(transport: HttpTransport) -> None:
    """The line that gives a chunk's length is bounded too."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    with _Peer(_says(head, b"0" * 1_000_000)) as peer, pytest.raises(UnreachableError, match="chunk size"):
        _get(transport, peer.url)


@pytest.mark.parametrize(
    ("head", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\na: ", b"b"),
        (b"", b"HTTP/1.1 100 Continue\r\n\r\n"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"0"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n", b"a: b\r\n"),
    ],
)
def test_attack_slow_answers(transport: HttpTransport, head: bytes, drop: bytes) -> None:
    """A peer that keeps every single read in time still cannot outlast the deadline of the exchange."""
    start = time.monotonic()
    with _Peer(_drips(head, drop)) as peer, pytest.raises(DeadlineError, match="whole exchange is over"):
        _get(transport, peer.url, timeout=0.2)
    assert time.monotonic() - start < 2


def test_attack_slow_reading(transport: HttpTransport) -> None:
    """A peer that does not take the request cannot hold its sender either."""

    def script(connection: socket.socket) -> None:
        for _ in range(20):
            connection.recv(1)
            time.sleep(0.02)  # a real peer takes real time

    request_body = bytes(30_000_000)
    with _Peer(script) as peer, pytest.raises(DeadlineError, match="whole exchange is over"):
        transport.send(Request("POST", peer.url, body=request_body), timeout=0.2)


def test_no_head_in_time_is_a_deadline(transport: HttpTransport) -> None:
    """A peer that says nothing is given up."""
    with (
        _Peer(_stays_silent) as peer,
        pytest.raises(DeadlineError, match=r"at GET http://127.*whole exchange"),
    ):
        _get(transport, peer.url, timeout=0.1)


def test_silence_within_a_body_is_a_dead_connection() -> None:
    """It is given up long before the deadline of a large download."""

    def script(connection: socket.socket) -> None:
        _hear(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\nx")
        connection.recv(1)

    with HttpTransport(silence=0.1) as transport, _Peer(script) as peer:
        answer = transport.send(Request("GET", peer.url), timeout=60)
        chunks = answer.chunks()
        assert next(chunks) == b"x"
        with pytest.raises(DeadlineError, match=r"0\.1 s of silence"):
            next(chunks)


def test_the_deadline_follows_the_clock_that_was_given() -> None:
    """Time that passes between two chunks counts."""
    clock = FakeClock()

    def script(connection: socket.socket) -> None:
        _hear(connection)
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nx")
        connection.recv(1)

    with HttpTransport(clock=clock) as transport, _Peer(script) as peer:
        chunks = transport.send(Request("GET", peer.url), timeout=10).chunks()
        assert next(chunks) == b"x"
        clock.advance(11)
        with pytest.raises(DeadlineError, match="whole exchange is over"):
            next(chunks)


def test_a_kept_connection_gets_the_deadline_of_its_new_exchange() -> None:
    """It does not inherit what the last one had left."""
    clock = FakeClock()

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            _hear(connection)
            connection.sendall(OK)

    with HttpTransport(clock=clock) as transport, _Peer(script) as peer:
        assert _get(transport, peer.url, timeout=10) == b"ok"
        clock.advance(100)
        assert _get(transport, peer.url, timeout=10) == b"ok"
        assert peer.served == 1


def _dies_at_second(connection: socket.socket) -> None:
    _hear(connection)
    connection.sendall(OK)
    _hear(connection)


def test_a_kept_connection_that_died_is_replaced_for_what_may_be_repeated(transport: HttpTransport) -> None:
    """GET is sent once more on a fresh connection."""
    with _Peer(_dies_at_second, _says(OK)) as peer:
        assert _get(transport, peer.url) == b"ok"
        assert _get(transport, peer.url) == b"ok"
        assert peer.served == 2


def test_what_may_not_be_repeated_is_the_callers(transport: HttpTransport) -> None:
    """A POST may have been heard: it is not sent twice."""
    with _Peer(_dies_at_second, _says(OK)) as peer:
        assert _get(transport, peer.url) == b"ok"
        with pytest.raises(UnreachableError, match="closed connection"):
            transport.send(Request("POST", peer.url), timeout=5)
        assert peer.served == 1


def test_attack_redirect_elsewhere(transport: HttpTransport) -> None:
    """A redirect is not followed, and no answer."""
    with _Peer(_says(OK)) as other:
        head = f"HTTP/1.1 302 Found\r\nLocation: {other.url}\r\nContent-Length: 0\r\n\r\n".encode()
        with _Peer(_says(head)) as peer:
            with pytest.raises(RefusedError, match="an answer that sends elsewhere"):
                exchange(transport, Request("GET", peer.url), timeout=5, max_bytes=100)
            assert (peer.served, other.served) == (1, 0)


def test_a_body_is_never_unpacked(transport: HttpTransport) -> None:
    """What says that it is compressed is handed on as it came; a bomb stays small."""
    body = b"\x1f\x8b not really"
    head = b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body)
    with _Peer(_says(head, body)) as peer:
        assert _get(transport, peer.url) == body


def test_a_header_with_a_line_break_is_never_sent(transport: HttpTransport) -> None:
    """Nothing can be smuggled into a request."""
    with _Peer(_says(OK)) as peer, pytest.raises(SettingError, match="a request that cannot be sent"):
        transport.send(Request("GET", peer.url, {"x": "a\r\nb: c"}), timeout=5)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "hub",
        "ftp://127.0.0.1/",
        "http://",
        "http://[::1/",
        "http://127.0.0.1:x/",
        "https://me:pw@hub/",
        "http://hüb/",
    ],
)
def test_what_is_no_address_is_refused(transport: HttpTransport, url: str) -> None:
    """Before anything is sent."""
    with pytest.raises(SettingError, match="not an address"):
        _get(transport, url)


def test_plain_http_stays_on_this_machine() -> None:
    """Credentials are not shown to a network, unless that was asked for."""
    for url in ("http://localhost:1/", "http://127.0.0.2/", "http://[::1]:80/", "https://hub.example/"):
        assert check_url(url) == url
    for url in ("http://192.168.1.5/", "http://hub.example/", "http://127.0.0.1.example/"):
        with pytest.raises(SettingError, match="http would show credentials to the network"):
            check_url(url)
        assert check_url(url, plain_http=True) == url


def test_attack_tls_peer_without_a_certificate_we_trust(server: str) -> None:
    """An https address that does not speak TLS, or not one we trust, is unreachable."""
    context = ssl.create_default_context()
    with HttpTransport(tls=context) as transport, pytest.raises(UnreachableError, match="no connection"):
        _get(transport, server.replace("http:", "https:"))


def _certificate(folder: Path) -> Path:
    """A key and a certificate of its own for 127.0.0.1."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "peer")])
    address = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(hours=1))
        .not_valid_after(now + timedelta(hours=1))
        .add_extension(address, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    path = folder / "peer.pem"
    unprotected = serialization.NoEncryption()
    path.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unprotected)
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    return path


def _encrypted(path: Path, script: Callable[[socket.socket], None]) -> Callable[[socket.socket], None]:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path)

    def run(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as wrapped:
            script(wrapped)

    return run


def test_https_is_spoken_with_whom_we_trust(tmp_path: Path) -> None:
    """Large bodies both ways, over one connection; a peer that we were not told to trust is unreachable."""
    path, body = _certificate(tmp_path), bytes(range(256)) * 4_000

    def script(connection: socket.socket) -> None:
        for _ in range(2):
            got = b""
            while not got.endswith(b"the end"):
                got += connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with _Peer(_encrypted(path, script), _encrypted(path, script)) as peer:
        url = peer.url.replace("http:", "https:")
        with HttpTransport(tls=ssl.create_default_context(cafile=str(path))) as transport:
            for _ in range(2):
                answer = transport.send(Request("POST", url, body=body + b"the end"), timeout=10)
                assert b"".join(answer.chunks()) == body
            assert peer.served == 1
        with (
            HttpTransport(tls=ssl.create_default_context()) as transport,
            pytest.raises(UnreachableError, match="certificate verify failed"),
        ):
            _get(transport, url)


def test_attack_slow_answer_over_tls(tmp_path: Path) -> None:
    """The deadline holds beneath the encryption too."""
    path = _certificate(tmp_path)
    script = _encrypted(path, _drips(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", b"x"))
    with (
        _Peer(script) as peer,
        HttpTransport(tls=ssl.create_default_context(cafile=str(path))) as transport,
        pytest.raises(DeadlineError, match="whole exchange is over"),
    ):
        _get(transport, peer.url.replace("http:", "https:"), timeout=0.3)
