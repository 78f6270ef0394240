"""A bundle that devices may train: what is in it, that it is whole, and that the size promised is that of the rest."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import pytest
from foreign_models import image_model
from job_worlds import JOB, write_job
from lab_worlds import LABELS, TRAIN, run
from test_lab_finished import CAMERA, data

from edgestill.core.bundle import Bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError, SettingError
from edgestill.core.manifest import MODEL, STEPS
from edgestill.core.manifest import TRAIN as STEP
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.policy import Policy
from edgestill.lab.gradient.optimisers import Adam
from edgestill.lab.gradient.step import Training
from edgestill.lab.job import Job
from edgestill.lab.packing.finished import pack_onnx
from edgestill.lab.packing.gate import Gate
from edgestill.learn.codes import written_into
from edgestill.learn.stepfile import StepFile
from edgestill.learn.trainer import Trainer

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.lab.packing.assemble import Packed

POLICY = Policy(labels=LABELS)


@cache
def bundled(trainable: str = "all") -> Packed:
    """Of the distillation that the tests of the lab share."""
    return run().pack(POLICY, training=Training(trainable=trainable, optimiser=Adam(), rate=0.003, batch=8))


def trainer_in(bundle: Bundle) -> Trainer:
    """As a device makes it of the files alone."""
    step = bundle.read(STEP)
    return Trainer(OnnxEngine(step), StepFile.from_bytes(bundle.read(STEPS)), step=Digest.of(step))


def test_a_bundle_brings_its_training_step(tmp_path: Path) -> None:
    """Written, read and verified like the rest; it says with what rate, batch and optimiser to begin."""
    bundled().save(tmp_path / "watch.esb")
    bundle = Bundle.open(tmp_path / "watch.esb")
    bundle.verify()
    file = StepFile.from_bytes(bundle.read(STEPS))
    assert (file.optimiser, file.rate, file.batch, file.classes) == ("adam", 0.003, 8, 3)
    assert {one.role for one in file.tensors} == {"weight", "bias"}
    assert all(one.place is not None for one in file.tensors)


def test_a_device_begins_with_the_model_that_it_was_sent(tmp_path: Path) -> None:
    """The parameters in the step, rounded as the device rounds, are the shipped model byte by byte, probabilities and all."""
    bundled().save(tmp_path / "watch.esb")
    bundle = Bundle.open(tmp_path / "watch.esb")
    trainer = trainer_in(bundle)
    start = trainer.start(TRAIN.inputs[:2])
    assert written_into(bundle.read(MODEL), trainer.steps.tensors, start.values) == (bundle.read(MODEL), 0.0)


def test_training_on_the_device_changes_the_answers(tmp_path: Path) -> None:
    """Taught that everything is the first class, the model written on the device says so."""
    bundled().save(tmp_path / "watch.esb")
    bundle = Bundle.open(tmp_path / "watch.esb")
    trainer = trainer_in(bundle)
    state, targets = trainer.start(TRAIN.inputs[:2]), np.eye(3, dtype=np.float32)[[0] * 30]
    for _ in range(40):
        state, _ = trainer.step(state, TRAIN.inputs[:30], targets, rate=trainer.steps.rate * 5)
    model, _ = written_into(bundle.read(MODEL), trainer.steps.tensors, state.values)
    answers = OnnxEngine(model).run({"input": TRAIN.inputs[:30]})["logits"].argmax(1)
    before = OnnxEngine(bundle.read(MODEL)).run({"input": TRAIN.inputs[:30]})["logits"].argmax(1)
    assert (answers == 0).mean() > 0.9 > (before == 0).mean()


def test_what_only_training_needs_is_not_counted() -> None:
    """The size of a bundle, which a budget bounds, is the same with and without it."""
    plain, more = run().pack(POLICY), bundled()
    assert more.manifest.size == plain.manifest.size
    assert more.blobs[MODEL] == plain.blobs[MODEL]
    assert {STEP, STEPS} == set(more.blobs) - set(plain.blobs)


def test_a_head_alone_is_a_small_file() -> None:
    """Its step brings the weights of the whole network, and trains the last layer."""
    file = StepFile.from_bytes(bundled("head").blobs[STEPS])
    assert [one.name for one in file.tensors] == ["head.weight", "head.bias"]


def test_a_finished_model_may_be_trained_too() -> None:
    """One that somebody brought as ONNX, with the camera's preprocessing inside."""
    made = pack_onnx(
        image_model(end=["Softmax"]), data(), sensor=CAMERA, gate=Gate(allowed=0.04), training=Training()
    )
    step = made.blobs[STEP]
    trainer = Trainer(OnnxEngine(step), StepFile.from_bytes(made.blobs[STEPS]), step=Digest.of(step))
    state = trainer.start(data().inputs[:2])
    assert written_into(made.blobs[MODEL], trainer.steps.tensors, state.values) == (made.blobs[MODEL], 0.0)
    targets, losses = np.eye(data().classes, dtype=np.float32)[data().labels], []
    for _ in range(20):
        state, loss = trainer.step(state, data().inputs, targets, rate=0.02)
        losses.append(loss)
    assert losses[-1] < losses[0]


def test_a_job_says_what_devices_may_train(tmp_path: Path) -> None:
    """In its table of the bundle."""
    more = '[bundle]\ntrain = "last=2"\ntrain_with = "adam"\ntrain_rate = 0.004\n'
    Job.read(write_job(tmp_path / "job", JOB + more)).run(tmp_path / "out")
    file = StepFile.from_bytes(Bundle.open(tmp_path / "out" / "student.esb").read(STEPS))
    assert (file.optimiser, file.rate, len(file.tensors)) == ("adam", 0.004, 4)


@pytest.mark.parametrize(
    ("more", "told"),
    [('train_with = "lion"', "expected sgd, adam"), ('train = "all"\ntrain_rate = 0.0', "at .*rate")],
)
def test_a_job_with_another_wish_is_refused_before_it_runs(tmp_path: Path, more: str, told: str) -> None:
    """When it is read."""
    with pytest.raises(SettingError, match=told):
        Job.read(write_job(tmp_path / "job", JOB + f"[bundle]\n{more}\n"))


def test_what_cannot_be_trained_is_named_with_the_file_that_it_was_for() -> None:
    """A choice that names nothing fails the packing, not the device."""
    with pytest.raises(SettingError, match="names none"):
        run().pack(POLICY, training=Training(trainable="nothing.*"))


def test_a_model_that_came_quantised_is_not_trained() -> None:
    """Its weights are codes, of which there is nothing to learn."""
    coded = pack_onnx(image_model(), data(), sensor=CAMERA, gate=Gate(allowed=1.0)).blobs[MODEL]
    with pytest.raises(
        ModelError, match=r"train\.onnx.*expected layers whose weights stand in the file, as float32"
    ):
        pack_onnx(coded, data(), gate=Gate(allowed=1.0), training=Training())
