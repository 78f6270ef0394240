"""A bundle that serves, in this process: answers, teaching, figures, memory, and the engine child's own errors."""

from __future__ import annotations

import os
import resource
import socket
import sys
import threading
from dataclasses import replace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from device_bundles import (
    CLASSES,
    HERE,
    HttpHub,
    TinyHub,
    batches,
    features_of,
    logits_of,
    policy_of,
    release_name,
    tiny_bundle,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import (
    ClassCountError,
    DeadlineError,
    DtypeError,
    EdgestillError,
    EngineError,
    MessageError,
    ProbeError,
    ShapeError,
)
from edgestill.core.jsonio import Fields
from edgestill.core.wire import Health
from edgestill.device import engine_child, engine_work, processes
from edgestill.device.arrays import answer_from_frame, to_tensor
from edgestill.device.frames import Frame, receive, send
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.memory import Memory
from edgestill.device.model import Serving, learner_of
from edgestill.device.state import Target
from edgestill.infer.confidence import softmax
from edgestill.infer.decision import PolicyState
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import Head, Statistics
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.answer import Answer


ARCHIVE = tiny_bundle()


@pytest.fixture(scope="module")
def server() -> Iterator[HttpHub]:
    """A hub with a teacher."""
    with HttpHub(TinyHub()) as one:
        yield one


def home_at(path: Path, *, leaves: str = "raw", hub: str = "http://127.0.0.1:9") -> Home:
    """A device."""
    identity = Identity(device="d1", credential="c" * 32, hub=hub, hardware_class=HERE, interval=1.0)
    return Home.create(path, identity=identity, settings=Settings(leaves=leaves, labels={}), root=b"{}")


def opened(home: Home, archive: bytes, clock: FakeClock | None = None) -> Serving:
    """A bundle that serves."""
    path = home.path / "x.esb"
    path.write_bytes(archive)
    return Serving.open(home, path, clock=clock or FakeClock(), random=lambda: 0.9)


def predicted(serving: Serving, batch: NDArray[np.generic], **header: float) -> Answer:
    """An application's question, answered."""
    return answer_from_frame(serving.answer(Frame({"op": "predict", **header}, (to_tensor("input", batch),))))


def health_of(frame: Frame) -> Health:
    """The figures that were handed out."""
    return Health.from_fields(Fields(frame.header, "engine").inner("health"))


def test_a_lone_student_answers_with_calibrated_probabilities(tmp_path: Path) -> None:
    """Nothing may leave, so nobody is asked."""
    serving = opened(
        home_at(tmp_path / "h", leaves="nothing"), tiny_bundle(policy=policy_of(temperature=2.0))
    )
    batch = batches(4, 1)
    answer = predicted(serving, batch)
    np.testing.assert_allclose(answer.probabilities, softmax(logits_of(1, batch), 2.0), atol=1e-5)
    assert answer.teacher is None


def test_a_teacher_that_does_not_answer_costs_nothing(tmp_path: Path) -> None:
    """Nobody listens at the hub's address: the student's answer stands, and the lost questions are counted."""
    serving = opened(home_at(tmp_path / "h"), tiny_bundle())
    assert predicted(serving, batches(4, 1)).decided_by == ("student",) * 4
    health = health_of(serving.collect())
    assert (health.answers, health.escalated, health.audits) == (4, 4, 0)
    assert health_of(serving.collect()) == Health(), "figures are handed out once"


def test_a_teacher_that_answers_is_fused_and_counted(tmp_path: Path, server: HttpHub) -> None:
    """Its temperature is the policy's; the purpose and the permission to keep travel along."""
    server.hub.asked.clear()
    policy = policy_of(teacher_temperature=4.0, alpha=0.25)
    serving = opened(home_at(tmp_path / "h", hub=server.url), tiny_bundle(policy=policy))
    batch = batches(3, 1)
    answer = predicted(serving, batch)
    fused = 0.25 * softmax(8 * logits_of(1, batch), 4.0) + 0.75 * softmax(logits_of(1, batch))
    np.testing.assert_allclose(answer.probabilities, fused, atol=1e-5)
    (asked,) = server.hub.asked
    assert 0 < asked.pop("timeout_ms") <= 4500
    assert asked == {"purpose": "escalation", "retain": True}
    assert health_of(serving.collect()).escalated == 3


def test_a_question_that_waited_too_long_is_not_answered(tmp_path: Path) -> None:
    """The asker has given up; the engine has better things to do."""
    clock = FakeClock()
    serving = opened(home_at(tmp_path / "h", leaves="nothing"), tiny_bundle(), clock)
    assert len(predicted(serving, batches(1, 1), until=clock.monotonic() + 1)) == 1
    clock.advance(5)
    with pytest.raises(DeadlineError, match="the question waited too long"):
        predicted(serving, batches(1, 1), until=clock.monotonic() - 1)
    assert health_of(serving.collect()).answers == 1


@pytest.mark.parametrize(
    ("frame", "kind", "reason"),
    [
        (Frame({"op": "fly"}), MessageError, "an unknown question"),
        (Frame({}), MessageError, "an unknown question"),
        (Frame({"op": "predict"}), MessageError, "a tensor is missing"),
        (Frame({"op": "predict", "until": "soon"}), MessageError, "until"),
        (
            Frame({"op": "predict"}, (to_tensor("input", np.zeros((1, 4))),)),
            DtypeError,
            "another element type",
        ),
        (Frame({"op": "teach"}, (to_tensor("input", batches(1, 1)),)), MessageError, "a tensor is missing"),
        (
            Frame({"op": "teach"}, (to_tensor("input", batches(1, 1)), to_tensor("labels", np.array([9])))),
            ClassCountError,
            "labels that are no classes",
        ),
    ],
)
def test_questions_that_are_none_are_refused(
    frame: Frame, kind: type[EdgestillError], reason: str, tmp_path: Path
) -> None:
    """An application's mistake is told to the application, and does not count against the bundle."""
    serving = opened(home_at(tmp_path / "h", leaves="nothing"), tiny_bundle())
    with pytest.raises(kind, match=reason):
        serving.answer(frame)
    assert health_of(serving.collect()) == Health()


def taught(serving: Serving, n: int, seed: int = 5) -> None:
    """Tells the true classes of n inputs."""
    batch = batches(n, seed)
    labels = to_tensor("labels", logits_of(1, batch).argmax(axis=1))
    assert serving.answer(Frame({"op": "teach"}, (to_tensor("input", batch), labels))).header == {"ok": True}


def test_statistics_leave_only_where_they_may(tmp_path: Path) -> None:
    """With `features` they do, with `nothing` they do not, though the device learns all the same."""
    for leaves, sends in (("features", True), ("nothing", False)):
        serving = opened(home_at(tmp_path / leaves, leaves=leaves), tiny_bundle())
        taught(serving, 40)
        tensor = serving.collect().tensor("statistics")
        assert (tensor is not None) is sends
        if tensor is not None:
            assert Statistics.from_bytes(bytes(tensor.data)).n == 40
        assert serving.collect().tensor("statistics") is None


def test_a_bundle_without_statistics_serves_and_cannot_be_taught(tmp_path: Path) -> None:
    """Learning is no condition of answering."""
    serving = opened(home_at(tmp_path / "h", leaves="nothing"), tiny_bundle(blobs={"reference.stats": None}))
    assert len(predicted(serving, batches(2, 1))) == 2
    with pytest.raises(MessageError, match="this bundle cannot be taught"):
        taught(serving, 1)
    serving.learn()
    assert health_of(serving.collect()).drift == "none"


def overlay_for(archive: Path, features: int = 5) -> Overlay:
    """A head that always names the last class."""
    weight = np.zeros((features, CLASSES), np.float32)
    return Overlay(
        bundle=Bundle.open(archive).manifest.digest,
        head=Head(weight, np.array([0, 0, 3], np.float32)),
        n=50,
        created=1.0,
        agreement_before=0.5,
        agreement_after=0.9,
        temperature=0.5,
    )


def test_an_adopted_head_serves_after_a_restart(tmp_path: Path) -> None:
    """With the temperature that was fitted for it; the status says what it is worth."""
    home = home_at(tmp_path / "h", leaves="nothing")
    opened(home, tiny_bundle())
    overlay = overlay_for(home.path / "x.esb")
    Memory(home.learned, overlay.bundle).keep_overlay(overlay)
    serving = opened(home, tiny_bundle())
    expected = softmax(np.array([[0, 0, 3]], np.float32), 0.5)
    np.testing.assert_allclose(predicted(serving, batches(1, 1)).probabilities, expected, atol=1e-6)
    assert serving.status()["learned"] == {"samples": 50, "agreement_before": 0.5, "agreement_after": 0.9}
    other = opened(home, tiny_bundle("1.1.0"))
    assert other.status()["learned"] is None, "it belongs to one bundle alone"


def test_an_overlay_that_does_not_fit_is_dropped(tmp_path: Path) -> None:
    """The bundle's own head serves, and the file is gone."""
    home = home_at(tmp_path / "h", leaves="nothing")
    opened(home, tiny_bundle())
    overlay = Overlay(
        bundle=Bundle.open(home.path / "x.esb").manifest.digest,
        head=Head(np.zeros((5, 2), np.float32), np.zeros(2, np.float32)),
        n=1,
        created=1.0,
        agreement_before=0.0,
        agreement_after=1.0,
    )
    memory = Memory(home.learned, overlay.bundle)
    memory.keep_overlay(overlay)
    assert opened(home, tiny_bundle()).status()["learned"] is None
    assert memory.overlay() is None


def test_what_was_learned_goes_on_after_a_restart(tmp_path: Path) -> None:
    """Sums and the policy's state are written when figures are handed out."""
    home = home_at(tmp_path / "h", leaves="features")
    serving = opened(home, tiny_bundle())
    taught(serving, 12)
    serving.collect()
    again = opened(home, tiny_bundle())
    taught(again, 12, seed=6)
    tensor = again.collect().tensor("statistics")
    assert tensor is not None
    assert Statistics.from_bytes(bytes(tensor.data)).n == 24


def test_a_disk_that_is_full_does_not_stop_the_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What cannot be kept is learned again."""
    serving = opened(home_at(tmp_path / "h", leaves="nothing"), tiny_bundle())

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Memory, "_write", full)
    taught(serving, 4)
    assert health_of(serving.collect()).answers == 0
    assert "No space left on device" in caplog.text
    assert len(predicted(serving, batches(1, 1))) == 1


def test_drift_is_part_of_the_figures(tmp_path: Path) -> None:
    """Inputs far from all that the bundle knows."""
    serving = opened(home_at(tmp_path / "h", leaves="nothing"), tiny_bundle())
    predicted(serving, batches(300, 1))
    usual = health_of(serving.collect())
    predicted(serving, 20 * batches(100, 2))
    strange = health_of(serving.collect())
    assert (usual.drift, strange.drift) == ("none", "confirmed")
    assert strange.leverage > 10 * usual.leverage > 0
    assert features_of(1, batches(1, 1)).shape == (1, 5)


def archived(path: Path, data: bytes) -> Path:
    """An archive on disk."""
    path.write_bytes(data)
    return path


def test_the_probe_loads_all_that_would_serve(tmp_path: Path) -> None:
    """Golden answers, policy, and the statistics to learn from."""
    engine_work.run_probe(archived(tmp_path / "good.esb", tiny_bundle()))
    with pytest.raises(ProbeError, match="a probability differs"):
        engine_work.run_probe(archived(tmp_path / "wrong.esb", tiny_bundle(golden_seed=4)))
    with pytest.raises(MessageError):
        engine_work.run_probe(archived(tmp_path / "sums.esb", tiny_bundle(blobs={"reference.stats": b"x"})))


def test_a_probe_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    """And its reason comes back."""
    home = home_at(tmp_path / "h")
    data = tiny_bundle(golden_seed=4)
    wanted = Target(name=release_name("1.0.0"), digest=Digest.of(data), size=len(data))
    with pytest.raises(ProbeError, match=r"does not serve.*a probability differs"):
        processes.probe(home.path, "b", wanted, archived(tmp_path / "x.esb", data))
    processes.probe(home.path, "b", wanted, archived(tmp_path / "y.esb", tiny_bundle()))


def test_a_probe_that_hangs_is_ended(tmp_path: Path) -> None:
    """No bundle keeps a device busy for ever."""
    home = home_at(tmp_path / "h")
    data = tiny_bundle()
    wanted = Target(name=release_name("1.0.0"), digest=Digest.of(data), size=len(data))
    with pytest.raises(ProbeError, match=r"did not come to its end.*signal 9"):
        processes.probe(home.path, "b", wanted, archived(tmp_path / "x.esb", data), seconds=0.0001)


def test_a_process_that_cannot_be_started_is_an_error_of_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An interpreter that is gone, or no memory left."""
    monkeypatch.setattr(sys, "executable", str(tmp_path / "gone"))
    wanted = Target(name=release_name("1.0.0"), digest=Digest.of(b""), size=0)
    with pytest.raises(EngineError, match="the engine process cannot be started"):
        processes.EngineProcess.start(
            tmp_path, slot="a", target=wanted, archive=tmp_path / "x", listener=None
        )
    with pytest.raises(ProbeError, match="the engine process cannot be started"):
        processes.probe(tmp_path, "a", wanted, tmp_path / "x")


def test_the_child_serves_until_it_is_told_to_stop(tmp_path: Path) -> None:
    """It says that it is ready, hands out figures when asked, and once more at the end."""
    home = home_at(tmp_path / "h", leaves="nothing")
    archive = archived(tmp_path / "x.esb", tiny_bundle())
    ours, theirs = socket.socketpair()
    with ours, theirs, processes.listening(tmp_path / "s") as listener:
        ours.settimeout(20)
        thread = threading.Thread(target=engine_work.serve, args=(home, archive, theirs, listener))
        thread.start()
        said = [receive(ours)]
        send(ours, Frame({"op": "collect"}))
        said.append(receive(ours))
        send(ours, Frame({"op": "stop"}))
        said.append(receive(ours))
        thread.join()
    assert [cast("Frame", frame).header["op"] for frame in said] == ["ready", "collected", "collected"]


def test_the_child_ends_when_its_supervisor_is_gone(tmp_path: Path) -> None:
    """The control socket is its life line."""
    home = home_at(tmp_path / "h", leaves="nothing")
    archive = archived(tmp_path / "x.esb", tiny_bundle())
    ours, theirs = socket.socketpair()
    with theirs, processes.listening(tmp_path / "s") as listener:
        thread = threading.Thread(target=engine_work.serve, args=(home, archive, theirs, listener))
        thread.start()
        with ours:
            ours.settimeout(20)
            receive(ours)
        thread.join(20)
        assert not thread.is_alive()


def test_the_child_says_why_it_does_not_serve(tmp_path: Path) -> None:
    """Its exit status is 1, and its last word is the reason."""
    home = home_at(tmp_path / "h", leaves="nothing")
    archive = archived(tmp_path / "x.esb", b"no bundle" * 100)
    ours, theirs = socket.socketpair()
    with ours:
        arguments = [
            "--home",
            str(home.path),
            "--archive",
            str(archive),
            "--control",
            str(theirs.detach()),
            "--probe",
        ]
        assert engine_child.main(arguments) == 1
        said = receive(ours)
    assert said is not None
    assert said.header["op"] == "failed"
    assert "bundle" in cast("str", said.header["reason"])


def test_a_child_whose_supervisor_is_gone_ends_quietly(tmp_path: Path) -> None:
    """It cannot say why it does not serve, and does not fail of that: its exit status says it."""
    archive = archived(tmp_path / "x.esb", b"no bundle" * 100)
    ours, theirs = socket.socketpair()
    ours.close()
    arguments = ["--home", str(tmp_path), "--archive", str(archive), "--control", str(theirs.detach())]
    assert engine_child.main([*arguments, "--probe"]) == 1


def test_a_device_without_free_handles_says_so(tmp_path: Path) -> None:
    """An application that leaks files must not take the supervisor down: the engine is tried again later."""
    wanted = Target(name=release_name("1.0.0"), digest=Digest.of(b""), size=0)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.dup(0)  # the next free handle
    os.close(lowest)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, hard))
        with pytest.raises(EngineError, match=r"cannot be started; .*; got .*Too many open files"):
            processes.EngineProcess.start(
                tmp_path, slot="a", target=wanted, archive=tmp_path / "x", listener=None
            )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("labels", [np.array([0.9], np.float32), np.array([True]), np.array([[0.0]])])
