"""Letting a device in over a line that breaks before the hub's answer has come."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from test_cli_operating import HERE, World, world

from edgestill.core.protocols import Request
from edgestill.link.http import HttpTransport

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["world"]


@contextmanager
def losing(world: World, answers: int) -> Iterator[tuple[World, list[str]]]:
    """The hub behind a proxy that passes every request on, and loses so many answers to a device that enrols; and what was asked."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            headers = {name.lower(): value for name, value in self.headers.items()}
            response = HttpTransport().send(Request("POST", world.url + self.path, headers, body), timeout=20)
            data = b"".join(response.chunks())
            asked.append(self.path)
            if self.path == "/v1/enrol" and asked.count(self.path) <= answers:
                self.close_connection = True
                return
            self.send_response(response.status)
            self.send_header("content-type", response.headers["content-type"])
            self.send_header("content-length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield World(f"http://127.0.0.1:{server.server_port}", world.folder), asked
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_lost_answer_burns_no_name(world: World, lost: int) -> None:
    """The device is in after the first; its token is asked for again by the same join token, and opens."""
    name = f"lost-{lost}"
    with losing(world, lost) as (there, asked):
        token = there.json("fleet", "add", name, "--hardware-class", HERE)["token"]
        assert asked.count("/v1/enrol") == lost + 1
        assert asked.count("/v1/admin/join-tokens") == 1
    headers = {"authorization": f"TargetToken {token}"}
    request = Request("GET", f"{world.url}/default/controller/v1/{name}", headers)
    response = HttpTransport().send(request, timeout=20)
    response.close()
    assert response.status == 200


def test_a_line_that_loses_every_answer_is_told(world: World) -> None:
    """After a few tries it ends with one line."""
    with losing(world, 1000) as (there, asked):
        said = there.run("fleet", "add", "lost-always", "--hardware-class", HERE, fails=True)
        assert said.startswith("[peer-unreachable]"), said
        assert asked.count("/v1/enrol") == 3
