"""From a label that an application told to weights that serve: the engine keeps it, a process trains on it, the engine takes it up."""

from __future__ import annotations

import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tuning_worlds import packed, seen

from edgestill.core.bundle import Bundle, build, write_archive
from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.jsonio import Fields
from edgestill.core.manifest import STEPS, TRAIN
from edgestill.device.arrays import answer_from_frame, to_tensor
from edgestill.device.effort import Effort
from edgestill.device.frames import Frame
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.model import Serving
from edgestill.device.oneword import OneWord
from edgestill.device.samplekey import chosen_key
from edgestill.device.trained import Trained
from edgestill.device.trainer import TrainerProcess
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FAST = Effort(core_share=1.0, idle_seconds=0.0, only_on_mains=False)
SPELLS = 12


def home_in(folder: Path, *, keeps: int = 3_000_000, seal: Path | None = None) -> Home:
    """A device whose owner lets it train."""
    return Home.create(
        folder / "home",
        identity=Identity(
            device="d0",
            credential="secret",
            hub="http://127.0.0.1:9",
            hardware_class=packed().manifest.hardware_class,
            interval=60,
        ),
        settings=Settings(leaves="nothing", labels={}, keeps=keeps, effort=FAST, seal=seal),
        root=b"{}",
    )


def archive_in(folder: Path) -> Path:
    """The bundle."""
    path = folder / "world.esb"
    if not path.exists():
        packed().save(path)
    return path


def serving_in(home: Home, archive: Path, clock: FakeClock) -> Serving:
    """The engine, in this process."""
    return Serving.open(home, archive, clock=clock, random=lambda: 0.5)


def told_labels(serving: Serving, clock: FakeClock, *, turned: int, hours: int = 12) -> None:
    """An application tells some labels a minute, of a world that the lab did not know."""
    inputs, labels = seen(hours * 60 * 4, turned=turned, seed=5)
    for minute in range(hours * 60):
        part = slice(minute * 4, minute * 4 + 4)
        tensors = to_tensor("input", inputs[part]), to_tensor("labels", labels[part])
        assert serving.answer(Frame({"op": "teach"}, tensors)).header["ok"] is True
        clock.advance(60)
    serving.keep()


def named(serving: Serving, inputs: NDArray[np.float32]) -> NDArray[np.intp]:
    """The classes that are answered."""
    frame = serving.answer(Frame({"op": "predict"}, (to_tensor("input", inputs),)))
    found: NDArray[np.intp] = answer_from_frame(frame).probabilities.argmax(axis=1)
    return found


def trained_by_processes(home: Home, archive: Path) -> None:
    """Spell after spell, until weights may serve."""
    trained = Trained.of(Bundle.open(archive), home.learned)
    assert trained is not None
    for _ in range(SPELLS):
        spell = TrainerProcess.start(home.path, archive, 30.0)
        while not spell.wait(0.5):
            pass
        spell.stop()
        assert spell.failure == ""
        assert spell.cpu_seconds > 0
        if trained.path.exists():
            return
    pytest.fail("no weights were let through")


@pytest.mark.slow
def test_what_an_application_told_becomes_weights_that_serve(tmp_path: Path) -> None:
    """The answers are right again where the world had turned; a restart serves them too, and another bundle does not."""
    home, archive, clock = home_in(tmp_path), archive_in(tmp_path), FakeClock()
    serving = serving_in(home, archive, clock)
    told_labels(serving, clock, turned=1)
    inputs, labels = seen(300, turned=1, seed=50)
    before = (named(serving, inputs) == labels).mean()
    trained_by_processes(home, archive)
    serving.learn()
    status = Fields(serving.status(), "status")
    assert before < 0.3
    assert (named(serving, inputs) == labels).mean() > 0.9
    trained, kept = status.inner("trained"), status.inner("kept")
    assert trained.number("agreement_after") > trained.number("agreement_before")
    assert status.boolean("promise_is_void")
    assert kept.integer("to_train") > 64
    serving.close()
    again = serving_in(home, archive, clock)
    assert (named(again, inputs) == labels).mean() > 0.9
    again.close()
    (file,) = home.learned.glob("*.tuned")
    file.rename(file.with_name("0" * 32 + ".tuned"))
    other = serving_in(home, archive, clock)
    assert (named(other, inputs) == labels).mean() == pytest.approx(before)
    other.close()


def test_the_trainer_ends_when_it_is_told_to(tmp_path: Path) -> None:
    """Before its time is over; what it has learned until then is kept."""
    home, archive, clock = home_in(tmp_path), archive_in(tmp_path), FakeClock()
    serving = serving_in(home, archive, clock)
    told_labels(serving, clock, turned=1)
    serving.close()
    spell = TrainerProcess.start(home.path, archive, 300.0)
    began = SystemClock().monotonic()
    while not list(home.learned.glob("*.training")) and not spell.wait(0.1):
        pass
    spell.stop()
    assert spell.failure == ""
    assert SystemClock().monotonic() - began < 60


def test_a_trainer_that_is_killed_is_known_to_have_failed(tmp_path: Path) -> None:
    """It said nothing at its end."""
    home, archive = home_in(tmp_path), archive_in(tmp_path)
    spell = TrainerProcess.start(home.path, archive, 300.0)
    os.kill(spell.pid, signal.SIGKILL)  # as the kernel would
    while not spell.wait(0.1):
        pass
    spell.stop()
    assert "without a word" in spell.failure