def test_labels_that_are_no_whole_numbers_teach_nothing(tmp_path: Path, labels: NDArray[np.generic]) -> None:
    """Whoever asks past our client is refused by the engine."""
    serving = opened(home_at(tmp_path / "h"), tiny_bundle())
    question = Frame({"op": "teach"}, (to_tensor("input", batches(1, 1)), to_tensor("labels", labels)))
    with pytest.raises(DtypeError, match="expected whole numbers"):
        serving.answer(question)
    assert serving.collect().tensor("statistics") is None


@pytest.mark.parametrize("shape", [(), (4,), (0, 4), (1, 3), (1, 4, 1), (2, 2)])
def test_attack_a_question_of_any_shape_is_answered_or_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    """Without a number, without a row, with one more dimension: ShapeError, which does not count against the bundle."""
    serving = opened(home_at(tmp_path / "h", leaves="nothing"), tiny_bundle())
    with pytest.raises(ShapeError):
        predicted(serving, np.zeros(shape, np.float32))
    assert health_of(serving.collect()) == Health()


def test_an_overlay_that_can_be_neither_used_nor_removed_does_not_keep_a_bundle_from_serving(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that has become read-only: the bundle's own head serves."""
    home = home_at(tmp_path / "h", leaves="nothing")
    opened(home, tiny_bundle())
    bad = replace(
        overlay_for(home.path / "x.esb"), head=Head(np.zeros((5, 2), np.float32), np.zeros(2, np.float32))
    )
    Memory(home.learned, bad.bundle).keep_overlay(bad)

    def read_only(self: Path, **_: object) -> None:
        raise OSError(30, "Read-only file system", str(self))

    monkeypatch.setattr(type(home.path), "unlink", read_only)
    serving = opened(home, tiny_bundle())
    assert serving.status()["learned"] is None
    assert len(predicted(serving, batches(1, 1))) == 1


def test_many_who_ask_at_once_are_all_answered_and_counted(tmp_path: Path) -> None:
    """While figures are taken and heads are looked for: no answer is lost, none is counted twice."""
    serving = opened(home_at(tmp_path / "h", leaves="features"), tiny_bundle())
    counted: list[Health] = []

    def ask(seed: int) -> None:
        for number in range(10):
            batch = batches(3, 100 * seed + number)
            np.testing.assert_allclose(
                predicted(serving, batch).probabilities, softmax(logits_of(1, batch)), atol=1e-5
            )
            taught(serving, 2, seed=100 * seed + number)

    threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(6)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        counted.append(health_of(serving.collect()))
    for thread in threads:
        thread.join()
    counted.append(health_of(serving.collect()))
    assert sum(one.answers for one in counted) == 6 * 10 * 3
    assert sum(one.errors for one in counted) == 0


@given(data=st.binary(max_size=300))
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_in_what_was_learned_are_passed_over(tmp_path: Path, data: bytes) -> None:
    """Overlay, windows, policy: whatever a dying disk leaves of them, the bundle serves as it was signed."""
    folder = tmp_path / "learned"
    folder.mkdir(exist_ok=True)
    bundle = Digest.of(b"bundle")
    memory = Memory(folder, bundle)
    for name in ("policy.json", f"{bundle.hex[:32]}.overlay", "0123456789abcdef-7.stats"):
        (folder / name).write_bytes(data)
    assert memory.overlay() is None
    assert memory.policy_state(policy_of()) == PolicyState.start(policy_of())
    learner = learner_of(Bundle.open(archived(tmp_path / "x.esb", ARCHIVE)), policy_of(), FakeClock())
    assert learner is not None
    learner.recall(memory.statistics())
    assert learner.statistics() is None
