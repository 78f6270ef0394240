"""Downloads from a real server, by any story of answers, and killed anywhere."""

from __future__ import annotations

import http.server
import random
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest
from starlette.applications import Starlette
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route
from test_link_download import DIGEST, _download, _Mirror

from edgestill.core.errors import (
    TrustError,
    UnreachableError,
)
from edgestill.link.download import download
from edgestill.link.http import HttpTransport
from edgestill.testing.clock import FakeClock
from edgestill.testing.transport import AsgiTransport

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from starlette.requests import Request as WebRequest


URL = "http://mirror.test/file"
DATA = random.Random(0).randbytes(10_000)


@pytest.fixture
def clock() -> FakeClock:
    """Of the test."""
    return FakeClock()


@pytest.fixture
def to(tmp_path: Path) -> Path:
    """Where the file goes."""
    return tmp_path / "file.esb"


def test_a_real_server_that_dies_and_comes_back(tmp_path: Path, to: Path, clock: FakeClock) -> None:
    """Over sockets: cut in the middle of the body, and continued from another server."""
    mirror = _Mirror()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            start = int(self.headers.get("range", "bytes=0-")[6:-1])
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(DATA) - start))
            self.send_header("Content-Range", f"bytes {start}-{len(DATA) - 1}/{len(DATA)}")
            self.end_headers()
            self.wfile.write(DATA[start:] if start else DATA[:6_000])
            mirror.served.append(str(start))

        def log_message(self, *args: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server, HttpTransport() as transport:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}/file"
        for attempt in range(2):
            try:
                download(
                    transport,
                    url,
                    to=to,
                    size=10_000,
                    digest=DIGEST,
                    clock=clock,
                    timeout=10,
                    minimum_speed=100,
                )
            except UnreachableError:
                assert attempt == 0
        server.shutdown()
        thread.join()
    assert to.read_bytes() == DATA
    assert mirror.served == ["0", "6000"]


KILL_ANYWHERE = """
import os, sys
from pathlib import Path
from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.link import download as room
from edgestill.testing.clock import FakeClock

root, data = Path(sys.argv[1]), os.urandom(3_000)
ours = {room.__file__, bundle.__file__}

class Answer:
    def __init__(self, start):
        self.start, self.status = start, 206 if start else 200
        self.headers = {"content-range": f"bytes {start}-2999/3000"}
    def chunks(self):
        for at in range(self.start, 3_000, 1_000):
            yield data[at : at + 1_000]
    def close(self):
        pass

class Mirror:
    def send(self, request, *, timeout):
        return Answer(int(request.headers.get("range", "bytes=0-")[6:-1]))

def fetch(to):
    room.download(Mirror(), "http://m/", to=to, size=3_000, digest=Digest.of(data), clock=FakeClock(), timeout=9, minimum_speed=1)

def dies_at(step, to):
    child = os.fork()
    if child == 0:
        left = step
        def trace(frame, event, _):
            nonlocal left
            if frame.f_code.co_filename not in ours:
                return None
            if event == "line":
                left -= 1
                if left == 0:
                    os._exit(9)
            return trace
        sys.settrace(trace)
        fetch(to)
        sys.settrace(None)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9

step, absent, present = 0, 0, 0
while True:
    step += 1
    to = root / f"{step}.esb"
    killed = dies_at(step, to)
    if to.exists():
        assert to.read_bytes() == data
        present += 1
    else:
        absent += 1
    fetch(to)
    assert to.read_bytes() == data
    assert not to.with_name(to.name + ".part").exists()
    if not killed:
        break
print(absent, present)
"""


def test_kill_anywhere_leaves_the_whole_file_or_none(tmp_path: Path) -> None:
    """A download killed at any line: the name holds all of it or is not there, and the next one completes it."""
    told = subprocess.run(
        [sys.executable, "-c", KILL_ANYWHERE, str(tmp_path)], check=True, capture_output=True, text=True
    )
    absent, present = map(int, told.stdout.split())
    assert absent > 50
    assert present > 3


def test_an_endless_stream_over_the_application_is_left(to: Path, clock: FakeClock) -> None:
    """The server notices that nobody reads on."""
    left = threading.Event()

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield b"x" * 1_000
        finally:
            left.set()

    async def answer(_: WebRequest) -> Response:
        return StreamingResponse(pieces())

    with AsgiTransport(Starlette(routes=[Route("/file", answer)])) as transport:
        with pytest.raises(TrustError, match="another length"):
            _download(transport, to, clock)
        assert left.wait(5)
