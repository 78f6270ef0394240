"""The agent as it runs: real processes, real sockets on 127.0.0.1, a real model, a hub that is a small server."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
from device_bundles import (
    CLASSES,
    FEATURES,
    HERE,
    HttpHub,
    TinyHub,
    batches,
    features_of,
    logits_of,
    policy_of,
    tiny_bundle,
)

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import NotFoundError, ShapeError, UnreachableError
from edgestill.delta.codec import diff
from edgestill.device.client import LocalClient
from edgestill.device.home import Home, find_socket
from edgestill.device.main import main
from edgestill.infer.confidence import softmax
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject

CONFIRMED = ["downloaded", "verified", "staged", "serving", "confirmed"]
WINDOW, EVERY = "300ms", "100ms"


class Device:
    """A device that has joined a hub, and perhaps runs."""

    def __init__(self, folder: Path, server: HttpHub, leaves: str = "raw") -> None:
        self.path = folder
        self.hub = server.hub
        self.process: subprocess.Popen[bytes] | None = None
        arguments = ["join", "--home", str(folder), "--hub", server.url, "--token", self.hub.token]
        assert main([*arguments, "--name", "d1", "--leaves", leaves]) == 0

    def start(self, *, window: str = WINDOW) -> None:
        """Runs the agent, and waits until it says that it does."""
        ready = self.path / "ready"
        ready.unlink(missing_ok=True)
        command = [sys.executable, "-m", "edgestill.device.main", "run", "--home", str(self.path)]
        command += ["--ready", str(ready), "--health-every", EVERY, "--health-window", window]
        before = len(self.hub.served)
        self.process = subprocess.Popen(command, env=os.environ | {"EDGESTILL_LOG": "WARNING"})
        self.hub.wait_for(lambda: len(self.hub.served) > before and ready.exists())
        assert Path(ready.read_text().strip()) == find_socket(self.path)

    def install(self, version: str, archive: bytes, counter: int) -> None:
        """Assigns a version and waits until it is confirmed."""
        self.hub.publish(version, archive)
        self.hub.assigned = (version, counter)
        self.hub.wait_for(lambda: "confirmed" in self.hub.states(version))

    def stop(self, number: int = signal.SIGTERM) -> int:
        """Ends the agent; its exit status."""
        if self.process is None:
            return 0
        process, self.process = self.process, None
        process.send_signal(number)
        return process.wait(20)

    def engine(self) -> JsonObject:
        """What the engine says."""
        with LocalClient.open(self.path) as client:
            return cast("JsonObject", client.status()["engine"])


@contextmanager
def device(folder: Path, *, leaves: str = "raw", hub: TinyHub | None = None) -> Iterator[Device]:
    """A device, stopped at the end."""
    with HttpHub(hub or TinyHub(clock=SystemClock())) as server:
        one = Device(folder, server, leaves)
        try:
            yield one
        finally:
            one.stop()


def wait_for_end(pid: int, seconds: float = 10) -> None:
    """Waits until a process that is not our child has ended."""
    try:
        handle = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    try:
        poll = select.poll()
        poll.register(handle, select.POLLIN)
        assert poll.poll(seconds * 1000), "the process did not end"
    finally:
        os.close(handle)


def kept(one: Device) -> dict[str, Any]:
    """What the engine says of the samples that it keeps; with why it keeps none under `not_kept`."""
    one.hub.wait_for(lambda: one.engine() is not None)
    said: Any = one.engine()
    return (said["kept"] or {}) | {"not_kept": said["not_kept"]}


def test_sealed_samples_outlive_a_kill_and_another_key_begins_them_anew(tmp_path: Path) -> None:
    """None of them is to be read in the home; without the key nothing is kept until it is back, and answers go on all the while."""
    key, elsewhere = tmp_path / "key", tmp_path / "elsewhere"
    with device(tmp_path / "home") as one:
        choice = ["--keep-samples", "200kB", "--seal-samples", str(key)]
        assert main(["settings", "--home", str(one.path), *choice]) == 0
        one.start()
        one.install("1.0.0", tiny_bundle("1.0.0"), 1)
        told, labels = batches(40, 77), np.arange(40) % CLASSES
        count = taught(one, told, labels)
        for _ in range(
            4
        ):  # a moment in the gap beside a held-back stretch keeps nothing: where that lies is each file's own chance
            if count:
                break
            assert one.stop() == 0
            (one.path / "samples").unlink()
            one.start()
            count = taught(one, told, labels)
        assert (count > 0, kept(one)["sealed"]) == (True, True)
        one.hub.wait_for(lambda: any(batch_is_durable(one.path / "samples")))
        assert one.stop(signal.SIGKILL) == -signal.SIGKILL
        files = [path.read_bytes() for path in one.path.rglob("*") if path.is_file()]
        assert not [data for data in files for row in told if row.tobytes() in data]

        one.start()
        again = kept(one)
        assert again["to_train"] + again["held_back"] == count
        assert again["begun_anew"] is None
        assert one.stop() == 0

        before = (one.path / "samples").read_bytes()
        key.rename(elsewhere)
        one.start()
        assert "the key of the samples is not there" in kept(one)["not_kept"]
        with LocalClient.open(one.path) as client:
            client.teach(told, labels)
            assert len(client.predict(told).decided_by) == 40
        assert (one.path / "samples").read_bytes() == before
        elsewhere.rename(key)  # the medium is back
        one.hub.wait_for(lambda: kept(one)["not_kept"] is None)
        assert kept(one)["to_train"] + kept(one)["held_back"] == count
        assert one.stop() == 0

        key.write_bytes(bytes(32))
        one.start()
        anew = kept(one)
        assert (anew["to_train"], anew["held_back"]) == (0, 0)
        assert "another key" in anew["begun_anew"]
        assert one.stop() == 0


def taught(one: Device, told: NDArray[np.float32], labels: NDArray[np.int64]) -> int:
    """How many samples are kept of these."""
    with LocalClient.open(one.path) as client:
        client.teach(told, labels)
    return int(kept(one)["to_train"]) + int(kept(one)["held_back"])


def batch_is_durable(path: Path) -> Iterator[bool]:
    """Whether the engine has flushed: a tally is no longer zeros."""
    yield any(path.read_bytes()[4096 : 4096 + 12])
    yield any(path.read_bytes()[4096 + 8 * (1 + 2 * CLASSES) + 28 :][:12])


def test_a_device_installs_answers_escalates_and_stops(tmp_path: Path) -> None:
    """The whole way: from an assignment to fused answers, to reports and figures at the hub, to a clean end."""
    with device(tmp_path / "home") as one:
        one.start()
        with (
            pytest.raises(NotFoundError, match="nothing is installed yet"),
            LocalClient.open(one.path, timeout=0.2) as early,
        ):
            early.predict(batches(1, 1))
        one.install("1.0.0", tiny_bundle(), 1)
        assert one.hub.states("1.0.0") == CONFIRMED
        batch = batches(5, 3)
        with LocalClient.open(one.path) as client:
            answer = client.predict(batch)
            student, teacher = softmax(logits_of(1, batch)), softmax(8 * logits_of(1, batch))
            np.testing.assert_allclose(answer.probabilities, (student + teacher) / 2, atol=1e-5)
            assert answer.features is not None
            np.testing.assert_allclose(answer.features, features_of(1, batch), atol=1e-5)
            assert answer.decided_by == ("fused",) * 5
            with pytest.raises(ShapeError, match="the batch has another shape"):
                client.predict(batches(5, 3)[:, :2])
            status = client.status()
            assert (status["release"], status["slot"], status["phase"]) == ("tiny/1.0.0", "a", "idle")
        assert {one["purpose"] for one in one.hub.asked} <= {"escalation", "audit"}
        assert all(one["retain"] is True for one in one.hub.asked)
        one.hub.wait_for(lambda: sum(r.health.answers for r in one.hub.reports.values() if r.health) == 5)
        assert one.process is not None
        maps = Path(f"/proc/{one.process.pid}/maps").read_text(encoding="utf-8")
        assert "numpy" not in maps
        assert "onnxruntime" not in maps
        engine = cast("int", one.engine()["pid"])
        assert one.stop() == 0
        wait_for_end(engine)
        assert not find_socket(one.path).exists()
        assert not list(one.path.rglob(".*")), "a half-written file was left"
        with pytest.raises(UnreachableError, match="the agent does not answer"):
            LocalClient.open(one.path)


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="what is mapped is read from /proc")
def test_an_agent_unpacks_patches_only_once_there_is_one(tmp_path: Path) -> None:
    """After an installation from a whole archive its process has neither the compressor nor arrays; after a patch it has the compressor."""
    with device(tmp_path / "home") as one:
        one.start()
        one.install("1.0.0", old := tiny_bundle(), 1)
        assert one.process is not None
        maps = Path(f"/proc/{one.process.pid}/maps")
        assert {
            name for name in ("zstandard", "numpy", "_decimal", "onnxruntime") if name in maps.read_text()
        } == set()
        new = tiny_bundle("1.1.0", seed=2)
        one.hub.patches[f"patches/{Digest.of(old).hex}/{Digest.of(new).hex}"] = diff(old, new)
        one.install("1.1.0", new, 2)
        assert "zstandard" in maps.read_text()


def test_an_update_refuses_no_question_and_uses_the_patch(tmp_path: Path) -> None:
    """Somebody asks all the time while one bundle takes over from another."""
    with device(tmp_path / "home") as one:
        one.start()
        old, new = tiny_bundle("1.0.0", seed=1), tiny_bundle("1.1.0", seed=2)
        one.install("1.0.0", old, 1)
        patch = f"patches/{Digest.of(old).hex}/{Digest.of(new).hex}"
        one.hub.patches[patch] = diff(old, new)
        batch = batches(1, 3)
        seen: set[int] = set()
        failures: list[Exception] = []
        done = threading.Event()

        def ask() -> None:
            with LocalClient.open(one.path) as client:
                while not done.is_set():
                    try:
                        answer = client.predict(batch)
                    except Exception as error:  # noqa: BLE001  # any failure is what the test is about
                        failures.append(error)
                        return
                    assert answer.student is not None
                    seen.update(
                        seed
                        for seed in (1, 2)
                        if np.allclose(answer.student, softmax(logits_of(seed, batch)), atol=1e-5)
                    )

        thread = threading.Thread(target=ask)
        thread.start()
        try:
            one.install("1.1.0", new, 2)
        finally:
            done.set()
            thread.join()
        assert failures == []
        assert seen == {1, 2}
        assert f"/{patch}" in one.hub.served
        assert not [path for path in one.hub.served if path.startswith("/targets/tiny/1.1.0")]


BROKEN = {
    "1.1.0": ("probe-failed", tiny_bundle("1.1.0", seed=2, golden_seed=3)),
    "1.2.0": ("model-unsupported", tiny_bundle("1.2.0", blobs={"model.onnx": b"no model"})),
    "1.3.0": ("bundle-truncated", tiny_bundle("1.3.0")[:-2048]),
    "1.4.0": ("message-invalid", tiny_bundle("1.4.0", blobs={"policy.json": b"{}"})),
    "1.5.0": ("another name", tiny_bundle("1.0.0")),
    "1.6.0": ("message-invalid", tiny_bundle("1.6.0", blobs={"reference.stats": b"nonsense"})),
}


def test_bundles_that_do_not_serve_never_get_to(tmp_path: Path) -> None:
    """Wrong answers, no model, no whole bundle, no policy, another name: the old one serves on, and the reason is told."""
    with device(tmp_path / "home") as one:
        one.start()
        one.install("1.0.0", tiny_bundle("1.0.0"), 1)
        for counter, (version, (reason, archive)) in enumerate(BROKEN.items(), 2):
            one.hub.publish(version, archive)
            one.hub.assigned = (version, counter)
            one.hub.wait_for(lambda version=version: "fell-back" in one.hub.states(version))  # type: ignore[misc]
            (told,) = [
                r for r in one.hub.reports.values() if r.state and r.release == f"tiny/{version}" and r.reason
            ]
            assert reason in told.reason
            assert "serving" not in one.hub.states(version)
            with LocalClient.open(one.path) as client:
                assert len(client.predict(batches(2, 1))) == 2
                assert client.status()["release"] == "tiny/1.0.0"


def test_a_bundle_whose_engine_keeps_dying_gives_way_to_the_old_one(tmp_path: Path) -> None:
    """It passed its probe, but dies in its trial again and again; the answers never stop for long."""
    with device(tmp_path / "home") as one:
        one.start()
        one.install("1.0.0", tiny_bundle("1.0.0"), 1)
        one.stop()
        one.start(window="10min")
        one.hub.publish("1.1.0", tiny_bundle("1.1.0", seed=2))
        one.hub.assigned = ("1.1.0", 2)
        one.hub.wait_for(lambda: "serving" in one.hub.states("1.1.0"))
        with LocalClient.open(one.path) as client:
            while "fell-back" not in one.hub.states("1.1.0"):
                status = client.status()
                if status["release"] == "tiny/1.1.0" and status["engine"]:
                    os.kill(cast("int", cast("JsonObject", status["engine"])["pid"]), signal.SIGKILL)
                assert len(client.predict(batches(1, 1))) == 1
            answer = client.predict(batches(1, 1))
            assert answer.student is not None
            np.testing.assert_allclose(answer.student, softmax(logits_of(1, batches(1, 1))), atol=1e-5)
            assert client.status()["failure"] == {
                "counter": 2,
                "release": "tiny/1.1.0",
                "reason": "the engine died 4 times: killed by signal 9",
            }


def test_an_engine_that_is_killed_comes_back(tmp_path: Path) -> None:
    """The next question is answered by its successor."""
    with device(tmp_path / "home") as one:
        one.start()
        one.install("1.0.0", tiny_bundle(), 1)
        first = cast("int", one.engine()["pid"])
        with LocalClient.open(one.path) as client:
            client.predict(batches(1, 1))
            os.kill(first, signal.SIGKILL)
            assert len(client.predict(batches(1, 1))) == 1
        assert one.engine()["pid"] != first


def test_a_killed_agent_takes_its_engine_along_and_goes_on_afterwards(tmp_path: Path) -> None:
    """No orphan keeps answering, and the next start serves what was installed."""
    with device(tmp_path / "home") as one:
        one.start()
        one.install("1.0.0", tiny_bundle(), 1)
        engine = cast("int", one.engine()["pid"])
        assert one.stop(signal.SIGKILL) == -signal.SIGKILL
        wait_for_end(engine)
        told = len(one.hub.reports)
        one.start()
        with LocalClient.open(one.path) as client:
            assert len(client.predict(batches(1, 1))) == 1
        assert one.stop(signal.SIGINT) == 0
        assert one.hub.states("1.0.0") == CONFIRMED, "nothing was told twice"
        assert len(one.hub.reports) >= told


def test_an_offline_device_serves_and_reports_later(tmp_path: Path) -> None:
    """Without a hub the student answers alone; what happened is told when the hub is back."""
    with device(tmp_path / "home") as one:
        one.start()
        one.install("1.0.0", tiny_bundle(), 1)
        one.hub.refuse = {"/": 503}
        with LocalClient.open(one.path) as client:
            assert client.predict(batches(3, 1)).decided_by == ("student",) * 3
        one.stop()
        assert not any(r.health and r.health.answers == 3 for r in one.hub.reports.values())
        one.hub.refuse = {}
        one.start()
        one.hub.wait_for(lambda: any(r.health and r.health.answers == 3 for r in one.hub.reports.values()))


@pytest.mark.parametrize(
    ("leaves", "policy", "sends"),
    [
        ("features", "raw", True),
        ("nothing", "raw", False),
        ("raw", "features", True),
        ("raw", "nothing", False),
    ],
)
def test_nothing_raw_leaves_a_device_that_does_not_allow_it(
    leaves: str, policy: str, sends: bool, tmp_path: Path
) -> None:
    """Whoever is stricter, device or bundle: the student answers alone; statistics leave only where they may; counts do."""
    with device(tmp_path / "home", leaves=leaves) as one:
        one.start()
        one.install("1.0.0", tiny_bundle(policy=policy_of(leaves=policy)), 1)
        batch = batches(40, 5)
        with LocalClient.open(one.path) as client:
            assert client.predict(batch).decided_by == ("student",) * 40
            client.teach(batch, logits_of(1, batch).argmax(axis=1))
            assert cast("JsonObject", client.status()["engine"])["escalates"] is False
        one.hub.wait_for(lambda: any(r.health and r.health.answers == 40 for r in one.hub.reports.values()))
        if sends:
            one.hub.wait_for(lambda: bool(one.hub.statistics))
            (body,) = one.hub.statistics.values()
            got = Statistics.from_bytes(body)
            assert (got.n, got.classes, got.features) == (40, CLASSES, FEATURES)
        one.stop()
        assert one.hub.asked == []
        assert bool(one.hub.statistics) is sends


def test_attack_what_waits_does_not_leave_once_its_owner_lets_nothing_leave(tmp_path: Path) -> None:
    """Attack on the owner's word: sums that could not be sent before the hub was away are gone with the next start."""
    with device(tmp_path / "home") as one:
        one.start()
        one.install("1.0.0", tiny_bundle(policy=policy_of(leaves="features")), 1)
        one.hub.refuse = {"/v1/evidence": 503}
        batch = batches(40, 5)
        with LocalClient.open(one.path) as client:
            client.teach(batch, logits_of(1, batch).argmax(axis=1))
        one.hub.wait_for(lambda: "/v1/evidence/statistics" in one.hub.served)
        one.stop()
        home = Home.open(one.path)
        home.chosen(replace(home.settings, leaves="nothing"))
        one.hub.refuse = {}
        one.start()
        with LocalClient.open(one.path) as client:
            client.predict(batch)
        one.hub.wait_for(lambda: any(r.health and r.health.answers == 40 for r in one.hub.reports.values()))
        one.stop()
        assert not one.hub.statistics


