"""The process that times models: what it says, what it must not do, and that it can be let go at any moment."""

from __future__ import annotations

import os
import resource
import signal
import socket
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from device_bundles import model, tiny_bundle
from device_families import family, greedy, unknown_operator

from edgestill.core.clock import SystemClock
from edgestill.core.errors import EngineError, MessageError
from edgestill.device import stopwatch
from edgestill.device.ending import SAID, has_ended
from edgestill.device.frames import Frame, receive, send
from edgestill.device.stopwatch import Broken, LeftOut, Round, Stopwatch, memory
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


@pytest.fixture
def started(tmp_path: Path) -> Iterator[Callable[[bytes], Stopwatch]]:
    """Starts the process for an archive; it is gone when the test ends."""
    running = []

    def start(archive: bytes) -> Stopwatch:
        path = tmp_path / "family.est"
        path.write_bytes(archive)
        running.append(Stopwatch.start(path))
        return running[-1]

    yield start
    for one in running:
        one.end()


def yes() -> bool:
    """Go on."""
    return True


def test_models_are_timed_one_round_at_a_time(started: Callable[[bytes], Stopwatch]) -> None:
    """In any order, as often as it is asked; what the engine refuses is named, and the others go on."""
    watch = started(family(model(1), unknown_operator(), model(2)))
    for at in (2, 0, 2):
        found = watch.round_of(at, goes_on=yes)
        assert isinstance(found, Round)
        assert 0 < found.p50 <= found.p95 < 1
    refused = watch.round_of(1, goes_on=yes)
    assert isinstance(refused, LeftOut)
    assert "NoSuchOperator" in refused.reason
    assert isinstance(watch.round_of(0, goes_on=yes), Round)


def test_it_makes_itself_small(started: Callable[[bytes], Stopwatch]) -> None:
    """The lowest priority, the first to go without memory, and bounds on memory, processor time, files and dumps."""
    watch = started(family(model(1)))
    watch.round_of(0, goes_on=yes)
    proc = Path(f"/proc/{watch.pid}")
    assert os.getpriority(os.PRIO_PROCESS, watch.pid) == 19
    assert (proc / "oom_score_adj").read_text().strip() == "1000"
    limits = {line[:25].strip(): line[25:].split()[0] for line in (proc / "limits").read_text().splitlines()}
    assert int(limits["Max data size"]) <= 1_000_000_000
    assert int(limits["Max cpu time"]) == 3600
    assert int(limits["Max file size"]) == 1_000_000
    assert int(limits["Max core file size"]) == 0


def test_attack_a_model_that_takes_all_memory_ends_alone(started: Callable[[bytes], Stopwatch]) -> None:
    """4 GB where a gigabyte at most is allowed: it is left out, or its process ends, and never the machine."""
    # a child counts as large as whoever forked it, until it runs a program of its own
    before = max(
        resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_CHILDREN, resource.RUSAGE_SELF)
    )
    watch = started(family(greedy(1000), model(1)))
    found = watch.round_of(0, goes_on=yes)
    assert isinstance(found, LeftOut | Broken)
    watch.end()
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss <= max(before, 1_200_000)  # kB


def test_a_process_that_is_killed_is_told_with_how(started: Callable[[bytes], Stopwatch]) -> None:
    """As where a model takes it down."""
    watch = started(family(model(1)))
    watch.round_of(0, goes_on=yes)
    os.kill(watch.pid, signal.SIGSEGV)
    assert watch.round_of(0, goes_on=yes) == Broken("its process was killed by signal 11")


def test_a_round_that_takes_too_long_ends_the_process(started: Callable[[bytes], Stopwatch]) -> None:
    """As where a model never answers."""
    watch = started(family(model(1)))
    watch.round_of(0, goes_on=yes)
    os.kill(watch.pid, signal.SIGSTOP)
    assert watch.round_of(0, goes_on=yes, looks=2) == Broken("it took longer than 0.5 s")
    assert not Path(f"/proc/{watch.pid}").exists()


def test_it_can_be_let_go_at_any_moment(started: Callable[[bytes], Stopwatch]) -> None:
    """Also while it loads: a question to the device never waits for a round."""
    watch = started(family(model(1)))
    assert watch.round_of(0, goes_on=lambda: False) is None
    assert not Path(f"/proc/{watch.pid}").exists()
    watch.end()


@pytest.mark.parametrize(
    ("archive", "reason"),
    [
        (family(model(1), hardware_class="riscv64-base-onnxruntime"), "models for another hardware class"),
        (tiny_bundle(), "not a family of models"),
        (family(model(1))[:-512], "ends too early"),
    ],
)
def test_attack_what_is_no_family_for_this_machine_is_not_timed(
    started: Callable[[bytes], Stopwatch], archive: bytes, reason: str
) -> None:
    """Whoever started it."""
    found = started(archive).round_of(0, goes_on=yes)
    assert isinstance(found, Broken)
    assert reason in found.reason


@pytest.mark.parametrize(
    "said",
    [
        {"op": "timed", "p50": 2.0, "p95": 1.0},
        {"op": "timed", "p50": -1.0, "p95": 1.0},
        {"op": "timed", "p50": 1e7, "p95": 1e8},
        {"op": "timed", "p50": "1", "p95": 1.0},
        {"op": "timed"},
        {"op": "left-out"},
        {},
    ],
)
def test_attack_a_process_that_a_model_took_over_says_nothing_that_is_believed(
    said: dict[str, object],
) -> None:
    """What it says is bounded as a stranger's word; the process is ended over it."""
    ours, theirs = socket.socketpair()
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    watch = Stopwatch(process, ours)
    answers = [Frame({"op": "ready"}), Frame(said)]  # type: ignore[arg-type]  # what it says is wrong on purpose

    def play() -> None:
        for one in answers:
            send(theirs, one)

    thread = threading.Thread(target=play)
    thread.start()
    found = watch.round_of(0, goes_on=yes)
    thread.join()
    theirs.close()
    assert isinstance(found, Broken)
    assert process.poll() is not None


