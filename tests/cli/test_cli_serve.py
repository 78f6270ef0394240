"""`edgestill serve` as a process: it says when it listens, answers over real sockets, and ends in order."""

from __future__ import annotations

import datetime as dt
import ipaddress
import json
import signal
import ssl
import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from test_cli_verbs import assert_refused, edgestill, make_bundle

from edgestill.core.clock import SystemClock
from edgestill.core.errors import AccessError, UnreachableError
from edgestill.core.protocols import Request
from edgestill.link.http import HttpTransport
from edgestill.link.inference import RemoteModel

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

BATCH = np.array([[2, 0], [0, 2]], np.float32)
TOKEN = "t" * 40


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A bundle as a file."""
    return make_bundle(tmp_path / "tiny.esb")


@contextmanager
def serving(bundle: Path, *options: object) -> Iterator[dict[str, Any]]:
    """A server on a free port: what it said. It must end with 0 and without a trace."""
    command = [sys.executable, "-W", "error", "-m", "edgestill.cli", "serve", bundle, "--port", "0", "--json"]
    child = subprocess.Popen(
        [*map(str, (*command, *options))], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        assert child.stdout is not None
        said = child.stdout.readline()
        assert said, child.communicate()[1]
        yield json.loads(said)
    finally:
        child.send_signal(signal.SIGTERM)
        _, log = child.communicate(timeout=30)
    assert (child.returncode, "Traceback" in log) == (0, False), log


def model(url: str, *, credential: str | None = None, tls: ssl.SSLContext | None = None) -> RemoteModel:
    """Our own client of it."""
    return RemoteModel(
        HttpTransport(tls=tls),
        url,
        model="tiny",
        clock=SystemClock(),
        timeout=20,
        output="probabilities",
        credential=credential,
    )


def get(url: str) -> tuple[int, Any]:
    """A real request."""
    response = HttpTransport().send(Request("GET", url), timeout=20)
    return response.status, json.loads(b"".join(response.chunks()))


def test_a_bundle_is_served_until_a_signal_comes(bundle: Path) -> None:
    """One line of JSON once it listens; answers, health and metadata; an end with 0."""
    with serving(bundle) as said:
        assert said["model"] == "tiny"
        answer = model(said["url"]).predict(BATCH)
        assert answer.probabilities.argmax(axis=1).tolist() == [0, 1]
        assert get(f"{said['url']}/v2/health/ready") == (200, {"ready": True})
        assert get(f"{said['url']}/v2/models/tiny/versions/{said['version']}")[0] == 200


def test_with_tokens_only_their_bearers_are_answered(bundle: Path, tmp_path: Path) -> None:
    """And the model has the name that was given."""
    (tmp_path / "tokens").write_text(f"{TOKEN}\n")
    with serving(bundle, "--token-file", tmp_path / "tokens", "--name", "tiny") as said:
        assert len(model(said["url"], credential=TOKEN).predict(BATCH)) == 2
        with pytest.raises(AccessError, match="a token is missing"):
            model(said["url"]).predict(BATCH)


def test_a_gateway_of_a_gateway_answers(bundle: Path, tmp_path: Path) -> None:
    """Cascades nest over sockets: the larger one is another server of ours, which gives probabilities."""
    policy = json.dumps(
        {"schema": 1, "labels": ["left", "right"], "alpha": 1.0, "threshold": 2.0, "escalation_share": 1.0}
    ).encode()
    asks = make_bundle(tmp_path / "asks.esb", scale=-3.0, policy=policy)
    (tmp_path / "token").write_text(f"{TOKEN}\n")
    with (
        serving(bundle, "--token-file", tmp_path / "token") as up,
        serving(
            asks,
            *("--teacher", up["url"], "--teacher-model", "tiny", "--teacher-output", "probabilities"),
            *("--teacher-token-file", tmp_path / "token"),
        ) as down,
    ):
        answer = model(down["url"]).predict(BATCH)
    assert answer.probabilities.argmax(axis=1).tolist() == [0, 1]


def test_clients_show_a_certificate_where_that_is_asked_for(bundle: Path, tmp_path: Path) -> None:
    """Mutual TLS: one that the authority signed is let in, none is turned away in the handshake."""
    authority, key = issue("authority", None)
    write(tmp_path / "ca.pem", authority)
    for name in ("server", "client"):
        certificate, own = issue(name, (authority, key))
        write(tmp_path / f"{name}.pem", certificate)
        write_key(tmp_path / f"{name}.key", own)
    files = (
        *("--tls-certificate", tmp_path / "server.pem", "--tls-key", tmp_path / "server.key"),
        *("--client-ca", tmp_path / "ca.pem"),
    )
    trusting = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    known = ssl.create_default_context(cafile=str(tmp_path / "ca.pem"))
    known.load_cert_chain(tmp_path / "client.pem", tmp_path / "client.key")
    with serving(bundle, *files) as said:
        assert said["url"].startswith("https://")
        assert len(model(said["url"], tls=known).predict(BATCH)) == 2
        with pytest.raises(UnreachableError):
            model(said["url"], tls=trusting).predict(BATCH)


@pytest.mark.parametrize(
    ("options", "code", "part"),
    [
        (["--host", "0.0.0.0"], "setting-invalid", "anybody could ask"),
        (["--port", "70000"], "setting-invalid", "a port is out of range"),
        (["--tls-key", "nowhere.pem"], "setting-invalid", "half of what TLS needs"),
        (["--token-file", "nowhere"], "path-unusable", "nowhere"),
        (["--linger", "5"], "unit-invalid", "5"),
        (["--linger", "5 s"], "setting-invalid", "a capacity is out of range"),
        (["--rate", "0"], "setting-invalid", "a rate is out of range"),
        (["--name", "a/b"], "setting-invalid", "a name that no path can hold"),
        (["--engine", "abacus"], "setting-invalid", "no such engine"),
        (["--state", "kept"], "setting-invalid", "this is for a gateway"),
        (["--neighbours", "near.json"], "setting-invalid", "this is for a gateway"),
        (
            ["--teacher", "https://x.example", "--neighbours", "near.json"],
            "path-unusable",
            "cannot read the neighbours",
        ),
    ],
)
def test_what_cannot_be_is_told_before_a_port_is_bound(
    bundle: Path, options: list[str], code: str, part: str
) -> None:
    """One line each."""
    assert_refused(edgestill("serve", bundle, *options), code, part)


def test_a_damaged_bundle_is_not_served(bundle: Path) -> None:
    """Every byte is checked first."""
    data = bytearray(bundle.read_bytes())
    data[data.index(b"tiny model") + 2] ^= 1
    bundle.write_bytes(data)
    assert_refused(edgestill("serve", bundle), "bundle-altered")


def issue(name: str, by: tuple[x509.Certificate, ec.EllipticCurvePrivateKey] | None) -> Any:
    """A certificate for the loopback, signed by another or by itself, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    issuer, signer = (subject, key) if by is None else (by[0].subject, by[1])
    now = dt.datetime.now(dt.UTC)
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - dt.timedelta(hours=1))
        .not_valid_after(now + dt.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([address]), critical=False)
        .add_extension(x509.BasicConstraints(ca=by is None, path_length=None), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False
        )
    )
    return builder.sign(signer, hashes.SHA256()), key


def write(path: Path, certificate: x509.Certificate) -> None:
    """In PEM."""
    path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


def write_key(path: Path, key: ec.EllipticCurvePrivateKey) -> None:
    """In PEM."""
    path.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