TOOK_OVER = """
import os, socket, sys, time
control = socket.socket(fileno=int(sys.argv[1]))
if (child := os.fork()) == 0:
    time.sleep(60)
    os._exit(0)
control.sendall(b"%d\\n" % child + bytes.fromhex(sys.argv[2]))
while True:
    control.sendall(b" ")
    time.sleep(0.05)
"""
"""A trainer that a training step took over: it has started a process, and says its last word a byte at a time."""


def taken_over(head: bytes) -> tuple[subprocess.Popen[bytes], socket.socket, int]:
    """Runs it; itself, our end, and the id of what it started."""
    ours, theirs = socket.socketpair()
    command = [sys.executable, "-c", TOOK_OVER, str(theirs.fileno()), head.hex()]
    process = subprocess.Popen(
        command, pass_fds=[theirs.fileno()], start_new_session=True, stderr=subprocess.DEVNULL
    )
    theirs.close()
    said = b""
    while not said.endswith(b"\n"):
        said += ours.recv(1)
    return process, ours, int(said)


class Hurried:
    """A clock that goes on a second whenever it is looked at."""

    def __init__(self) -> None:
        self.at = 0.0

    def now(self) -> float:
        """Wall time."""
        return self.at

    def monotonic(self) -> float:
        """Seconds."""
        self.at += 1.0
        return self.at


@pytest.mark.parametrize(
    ("header", "body", "failure"),
    [(60_000, 0, "took longer than 5 s"), (1_000_000, 0, "too long"), (2, 256_000_000, "too long")],
)
def test_attack_a_trainer_that_was_taken_over_holds_nothing_and_leaves_nothing(
    header: int, body: int, failure: str
) -> None:
    """Its last word is short and has a few seconds, and what it has started ends with it."""
    process, ours, child = taken_over(struct.pack(">II", header, body))
    spell = TrainerProcess(OneWord(process, ours, clock=Hurried()))
    assert spell.wait(20.0)
    spell.stop()
    assert failure in spell.failure
    assert process.returncode is not None
    stat, deadline = Path(f"/proc/{child}/stat"), SystemClock().monotonic() + 10
    while stat.exists() and stat.read_text().rsplit(")", 1)[1].split()[0] not in {"Z", "X"}:
        if SystemClock().monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
            pytest.fail("what it has started runs on")


def test_without_samples_there_is_nothing_to_do(tmp_path: Path) -> None:
    """The process ends at once, and has not failed."""
    spell = TrainerProcess.start(home_in(tmp_path).path, archive_in(tmp_path), 300.0)
    while not spell.wait(0.1):
        pass
    spell.stop()
    assert spell.failure == ""


def test_a_trainer_reads_sealed_samples_with_their_key_only(tmp_path: Path) -> None:
    """It trains as on plain ones; with another key, or without one, it says what is wrong, and makes none."""
    key = tmp_path / "key"
    chosen_key(key)
    home, archive, clock = home_in(tmp_path, seal=key), archive_in(tmp_path), FakeClock()
    serving = serving_in(home, archive, clock)
    told_labels(serving, clock, turned=1, hours=4)
    serving.close()
    right = spell_of(home, archive, seconds=2.0)
    assert (right, len(list(home.learned.iterdir())) > 0) == ("", True)
    key.write_bytes(bytes(32))
    assert "another key" in spell_of(home, archive)
    key.unlink()
    assert "the key of the samples is not there" in spell_of(home, archive)
    assert not key.exists()


def spell_of(home: Home, archive: Path, *, seconds: float = 30.0) -> str:
    """Why a spell of training failed; empty where it did not."""
    spell = TrainerProcess.start(home.path, archive, seconds)
    while not spell.wait(0.1):
        pass
    spell.stop()
    return spell.failure


def test_a_bundle_without_a_training_step_is_named(tmp_path: Path) -> None:
    """In one line, which the agent logs."""
    home, clock = home_in(tmp_path), FakeClock()
    serving = serving_in(home, archive_in(tmp_path), clock)
    told_labels(serving, clock, turned=1, hours=1)
    serving.close()
    blobs = {name: data for name, data in packed().blobs.items() if name not in {TRAIN, STEPS}}
    manifest, blobs = build(
        name="world", version="1.0.0", hardware_class=packed().manifest.hardware_class, blobs=blobs
    )
    write_archive(tmp_path / "plain.esb", manifest, blobs)
    spell = TrainerProcess.start(home.path, tmp_path / "plain.esb", 30.0)
    while not spell.wait(0.1):
        pass
    spell.stop()
    assert "brings no training step" in spell.failure


def test_a_device_that_keeps_nothing_writes_nothing(tmp_path: Path) -> None:
    """Unless its owner gave it room."""
    home, clock = home_in(tmp_path, keeps=0), FakeClock()
    serving = serving_in(home, archive_in(tmp_path), clock)
    serving.answer(
        Frame(
            {"op": "teach"},
            (to_tensor("input", seen(2)[0]), to_tensor("labels", seen(2)[1])),
        )
    )
    serving.close()
    assert not home.samples.exists()
    assert serving.status()["kept"] is None


def test_the_supervisor_side_loads_no_numpy() -> None:
    """What the agent's own process imports to train stays small."""
    code = "import sys, edgestill.device.coach, edgestill.device.trainer, edgestill.device.home; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_what_is_named_by_digest_is_the_bundles_own(tmp_path: Path) -> None:
    """The weights' file is that of this bundle and this step."""
    trained = Trained.of(Bundle.open(archive_in(tmp_path)), tmp_path)
    assert trained is not None
    assert trained.step == Digest.of(packed().blobs[TRAIN])
    assert trained.bundle == packed().manifest.digest
    assert trained.stamp() == 0