def test_a_device_learns_from_its_teacher_and_keeps_what_it_learned(tmp_path: Path) -> None:
    """A teacher that knows better: the overlay agrees with it more often, serves, and outlives a restart."""
    with device(tmp_path / "home", hub=TinyHub(clock=SystemClock(), teacher_seed=1)) as one:
        second = np.roll(np.eye(CLASSES, dtype=np.float32), 1, axis=1)
        one.start()
        one.install("1.0.0", tiny_bundle(policy=policy_of(alpha=0.0)), 1)
        one.hub.teacher_permutation = second
        with LocalClient.open(one.path) as client:
            for seed in range(300):
                client.predict(batches(32, 100 + seed))
                learned = cast("JsonObject", cast("JsonObject", client.status()["engine"])["learned"] or {})
                if cast("float", learned.get("agreement_after", 0.0)) > 0.8:
                    break
            one.hub.wait_for(lambda: bool(one.hub.statistics))
        assert cast("float", learned["agreement_after"]) > cast("float", learned["agreement_before"])
        fresh = batches(300, 7)
        right = (8 * logits_of(1, fresh) @ second).argmax(axis=1)
        one.stop()
        one.start()
        with LocalClient.open(one.path) as client:
            answer = client.predict(fresh)
        assert (answer.probabilities.argmax(axis=1) == right).mean() > 0.7
        assert (logits_of(1, fresh).argmax(axis=1) == right).mean() < 0.3


