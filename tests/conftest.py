"""What holds for every test: no network beyond this machine, no deadline races, real data only where it is given.

- A connection to anything but this machine is refused, so that a test cannot come to depend on the network.
- Hypothesis runs without its per-example deadline: shared machines are slow at odd moments. It draws new examples
  with every run, and the same ones where CI is set: a landing must not hang on a coin.
- `real_data` gives a file of the folder that `EDGESTILL_DATA` names. Unset: the test skips and says why. Set, but the
  file is not there: the test fails.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from collections.abc import Callable

settings.register_profile("house", deadline=None, max_examples=60, derandomize="CI" in os.environ)
settings.load_profile("house")

_LOOPBACK = ("127.", "::1", "localhost")


@pytest.fixture(autouse=True)
def _unplugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuses connections that would leave this machine."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: Any) -> None:
        if isinstance(address, tuple) and not str(address[0]).startswith(_LOOPBACK):
            pytest.fail(f"a test tried to leave this machine: {address!r}")
        connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", guarded)


@pytest.fixture
def real_data() -> Callable[[str], Path]:
    """A function from a file name to its path under `EDGESTILL_DATA`."""
    folder = os.environ.get("EDGESTILL_DATA")
    if folder is None:
        pytest.skip("needs real data: set EDGESTILL_DATA to its folder")

    def find(name: str) -> Path:
        path = Path(folder) / name
        assert path.is_file(), f"EDGESTILL_DATA is set, but {path} is not there"
        return path

    return find
