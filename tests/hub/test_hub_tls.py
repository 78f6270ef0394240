"""The hub over TLS, with real sockets: its own certificate, devices' certificates, and who is let in by which."""

from __future__ import annotations

import json
import signal
import ssl
import stat
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

import pytest
from hub_processes import Process

from edgestill.core import bundle as core_bundle
from edgestill.core.clock import SystemClock
from edgestill.core.errors import AccessError, PathError, SettingError, TrustError, UnreachableError
from edgestill.core.protocols import Request
from edgestill.core.wire import Enrol
from edgestill.device.home import CERTIFICATE, DEVICE_KEY, Settings
from edgestill.device.life import _transport_to, join
from edgestill.device.papers import HubTransport, hub_transport, papers_of
from edgestill.hub import home as home_module
from edgestill.hub.home import Home
from edgestill.hub.main import main
from edgestill.hub.tls import SERVER, SERVER_LIFETIME, OwnCertificate, context_of, told
from edgestill.link.control import ControlClient
from edgestill.link.http import HttpTransport
from edgestill.link.operator import OperatorClient
from edgestill.link.tls import hub_context
from edgestill.testing.clock import FakeClock
from edgestill.trust.authority import Authority
from edgestill.trust.certificates import IdentityKey, Requested
from edgestill.trust.keys import SigningKey
from edgestill.trust.root import create_root

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

DAY = 86_400.0
CLASS = "x86_64-vnni-onnxruntime"
KEY = IdentityKey.generate()
OPENED: list[HttpTransport] = []
"""Clients of the hub that serves; they hang up before it ends."""


@contextmanager
def serving(folder: Path, *options: str) -> Iterator[Process]:
    """A hub that speaks TLS."""
    process = Process(folder, *options)
    try:
        process.url()
        yield process
    finally:
        while OPENED:
            OPENED.pop().close()
        code, log = process.stop(signal.SIGTERM)
    assert code == 0, log
    assert "Traceback" not in log


def trusting(process: Process, shown: Path | None = None) -> HttpTransport:
    """A client that believes the fleet's authority, and may show a certificate."""
    authorities = (process.home / "authority.pem").read_text()
    OPENED.append(HttpTransport(tls=hub_context(authorities, None if shown is None else (shown, shown))))
    return OPENED[-1]


def operator(process: Process) -> OperatorClient:
    """The hub's owner; the hub has a root."""
    token = (process.home / "operator.token").read_text().strip()
    client = OperatorClient(trusting(process), process.url(), token=token)
    root, targets = SigningKey.generate(), SigningKey.generate()
    online = Home.open(process.home).key.public
    expires = SystemClock().now() + DAY
    client.upload_root(create_root(root=[root], targets=[targets.public], online=online, expires=expires))
    return client


def enrolled(process: Process, folder: Path, name: str = "d0") -> tuple[str, Path]:
    """A device's credential, and a file with its key and certificate."""
    enrol = Enrol(
        join_token=operator(process).join_token(),
        device=name,
        hardware_class=CLASS,
        request=KEY.request().decode(),
    )
    answer = ControlClient(trusting(process), process.url()).enrol(enrol)
    path = folder / f"{name}.pem"
    path.write_bytes(KEY.to_pem() + answer.certificate.encode())
    return answer.credential, path


def issued(
    process: Process, folder: Path, authority: Authority | None = None, *, lifetime: float = DAY
) -> Path:
    """A file with the key of `enrolled`, and a certificate that the test makes of it."""
    made = authority or Home.open(process.home).authority
    now = SystemClock().now()
    certificate = made.device(Requested.from_pem(KEY.request()), "d0", now=now, lifetime=lifetime)
    path = folder / "made.pem"
    path.write_bytes(KEY.to_pem() + certificate)
    return path


def polls(process: Process, shown: Path | None, credential: str | None = None) -> Any:
    """What a poll answers."""
    transport = trusting(process, shown)
    return ControlClient(transport, process.url(), credential=credential).poll(etag=None, wait=0)


def test_devices_are_known_by_their_certificates_alone(tmp_path: Path) -> None:
    """Mutual TLS, with certificates required: who shows one is heard, who has only the credential or nothing is not."""
    with serving(tmp_path, "--tls", "--require-certificates") as process:
        assert process.url().startswith("https://127.0.0.1:")
        credential, shown = enrolled(process, tmp_path)
        assert polls(process, shown)[0] is not None
        assert polls(process, shown, credential)[0] is not None
        for secret in (credential, None):
            with pytest.raises(AccessError, match="a certificate is missing"):
                polls(process, None, secret)
        renewal = ControlClient(trusting(process), process.url(), credential=credential)
        assert "BEGIN CERTIFICATE" in renewal.certify(KEY.request()).certificate
        operator_ = OperatorClient(
            trusting(process), process.url(), token=(process.home / "operator.token").read_text().strip()
        )
        operator_.revoke("d0")
        with pytest.raises(AccessError, match="the credential was revoked"):
            polls(process, shown)


