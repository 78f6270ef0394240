"""The hub and the product's own clients together: what `link` and `trust` send and expect is what the hub speaks."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
from hub_worlds import CLASS, URL, World, esb, sums, teacher_model, world

from edgestill.core import errors
from edgestill.core.digest import Digest
from edgestill.core.jsonio import Fields
from edgestill.core.release import Gates
from edgestill.core.wire import Enrol, Report
from edgestill.learn.statistics import Statistics
from edgestill.link.control import ControlClient
from edgestill.link.download import download
from edgestill.link.inference import RemoteModel
from edgestill.link.operator import OperatorClient
from edgestill.testing.clock import FakeClock
from edgestill.trust import assignment
from edgestill.trust.client import TrustedClient
from edgestill.trust.kept import KeptMetadata
from edgestill.trust.keys import PublicKey
from edgestill.trust.repository import TargetInfo, target_path

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RELEASE = "watch/1.0.0"
TARGET = f"{RELEASE}/{CLASS}.esb"


@pytest.fixture
def there(tmp_path: Path) -> Iterator[World]:
    """A hub with a teacher and nothing else."""
    with world(tmp_path / "hub", teacher=teacher_model()) as made:
        yield made


@pytest.fixture
def operator(there: World) -> OperatorClient:
    """The operator."""
    return OperatorClient(there.transport, URL, token=there.operator)


def publish(there: World, operator: OperatorClient, version: str) -> None:
    """As the publisher does it."""
    archive = esb(version)
    kept = operator.upload_bundle(archive)
    there.targets = operator.targets()
    targets = there.sign({f"watch/{version}/{CLASS}.esb": TargetInfo(kept.size, kept.digest)})
    operator.upload_targets(targets)


def test_the_whole_route_of_a_release(there: World, operator: OperatorClient, tmp_path: Path) -> None:
    """Root, archive, list, token, rollout; enrol, poll, verify, download, report: every message by its real client."""
    assert PublicKey.from_json(operator.online_key()) == there.online
    operator.upload_root(there.root())
    publish(there, operator, "1.0.0")
    token = operator.join_token(uses=1, expires_in=60)
    enrolled = ControlClient(there.transport, URL).enrol(
        Enrol(join_token=token, device="d0", hardware_class=CLASS, labels={"site": "north"})
    )
    assert Digest.of(enrolled.root).hex == token.split(".")[2]
    number = operator.start_rollout(RELEASE, stages=[0.5, 1], gates=Gates(), labels={"site": "north"})
    client = ControlClient(there.transport, URL, credential=enrolled.credential)
    poll, tag = client.poll(etag=None, wait=0)
    assert poll is not None
    assert poll.assignment is not None
    trusted = TrustedClient(
        KeptMetadata(tmp_path / "trust"), root=enrolled.root, fetch=client.artefact, clock=there.clock
    )
    trusted.refresh()
    told = assignment.verify(
        poll.assignment, keys=trusted.assignment_keys, device="d0", seen=0, now=there.clock.now()
    )
    info = trusted.target(told.target)
    fetched = tmp_path / "fetched.esb"
    download(
        there.transport,
        f"{URL}/{target_path(told.target, info.digest)}",
        to=fetched,
        size=info.size,
        digest=info.digest,
        clock=FakeClock(),
        timeout=30,
        minimum_speed=1,
    )
    assert fetched.read_bytes() == esb("1.0.0")
    report = Report(
        id="r1", at=there.clock.now(), bundle=str(info.digest), release=RELEASE, state="confirmed"
    )
    client.report([report])
    assert client.poll(etag=tag, wait=0) == (None, tag)
    assert operator.rollout(number)["state"] == "done"
    (device,) = Fields(operator.fleet(), "fleet").objects("devices", at_most=10)
    assert (device.text("release"), device.text("assigned")) == (RELEASE, TARGET)


def test_operators_verbs(there: World, operator: OperatorClient) -> None:
    """Pause, resume and roll back answer with the rollout; what is over, or unknown, is told as such."""
    operator.upload_root(there.root())
    publish(there, operator, "1.0.0")
    number = operator.start_rollout(RELEASE)
    assert operator.pause(number)["state"] == "paused"
    assert operator.resume(number)["state"] == "running"
    with pytest.raises(errors.ConflictError):
        operator.start_rollout(RELEASE)
    assert operator.rollback(number)["state"] == "rolled-back"
    with pytest.raises(errors.ConflictError):
        operator.pause(number)
    with pytest.raises(errors.NotFoundError):
        operator.rollout("99")
    (listed,) = Fields(operator.rollouts(), "rollouts").objects("rollouts", at_most=10)
    assert listed.text("release") == RELEASE
    (release,) = Fields(operator.releases(), "releases").objects("releases", at_most=10)
    assert release.inner("bundles").names() == [CLASS]


def test_without_a_root_or_with_a_wrong_token(there: World, operator: OperatorClient) -> None:
    """Both are told by their class."""
    assert operator.targets() is None
    with pytest.raises(errors.ConflictError, match="there is no root yet"):
        operator.join_token()
    with pytest.raises(errors.AccessError):
        OperatorClient(there.transport, URL, token="eso1.nobody").fleet()


def test_a_device_escalates_and_the_lab_reads_the_evidence(there: World, operator: OperatorClient) -> None:
    """Through `link.RemoteModel`; the operator gets the same rows and logits back."""
    operator.upload_root(there.root())
    device = there.enrol("d0")
    teacher = RemoteModel(
        there.transport,
        URL,
        model="teacher",
        clock=FakeClock(),
        timeout=30,
        credential=device.credential,
        parameters={"purpose": "audit", "retain": True},
    )
    batch = np.random.default_rng(0).normal(size=(5, 4)).astype(np.float32)
    answer = teacher.predict(batch)
    logits = batch.sum(axis=1, keepdims=True) * np.array([1, 2, 3], np.float32)
    wanted = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.testing.assert_allclose(answer.probabilities, wanted / wanted.sum(axis=1, keepdims=True), rtol=1e-4)
    kept = operator.samples()
    by_name = {tensor.name: tensor for tensor in kept.outputs}
    assert bytes(by_name["input"].data) == batch.tobytes()
    np.testing.assert_allclose(np.frombuffer(by_name["teacher"].data, "<f4").reshape(5, 3), logits, rtol=1e-5)
    assert kept.parameters["devices"] == ["d0"] * 5
    last = kept.parameters["last"]
    assert isinstance(last, int)
    assert operator.samples(after=last).outputs[0].shape == (0,)


def test_a_stranger_cannot_escalate(there: World, operator: OperatorClient) -> None:
    """The teacher is no free service."""
    operator.upload_root(there.root())
    teacher = RemoteModel(there.transport, URL, model="teacher", clock=FakeClock(), timeout=30)
    with pytest.raises(errors.AccessError):
        teacher.predict(np.zeros((1, 4), np.float32))


def test_statistics_go_there_and_back(there: World, operator: OperatorClient) -> None:
    """Sent by devices, summed once each, read by the operator."""
    operator.upload_root(there.root())
    one, two = (ControlClient(there.transport, URL, credential=there.enrol(name).credential) for name in "ab")
    first, second = sums(seed=1), sums(seed=2)
    assert one.statistics("m1", first.to_bytes("float64"))
    assert not one.statistics("m1", first.to_bytes("float64"))
    assert two.statistics("m1", second.to_bytes("float64"))
    total = Statistics.from_bytes(operator.statistics(first.backbone))
    np.testing.assert_allclose(total.a, (first + second).a)
    with pytest.raises(errors.NotFoundError):
        operator.statistics(Digest.of(b"nobody"))
