"""A program: writes what a device keeps, on a disk that refuses (a limit of the kernel), or until it is killed.

python device_disk_program.py full PART FOLDER    prints `refused`, then `kept`, then `taken`
python device_disk_program.py forever FOLDER      prints `writing`, and writes until it is killed
"""

from __future__ import annotations

import resource
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from device_worlds import World, target

from edgestill.core.digest import Digest
from edgestill.core.errors import PathError
from edgestill.core.wire import Report
from edgestill.device.events import Assigned, Booted
from edgestill.device.memory import Memory
from edgestill.device.outbox import Outbox
from edgestill.device.slots import Slots
from edgestill.device.state import State
from edgestill.infer.decision import PolicyState
from edgestill.infer.policy import Policy
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import Head
from edgestill.learn.statistics import Statistics as Sums

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

BUNDLE, BACKBONE = Digest.of(b"bundle"), Digest.of(b"backbone")
POLICY = Policy(labels=("a", "b", "c"))
WINDOWS = 3


@contextmanager
def full_disk() -> Iterator[None]:
    """No file may grow: every write is refused by the kernel (EFBIG), as a full disk refuses it (ENOSPC)."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))


def overlay(number: int) -> Overlay:
    """A head whose every weight is `number`."""
    head = Head(np.full((400, 3), number, np.float32), np.full(3, number, np.float32))
    return Overlay(
        bundle=BUNDLE,
        head=head,
        temperature=1.0,
        n=10,
        created=1.0,
        agreement_before=0.5,
        agreement_after=0.9,
    )


def window(number: int, value: int) -> bytes:
    """Sums of a window, all of `value` samples."""
    empty = Sums.empty(backbone=BACKBONE, window=number, classes=3, features=60)
    return empty.add(np.ones((value, 60)), np.ones((value, 3))).to_bytes("float64")


def report(number: int) -> Report:
    """A step."""
    return Report(id=f"r{number}", at=1.0, bundle=str(BUNDLE), release="watch/1.0.0", state="staged")


def refused(write: Callable[[], object]) -> None:
    """It must be, with our own error."""
    try:
        with full_disk():
            write()
    except PathError:
        print("refused", flush=True)  # noqa: T201  # a program's answer
        return
    raise AssertionError("written to a full disk")


def outbox(folder: Path) -> None:
    """Reports and statistics."""
    box = Outbox.open(folder / "outbox.db")
    box.add([report(1)])
    refused(lambda: box.add([report(number) for number in range(2, 200)]))
    refused(lambda: box.put_statistics("k", bytes(100_000), at=1.0))
    assert [one.id for one in box.waiting()] == ["r1"]
    assert box.statistics() is None
    print("kept", flush=True)  # noqa: T201  # a program's answer
    box.add([report(2)])
    assert [one.id for one in box.waiting()] == ["r1", "r2"]
    box.close()


def memory(folder: Path) -> None:
    """Overlay, windows, policy and progress."""
    kept = Memory(folder / "learned", BUNDLE)
    kept.keep_overlay(overlay(1))
    kept.keep_statistics([window(1, 1)])
    kept.keep_policy_state(PolicyState.start(POLICY))
    kept.keep_progress({"new": False})
    for write in (
        lambda: kept.keep_overlay(overlay(2)),
        lambda: kept.keep_statistics([window(1, 2), window(2, 2)]),
        lambda: kept.keep_policy_state(PolicyState(level=1.0)),
        lambda: kept.keep_progress({"new": True}),
    ):
        refused(write)
    found = kept.overlay()
    assert found is not None
    assert (found.head.weight == 1).all()
    assert kept.statistics() == [window(1, 1)]
    assert kept.policy_state(POLICY) == PolicyState.start(POLICY)
    assert kept.progress() == {"new": False}
    assert list((folder / "learned").glob(".*")) == []
    print("kept", flush=True)  # noqa: T201  # a program's answer
    kept.keep_overlay(overlay(3))
    assert kept.overlay() is not None


def slots(folder: Path) -> None:
    """The state and the records."""
    here = Slots.open(folder / "slots")
    here.save(State(seen=1))
    refused(lambda: here.save(State(seen=2)))
    refused(lambda: here.stage("a", target(1), 1))
    assert State.from_bytes((folder / "slots" / "state.json").read_bytes()).seen == 1
    assert list((folder / "slots").rglob(".*")) == []
    print("kept", flush=True)  # noqa: T201  # a program's answer
    here.save(State(seen=3))


def agent(folder: Path) -> None:
    """A whole device: it goes on serving, and takes the update when there is room again."""
    world = World(folder / "home")
    world.slots = Slots.open(folder / "home" / "slots")
    world.let(Booted())
    world.let(Assigned(1, target(1)))
    world.watch()
    with full_disk():
        world.let(Assigned(2, target(2)))
    assert world.agent.state.serving == world.serving == target(1)
    print("refused", flush=True)  # noqa: T201  # a program's answer
    world.close()
    world = World(folder / "home")
    world.let(Booted())
    assert world.serving == target(1)
    print("kept", flush=True)  # noqa: T201  # a program's answer
    world.let(Assigned(2, target(2)))
    world.watch()
    assert world.serving == target(2)
    assert world.told()[-1] == "watch/1.0.2 confirmed"
    world.close()


def write_for_ever(folder: Path) -> None:
    """Overlay, windows, policy, state, reports: over and over, each time with another number."""
    kept, here = Memory(folder / "learned", BUNDLE), Slots.open(folder / "slots")
    box = Outbox.open(folder / "outbox.db")
    number = 0
    while True:
        number += 1
        box.add([report(number)])
        kept.keep_overlay(overlay(number))
        kept.keep_statistics([window(one, number % 50 + 1) for one in range(WINDOWS)])
        kept.keep_policy_state(PolicyState.start(POLICY))
        here.save(State(seen=number))
        print(number, flush=True)  # noqa: T201  # a program's answer


if __name__ == "__main__":
    if sys.argv[1] == "forever":
        write_for_ever(Path(sys.argv[2]))
    {"outbox": outbox, "memory": memory, "slots": slots, "agent": agent}[sys.argv[2]](Path(sys.argv[3]))
    print("taken", flush=True)  # noqa: T201  # a program's answer
