"""The watched way out: who is wanted is written down, nobody is let through, and this machine stays reachable."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer
from threading import Thread

import pytest

from edgestill.testing.outward import Outward

ASK = """
import sys, urllib.request
try:
    print(urllib.request.urlopen(sys.argv[1], timeout=5).status)
except OSError as error:
    print(type(error).__name__)
"""


def asked(outward: Outward, url: str) -> str:
    """What a process that honours the variables gets for the address."""
    done = subprocess.run(
        [sys.executable, "-c", ASK, url],
        env=outward.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("https://reports.example/v1", "CONNECT reports.example:443"),
        ("http://reports.example/v1", "GET http://reports.example/v1"),
    ],
)
def test_who_is_wanted_is_written_down_and_not_reached(url: str, line: str) -> None:
    """An address beyond this machine gives an error to who asks, and its first line to the test."""
    with Outward() as outward:
        assert asked(outward, url) in {"URLError", "RemoteDisconnected", "ConnectionResetError", "OSError"}
        (wanted,) = outward.wanted
        assert wanted.rpartition(" ")[0] == line


def test_what_is_on_this_machine_is_reached_and_not_written_down() -> None:
    """A server on loopback answers, and the test sees nothing of it."""

    class Here(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    with HTTPServer(("127.0.0.1", 0), Here) as server, Outward() as outward:
        Thread(target=server.serve_forever, daemon=True).start()
        assert asked(outward, f"http://127.0.0.1:{server.server_port}/") == "204"
        assert outward.wanted == []
        server.shutdown()


def test_who_says_nothing_is_written_down_too() -> None:
    """A connection without a line, and one with bytes that are no text, do not stop the others."""
    with Outward() as outward:
        port = int(outward.variables["http_proxy"].rpartition(":")[2])
        for said in (b"", b"\xff\xfe\r\n", b"CONNECT a:1 HTTP/1.1\r\n"):
            with socket.create_connection(("127.0.0.1", port)) as one:
                one.sendall(said)
                one.shutdown(socket.SHUT_WR)
                assert one.recv(1) == b""
        assert outward.wanted == ["nothing said", "\N{REPLACEMENT CHARACTER}" * 2, "CONNECT a:1 HTTP/1.1"]


def test_the_environment_leaves_out_what_it_is_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """Named variables and proxies of others are gone; the rest is as it was."""
    monkeypatch.setenv("REPORT", "1")
    monkeypatch.setenv("KEPT", "2")
    monkeypatch.setenv("ALL_PROXY", "http://elsewhere.example")
    with Outward() as outward:
        found = outward.environment("REPORT")
    assert "REPORT" not in found
    assert "ALL_PROXY" not in found
    assert found["KEPT"] == "2"
    assert found["https_proxy"].startswith("http://127.0.0.1:")


def test_after_the_context_nobody_listens() -> None:
    """The proxy's socket is closed at its end."""
    with Outward() as outward:
        here = outward.variables["http_proxy"]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(here, timeout=5)