def test_a_home_with_a_long_path_serves_all_the_same(tmp_path: Path) -> None:
    """The name of a Unix socket is short; the home's need not be."""
    with device(tmp_path / ("x" * 110) / "home") as one:
        one.start()
        one.install("1.0.0", tiny_bundle(hardware_class=HERE), 1)
        with LocalClient.open(one.path) as client:
            assert len(client.predict(batches(1, 1))) == 1
        socket = find_socket(one.path)
        assert not socket.is_relative_to(one.path)
        assert Home.open(one.path).identity.device == "d1"
        one.stop()
        assert not socket.parent.exists()


def test_an_assignment_within_a_trial_is_taken_up_after_it(tmp_path: Path) -> None:
    """The hub need not repeat itself: the device asks again for what it could not take up."""
    with device(tmp_path / "home") as one:
        one.start(window="1s")
        one.hub.publish("1.0.0", tiny_bundle("1.0.0"))
        one.hub.publish("1.1.0", tiny_bundle("1.1.0"))
        one.hub.assigned = ("1.0.0", 1)
        one.hub.wait_for(lambda: "serving" in one.hub.states("1.0.0"))
        assert "confirmed" not in one.hub.states("1.0.0")
        one.hub.assigned = ("1.1.0", 2)
        one.hub.wait_for(lambda: "confirmed" in one.hub.states("1.1.0"))
        assert one.hub.states("1.0.0") == CONFIRMED


def test_a_full_disk_while_installing_is_survived(tmp_path: Path) -> None:
    """The slot cannot be written for a while; the installation goes on when it can."""
    with device(tmp_path / "home") as one:
        one.start()
        one.install("1.0.0", tiny_bundle("1.0.0"), 1)
        spare = one.path / "slots" / "b"
        spare.rmdir()
        spare.write_bytes(b"in the way")
        one.hub.publish("1.1.0", tiny_bundle("1.1.0"))
        one.hub.assigned = ("1.1.0", 2)
        one.hub.wait_for(lambda: any(path.startswith("/patches/") for path in one.hub.served))
        with LocalClient.open(one.path) as client:
            assert len(client.predict(batches(1, 1))) == 1
        spare.unlink()
        spare.mkdir()
        one.hub.wait_for(lambda: "confirmed" in one.hub.states("1.1.0"))
