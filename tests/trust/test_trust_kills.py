"""Kill anywhere: a device that loses power at any step of writing loses nothing it must not lose.

A forked process refreshes and is ended, without any cleaning up, before or after its n-th call that changes the disk.
"""

from __future__ import annotations

import os
import pathlib
import tempfile
from itertools import count
from typing import TYPE_CHECKING, Any

import pytest

from edgestill.core.errors import EdgestillError, TrustError
from edgestill.testing.clock import FakeClock
from edgestill.testing.repository import RepositorySimulator
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata

if TYPE_CHECKING:
    from collections.abc import Callable

ONE = "watch/1.0.0/any.esb"
TWO = "watch/2.0.0/any.esb"
KILLED = 77
FINISHED = 0


class Countdown:
    """Ends this process at the n-th call, before or after the call has its effect."""

    def __init__(self, calls: int, *, after: bool) -> None:
        self.left = calls
        self.after = after

    def around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        """The call, counted."""

        def counted(*args: Any, **kwargs: Any) -> Any:
            self.left -= 1
            if self.left == 0 and not self.after:
                os._exit(KILLED)
            result = call(*args, **kwargs)
            if self.left == 0:
                os._exit(KILLED)
            return result

        return counted


def _in_child(work: Callable[[], None], countdown: Countdown) -> int:
    """Runs `work` in a fork that dies when counted down; its exit code."""
    pid = os.fork()
    if pid == 0:
        try:
            for owner, name in (
                (tempfile, "mkstemp"),
                (os, "fsync"),
                (pathlib.Path, "replace"),
                (pathlib.Path, "mkdir"),
            ):
                setattr(owner, name, countdown.around(getattr(owner, name)))
            work()
            os._exit(FINISHED)
        except EdgestillError:
            os._exit(1)
        except BaseException:  # noqa: BLE001  # a fork must never return into pytest
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("first", "after"), [(True, False), (False, True)])
def test_a_kill_at_any_write(tmp_path: pathlib.Path, first: bool, after: bool) -> None:
    """Killed at any write of its first or a later refresh, a device is well after the next one, and still refuses the past."""
    clock = FakeClock()
    repository = RepositorySimulator(clock)
    repository.publish({ONE: b"one"})
    anchor, past = repository.root, dict(repository.files)

    def device(folder: pathlib.Path, *, world: dict[str, bytes] | None = None) -> TrustedClient:
        repository.files = dict(present) if world is None else dict(world)
        return TrustedClient(KeptMetadata(folder), root=anchor, fetch=repository.fetch, clock=clock)

    present = past
    clocks = clock.now()
    for calls in count(1):
        folder = tmp_path / str(calls)
        present = past
        if not first:
            device(folder).refresh()
        if calls == 1:
            repository.rotate(root=True)
            repository.publish({TWO: b"two"}, retire=[ONE])
            future = dict(repository.files)
        present = future
        clock.jump(clocks + 7200 - clock.now())
        outcome = _in_child(device(folder).refresh, Countdown(calls, after=after))
        assert outcome in {KILLED, FINISHED}
        _check_what_survived(device, folder, past, first=first)
        clock.jump(clocks - clock.now())
        if outcome == FINISHED:
            assert calls > 15, "every kept file is several calls"
            return


def _check_what_survived(
    device: Callable[..., TrustedClient], folder: pathlib.Path, past: dict[str, bytes], *, first: bool
) -> None:
    """Right after a kill: no half state is believed, no rollback works where news was kept, and a refresh mends all."""
    restored = device(folder)
    if restored.restore():
        assert list(restored.targets()) in ([[TWO]] if first else [[ONE], [TWO]])
    if b'"version":2' in _kept(folder, "timestamp"):
        with pytest.raises(TrustError, match=r"New timestamp version 1 must be >= 2"):
            device(folder, world=past).refresh()
    healthy = device(folder)
    healthy.refresh()
    assert list(healthy.targets()) == [TWO]
    assert not list(folder.glob(".*")), "nothing half-written is left"
    assert healthy.restore()


def _kept(folder: pathlib.Path, role: str) -> bytes:
    file = folder / f"{role}.json"
    return file.read_bytes() if file.exists() else b""