def test_credentials_go_on_where_certificates_are_not_required(tmp_path: Path) -> None:
    """Either opens."""
    with serving(tmp_path, "--tls") as process:
        credential, shown = enrolled(process, tmp_path)
        assert polls(process, shown)[0] is not None
        assert polls(process, None, credential)[0] is not None


def test_attack_certificates_that_end_in_the_handshake(tmp_path: Path) -> None:
    """Attack: expired; of another fleet; of an authority that took this one's name. Nothing is heard, credential or not."""
    with serving(tmp_path, "--tls") as process:
        credential, _ = enrolled(process, tmp_path)
        fleet = Home.open(process.home).authority.authorities.fleet
        assert polls(process, issued(process, tmp_path))[0] is not None, (
            "the maker of these makes good ones too"
        )
        for authority, lifetime in (
            (None, -1.0),
            (Authority.create("f" * 16), DAY),
            (Authority.create(fleet), DAY),
        ):
            shown = issued(process, tmp_path, authority, lifetime=lifetime)
            with pytest.raises(UnreachableError):
                polls(process, shown, credential)
        assert polls(process, None, credential)[0] is not None


def test_a_certificate_that_ended_by_the_hubs_clock_alone_locks_no_device_out(tmp_path: Path) -> None:
    """The device's clock is behind: the handshake ends once, then the credential opens and gets the next, which is shown."""
    with serving(tmp_path, "--tls") as process:
        token, now = operator(process).join_token(), SystemClock().now()
        settings = Settings(leaves="raw", labels={})
        home = join(tmp_path / "device", hub=process.url(), token=token, name="d0", settings=settings)
        key = IdentityKey.from_pem((home.path / DEVICE_KEY).read_bytes())
        requested = Requested.from_pem(key.request())
        ended = Home.open(process.home).authority.device(requested, "d0", now=now - 7200, lifetime=3600)
        (home.path / CERTIFICATE).write_bytes(ended)
        clock = FakeClock(now - 5400)
        transport = hub_transport(home, clock)
        assert isinstance(transport, HubTransport)
        papers = papers_of(transport, home, clock)
        control = ControlClient(transport, process.url(), credential=home.identity.credential)
        assert not papers.is_due(clock.now())
        with pytest.raises(UnreachableError):
            control.poll(etag=None, wait=0)
        assert papers.is_due(clock.now())
        papers.accept(control.certify(papers.request()))
        assert not papers.shows
        assert control.poll(etag=None, wait=0)[0] is not None
        assert papers.shows
        assert not papers.is_due(clock.now())
        OPENED.append(cast("HttpTransport", transport._inner))


def test_a_device_finds_the_hub_by_its_token_alone(tmp_path: Path) -> None:
    """The authority is fetched from whoever answers, compared with the token, and believed from then on; another one is not."""
    with serving(tmp_path, "--tls", "--tls-name", "localhost") as process:
        assert process.url().startswith("https://localhost:")
        vouched = operator(process).join_token().split(".")[3]
        transport = cast("HttpTransport", _transport_to(process.url(), vouched))
        OPENED.append(transport)
        assert transport.send(Request("GET", f"{process.url()}/health/live"), timeout=10).status == 200
        with pytest.raises(TrustError, match="another authority than the one that was vouched for"):
            _transport_to(process.url(), "0" * 64)
        plain = _transport_to(process.url(), None)
        with pytest.raises(UnreachableError, match="certificate verify failed"):
            plain.send(Request("GET", f"{process.url()}/health/live"), timeout=10)


