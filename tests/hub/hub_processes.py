"""The hub as a process of this machine, and real requests to it."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from edgestill.core.protocols import Request
from edgestill.link.http import HttpTransport

if TYPE_CHECKING:
    from pathlib import Path


class Process:
    """`python -m edgestill.hub.main up` on a free port."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.home = folder / "hub"
        self.ready = folder / "ready"
        self.child = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-m", "edgestill.hub.main", "up"),
                *("--home", str(self.home), "--port", "0", "--ready", str(self.ready), *arguments),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def url(self) -> str:
        """Where it listens, once it says so."""
        end = time.monotonic() + 60
        while not self.ready.exists() and self.child.poll() is None and time.monotonic() < end:
            time.sleep(0.02)
        if not self.ready.exists():
            self.child.kill()
            pytest.fail(f"it did not start: {self.child.communicate()}")
        return self.ready.read_text().strip()

    def stop(self, number: int = signal.SIGTERM) -> tuple[int, str]:
        """Its exit code and what it logged."""
        if self.child.poll() is None:
            self.child.send_signal(number)
        try:
            _, log = self.child.communicate(timeout=30)
        except subprocess.TimeoutExpired:
            self.child.kill()
            _, log = self.child.communicate()
        return self.child.returncode, log


def get(url: str, **headers: str) -> tuple[int, Any]:
    """A real request."""
    response = HttpTransport().send(Request("GET", url, headers), timeout=20)
    body = b"".join(response.chunks())
    return response.status, body