FORKS = """
import os, socket, struct, sys, time
control = socket.socket(fileno=int(sys.argv[1]))
if (child := os.fork()) == 0:
    time.sleep(60)
    os._exit(0)
control.sendall(b"%d\\n" % child)
{after}
"""
"""A process that has started another one, and says its id."""


def forking(after: str) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """Runs it in a session of its own, as the real ones; itself, our end, and the id of what it started."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", FORKS.format(after=after), str(theirs.fileno())]
    process = subprocess.Popen(command, pass_fds=[theirs.fileno()], start_new_session=True)
    theirs.close()
    ours.settimeout(20)
    said = b""
    while not said.endswith(b"\n"):
        said += ours.recv(1)
    return process, ours, int(said)


def is_running(pid: int) -> bool:
    """Whether a process runs; one that waits to be reaped by its new parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}
    except FileNotFoundError:
        return False


def ends_soon(pid: int) -> bool:
    """Whether it is gone once the kernel has done what it was told."""
    deadline = SystemClock().monotonic() + 10
    while is_running(pid):
        if SystemClock().monotonic() > deadline:
            os.kill(pid, signal.SIGKILL)
            return False
    return True


@pytest.mark.parametrize("after", ["time.sleep(60)", "control.close(); os._exit(3)"])
def test_attack_what_a_model_has_started_ends_with_its_process(after: str) -> None:
    """Also where the process itself was gone already."""
    process, ours, child = forking(after)
    watch = Stopwatch(process, ours)
    if "exit" in after:
        assert has_ended(process, 20)
    assert is_running(child)
    watch.end()
    assert ends_soon(child)
    watch.end()


TRICKLES = """
import socket, sys, time
control = socket.socket(fileno=int(sys.argv[1]))
control.sendall(bytes.fromhex(sys.argv[2]))
while True:
    control.sendall(b" ")
    time.sleep(0.05)
"""
"""A process that begins a frame, and then says a byte at a time."""


def trickling(head: bytes) -> tuple[subprocess.Popen[bytes], socket.socket]:
    """Runs it."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", TRICKLES, str(theirs.fileno()), head.hex()]
    process = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], start_new_session=True, stderr=subprocess.DEVNULL
    )
    theirs.close()
    return process, ours


def test_attack_an_answer_that_never_ends_does_not_hold_the_agent() -> None:
    """Byte by byte: whether to go on is asked in between, and a few seconds are all that there is."""
    process, ours = trickling(struct.pack(">II", 60_000, 0))
    asked = 0

    def at_first() -> bool:
        nonlocal asked
        asked += 1
        return asked < 10

    watch = Stopwatch(process, ours)
    assert watch.round_of(0, goes_on=at_first) is None
    assert asked == 10
    assert process.returncode == -signal.SIGKILL

    process, ours = trickling(struct.pack(">II", 60_000, 0))
    clock = FakeClock()

    def later() -> bool:
        clock.advance(0.25)
        return True

    assert Stopwatch(process, ours, clock).round_of(0, goes_on=later) == Broken(
        "its answer took longer than 5 s"
    )
    assert process.returncode == -signal.SIGKILL


@pytest.mark.parametrize(("header", "body"), [(64_001, 0), (2, 1), (2, 256_000_000), (1_000_000, 0)])
def test_attack_a_long_answer_is_refused_before_it_is_read(header: int, body: int) -> None:
    """A header above 64 kB, or any body: there is nothing that it could say with them."""
    ours, theirs = socket.socketpair()
    theirs.sendall(struct.pack(">II", header, body))
    with pytest.raises(MessageError, match="a frame is too long"):
        receive(ours, left=lambda: 5.0, within=SAID)
    ours.close()
    theirs.close()


def test_what_the_process_prints_goes_nowhere(started: Callable[[bytes], Stopwatch]) -> None:
    """A model's prints are none of the agent's log."""
    watch = started(family(model(1)))
    for stream in (0, 1, 2):
        assert Path(f"/proc/{watch.pid}/fd/{stream}").readlink() == Path("/dev/null")


def test_a_system_without_room_for_a_process_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one line."""

    def full(*_: object, **__: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr("subprocess.Popen", full)
    with pytest.raises(EngineError, match="cannot be started"):
        Stopwatch.start(tmp_path / "x.est")


def test_memory_is_half_of_what_is_free_within_bounds(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Where the system does not tell, the least."""
    told = tmp_path / "meminfo"
    for free, expected in ((100_000, 256_000_000), (1_000_000, 512_000_000), (9_000_000, 1_000_000_000)):
        told.write_text(f"MemTotal: 99 kB\nMemAvailable: {free} kB\n")
        monkeypatch.setattr(stopwatch, "MEMINFO", told)
        assert memory() == expected
    monkeypatch.setattr(stopwatch, "MEMINFO", tmp_path / "nothing")
    assert memory() == 256_000_000


def test_the_least_memory_is_enough_for_a_small_model(
    started: Callable[[bytes], Stopwatch], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a device with half a gigabyte free or less."""
    monkeypatch.setattr(stopwatch, "memory", lambda: stopwatch.LEAST_MEMORY)
    assert isinstance(started(family(model(1))).round_of(0, goes_on=yes), Round)