def test_an_operator_believes_the_authority_that_a_variable_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`SSL_CERT_FILE`: the verbs of the command line need no option for it."""
    with serving(tmp_path, "--tls") as process:
        token = (process.home / "operator.token").read_text().strip()
        monkeypatch.setenv("SSL_CERT_FILE", str(process.home / "authority.pem"))
        OPENED.append(HttpTransport())
        assert OperatorClient(OPENED[-1], process.url(), token=token).fleet() == {"devices": []}


def test_an_operators_own_certificate_serves_devices_too(tmp_path: Path) -> None:
    """`--tls-certificate`: clients' certificates are asked for just the same; what cannot be used is told in one line."""
    other = Authority.create("e" * 16)
    key = IdentityKey.generate()
    pem, own = tmp_path / "own.pem", tmp_path / "own.key"
    pem.write_bytes(other.server(key, ["127.0.0.1"], now=SystemClock().now(), lifetime=DAY))
    own.write_bytes(key.to_pem())
    believed = other.authorities.to_pem().decode()
    with serving(
        tmp_path, "--tls-certificate", str(pem), "--tls-key", str(own), "--require-certificates"
    ) as process:
        shown = issued(process, tmp_path)
        for files, text in (
            ((shown, shown), "a certificate of no device"),
            (None, "a certificate is missing"),
        ):
            OPENED.append(HttpTransport(tls=hub_context(believed, files)))
            with pytest.raises(AccessError, match=text):
                ControlClient(OPENED[-1], process.url()).poll(etag=None, wait=0)
    process = Process(tmp_path, "--tls-certificate", str(pem), "--tls-key", str(pem))
    process.child.wait(60)
    code, log = process.stop()
    assert code == 1
    assert log.splitlines()[-1].startswith("[setting-invalid] the files for TLS cannot be used")


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--tls", "--tls-certificate", "a", "--tls-key", "b"], "two certificates for one hub"),
        (["--tls-name", "hub"], "names without a certificate"),
        (["--tls", "--host", "0.0.0.0"], "a certificate needs the names"),
        (["--require-certificates"], "no device could show a certificate"),
        (["--tls", "--behind-proxy", "--require-certificates"], "no device could show a certificate"),
        (["--tls", "--tls-name", "a b"], "not a host"),
        (["--certificate-lifetime", "1 s"], "the lifetime of certificates is out of range"),
        (["--certificate-lifetime", "soon"], "soon"),
    ],
)
def test_what_cannot_be_is_told_before_it_serves(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], text: str
) -> None:
    """One line each, exit code 1."""
    assert main(["up", "--home", str(tmp_path / "hub"), "--port", "0", *options]) == 1
    assert text in capsys.readouterr().err.splitlines()[-1]


# The hub's own certificate


def test_the_hubs_certificate_is_renewed_while_it_serves(tmp_path: Path) -> None:
    """When a third of its life is left: a new key, the same hosts, in a file that is the owner's alone."""
    clock, home = FakeClock(), Home.init(tmp_path / "hub")
    own = OwnCertificate(home, context_of(home), ["hub.example", "hub.example", "127.0.0.1"], clock)
    path = home.folder / SERVER
    assert own.renew_if_due()
    first = path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    clock.advance(SERVER_LIFETIME * 2 / 3 - 1)
    assert not own.renew_if_due()
    assert path.read_bytes() == first
    clock.advance(1)
    assert own.renew_if_due()
    assert path.read_bytes() != first
    assert IdentityKey.from_pem(path.read_bytes()).id != IdentityKey.from_pem(first).id


def test_the_hubs_certificate_outlives_restarts(tmp_path: Path) -> None:
    """While it is not due, for the same hosts, and whole; so a restart locks no device out whose clock is behind."""
    clock, home = FakeClock(), Home.init(tmp_path / "hub")
    path = home.folder / SERVER

    def started(*hosts: str) -> bool:
        """Whether a start takes a new one; it serves in any case."""
        context = context_of(home)
        before = path.read_bytes() if path.exists() else b""
        is_new = OwnCertificate(home, context, hosts or ("hub.example",), clock).renew_if_due()
        assert is_new == (path.read_bytes() != before)
        return is_new

    assert started()
    clock.advance(SERVER_LIFETIME * 2 / 3 - 2)
    assert not started()
    clock.advance(2)
    assert started(), "it is due"
    assert started("other.example")
    assert not started("other.example")
    for damage in (b"", path.read_bytes()[:400], b"\0" * 100_000):
        path.write_bytes(damage)
        assert started("other.example")
    clock.jump(-40 * DAY)
    assert started("other.example"), "the clock was wrong"
    clock.advance(SERVER_LIFETIME * 2 / 3 - 2)
    own = OwnCertificate(home, context_of(home), ("other.example",), clock)
    assert not own.renew_if_due()
    clock.advance(2)
    assert own.renew_if_due(), "one that was kept is renewed in its time"


def test_a_host_that_is_none_is_told_at_the_start(tmp_path: Path) -> None:
    """Before anything is written."""
    home = Home.init(tmp_path / "hub")
    own = OwnCertificate(home, context_of(home), ["*.example"], FakeClock())
    with pytest.raises(SettingError, match="not a host"):
        own.renew_if_due()
    assert not (home.folder / SERVER).exists()


def test_the_context_asks_and_does_not_insist(tmp_path: Path) -> None:
    """Devices enrol before they have a certificate."""
    context = context_of(Home.init(tmp_path / "hub"))
    assert context.verify_mode is ssl.CERT_OPTIONAL
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert [one["serialNumber"] for one in context.get_ca_certs()] != []


# The folder


def test_the_authority_is_made_once_and_kept(tmp_path: Path) -> None:
    """By the first `init`; the key is its owner's alone."""
    first = Home.init(tmp_path / "hub")
    again = Home.init(tmp_path / "hub")
    assert again.authority.authorities == first.authority.authorities
    assert stat.S_IMODE((tmp_path / "hub" / "authority.key").stat().st_mode) == 0o600
    assert Home.init(tmp_path / "other").authority.authorities.fleet != first.authority.authorities.fleet


@pytest.mark.parametrize(
    ("lost", "left"), [("authority.pem", "authority.key"), ("authority.key", "authority.pem")]
)
def test_a_lost_file_of_the_authority_is_told_and_the_other_kept(
    tmp_path: Path, lost: str, left: str
) -> None:
    """The fleet believes that authority: no other one takes its place, and putting the file back is enough."""
    home = Home.init(tmp_path / "hub")
    path, kept = home.folder / lost, (home.folder / left).read_bytes()
    data = path.read_bytes()
    path.unlink()
    for _ in range(2):
        with pytest.raises(PathError, match="a file of the fleet's authority is lost") as caught:
            Home.init(tmp_path / "hub")
        assert str(caught.value.where) == str(path)
        assert (home.folder / left).read_bytes() == kept
        assert not path.exists()
    path.write_bytes(data)
    assert Home.init(tmp_path / "hub").authority.authorities == home.authority.authorities


class Killed(BaseException):
    """The power failed: nothing of ours may catch it."""


@pytest.mark.parametrize("of_old", [False, True], ids=["first", "update"])
@pytest.mark.parametrize("at", ["authority.key.new", "authority.pem", "rename"])
@pytest.mark.parametrize("fault", ["before", "after"])
def test_a_kill_anywhere_in_the_first_init_leaves_one_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, fault: str, *, of_old: bool
) -> None:
    """The next one ends what was begun; a certificate that somebody may have seen is the one that stays."""
    folder = tmp_path / "hub"
    if of_old:
        Home.init(folder)
        for name in ("authority.key", "authority.pem"):
            (folder / name).unlink()

    def failing(real: Any, name: str) -> Any:
        def write(path: Path, *given: Any) -> None:
            if at in {name, path.name}:
                if fault == "after":
                    real(path, *given)
                raise Killed
            real(path, *given)

        return write

    with monkeypatch.context() as context:
        context.setattr(home_module, "replace", failing(core_bundle.replace, ""))
        context.setattr(type(folder), "rename", failing(type(folder).rename, "rename"))
        with pytest.raises(Killed):
            Home.init(folder)
    seen = folder / "authority.pem"
    before = seen.read_bytes() if seen.exists() else None
    home = Home.init(folder)
    assert before in {None, home.authority.authorities.to_pem()}
    assert not (folder / "authority.key.new").exists()
    assert Home.init(folder).authority.authorities == home.authority.authorities


def test_an_older_hubs_folder_gets_an_authority(tmp_path: Path) -> None:
    """When it is brought up the first time after an update."""
    home = Home.init(tmp_path / "hub")
    for name in ("authority.key", "authority.pem"):
        (home.folder / name).unlink()
    assert Home.init(tmp_path / "hub").key.public == home.key.public


def test_files_of_two_authorities_are_refused(tmp_path: Path) -> None:
    """As after a backup that was put back by halves."""
    home, other = Home.init(tmp_path / "hub"), Home.init(tmp_path / "other")
    (home.folder / "authority.key").write_bytes((other.folder / "authority.key").read_bytes())
    with pytest.raises(TrustError, match="the authority's key is not its certificate's"):
        Home.open(tmp_path / "hub")


def test_what_is_shown_goes_into_every_scope_of_the_connection() -> None:
    """In the shape of the ASGI TLS extension, beside other extensions; nothing of the scope is lost or changed."""
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append((scope, receive, send))

    given = {"type": "http", "extensions": {"other": {}}}
    for shown in ("PEM", None):
        with pytest.raises(StopIteration):
            told(app, shown)(given, 1, 2).send(None)
    assert given == {"type": "http", "extensions": {"other": {}}}
    (first, *rest), (second, *_) = seen
    assert rest == [1, 2]
    assert first["extensions"]["other"] == {}
    assert first["extensions"]["tls"]["client_cert_chain"] == ("PEM",)
    assert second["extensions"]["tls"]["client_cert_chain"] == ()
    assert set(json.loads(json.dumps(first["extensions"]["tls"]))) == {
        "server_cert",
        "client_cert_chain",
        "client_cert_name",
        "client_cert_error",
        "tls_version",
        "cipher_suite",
    }
