"""A finished student that somebody brings as ONNX, made into a bundle: int8, policy, golden answers, probe.

It needs data to calibrate on, as the sensor gives it. With labels the temperature is fitted and int8 is judged by accuracy;
without, int8 is judged by how often it answers as the file in floats does, and nothing is fitted. A teacher's ONNX adds alpha and, where
there is enough data, a promise on the risk.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Final

import numpy as np
import onnx_ir as ir

from edgestill.core.clock import SystemClock
from edgestill.core.digest import Digest
from edgestill.core.errors import ClassCountError, DataError, within
from edgestill.core.hardware import HardwareClass
from edgestill.core.oip import NUMPY_NAMES
from edgestill.infer.arrayfile import native
from edgestill.infer.confidence import softmax
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_of
from edgestill.infer.policy import Policy
from edgestill.infer.student import FEATURES, LOGITS, Student
from edgestill.lab.data.samples import Samples
from edgestill.lab.measure import in_batches, run_model
from edgestill.lab.packing.assemble import Origin, Packed, Parts, assembled
from edgestill.lab.packing.export import INPUT
from edgestill.lab.packing.footprint import held_to, policy_within
from edgestill.lab.packing.foreign import FreeBatch, Modernise, NameEnds, check_close, read_file
from edgestill.lab.packing.gate import Gate, written_down
from edgestill.lab.packing.graph import constant, read
from edgestill.lab.packing.material import spread
from edgestill.lab.packing.passes import through
from edgestill.lab.packing.scaling import MergeScaling
from edgestill.lab.packing.sensor import Sensor, TakeSensor
from edgestill.lab.packing.trainable import trainable
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from numpy.typing import NDArray

    from edgestill.core.budget import Budget
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Engine
    from edgestill.lab.gradient.step import Training

FEWEST: Final = 2
_SHOWN: Final = 512
_ALONE: Final = 32
"""Real inputs that are asked alone as well as together."""
_CODED: Final = ("QuantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")


def pack_onnx(
    model: bytes | Path,
    calibration: Samples | NDArray[np.generic],
    *,
    policy: Policy | None = None,
    teacher: bytes | None = None,
    sensor: Sensor | None = None,
    ends: NameEnds | None = None,
    origin: Origin | None = None,
    hardware_class: HardwareClass | None = None,
    gate: Gate | None = None,
    budget: Budget | None = None,
    training: Training | None = None,
) -> Packed:
    """Makes the bundle of a student that was trained elsewhere.

    Args:
        model: ONNX, as a file or its bytes. One that is quantised already stays as it is.
        calibration: inputs `[N, ...]` as the sensor gives them, with their classes where they are known.
        policy: names of the classes, and what is not fitted; by default `class 0`, `class 1`, ...
        teacher: ONNX of the larger model. One that takes floats is given what the student's is, prepared readings; one that takes
            whole numbers is given the readings.
        sensor: what becomes of the readings before the model sees them; by default nothing.
        ends: which output tells the classes, and what the features are; by default both are looked for.
        origin: name and version; by default `student`, 1.0.0.
        hardware_class: where it will run; by default this machine's.
        gate: what int8 may cost; by default half a point.
        budget: what the bundle must keep, as measured on this machine; its escalation share bounds the policy's.
        training: what devices may train, and how; by default nothing.

    Raises:
        ModelError: an operator, an end or an input that cannot be worked with. ShapeError, DtypeError: data of another kind than
            the model takes. ClassCountError: model, names, data and teacher disagree on the classes.
        DataError: too little data, or inputs for which the model gives no finite answer. SettingError: over the budget.
    """
    where, ends = hardware_class or HardwareClass.here(), ends or NameEnds()
    model = model if isinstance(model, bytes) else read_file(model)
    floats = standardised(model, sensor or Sensor(), ends)
    heldout = _heldout(floats, calibration)
    policy = policy_within(policy, budget, heldout.classes)
    if len(policy.labels) != heldout.classes:
        raise _classes_apart("labels", heldout.classes, len(policy.labels))
    gate = gate or Gate()
    coded = any(node.op_type in _CODED for node in read(floats).graph)
    written = written_down(
        floats,
        heldout,
        spread(heldout.inputs, _SHOWN),
        where,
        gate=replace(gate, int8=False) if coded else gate,
    )
    if coded:
        written = replace(written, tried=(replace(written.tried[-1], way="as it came, quantised"),))
    answers = None if teacher is None else teacher_answers(teacher, heldout, sensor or Sensor())
    backbone = backbone_of(floats)
    lineage: JsonObject = {
        "teacher": None if teacher is None else str(Digest.of(teacher)),
        "student": str(Digest.of(model)),
        "backbone": str(backbone),
        "data": str(heldout.digest),
    }
    parts = Parts(
        written=written,
        heldout=heldout,
        teacher=answers,
        reference=_reference(engine_of(written.model, where.name), backbone, heldout, answers),
        policy=policy,
        origin=origin or Origin(name="student", version="1.0.0", recipe={}, seed=0),
        hardware_class=where,
        lineage=lineage,
        labelled=isinstance(calibration, Samples),
    )
    packed = held_to(budget, assembled(parts), heldout.inputs)
    return packed if training is None else trainable(packed, training)


def standardised(model: bytes, sensor: Sensor, ends: NameEnds) -> bytes:
    """The model as a bundle wants it, in floats: its ends named, its rows free, the sensor's preprocessing inside.

    Raises:
        ModelError: as `pack_onnx`.
    """
    OnnxEngine(model)  # refuses what is more than data, before anything else reads it
    return through(model, [Modernise(), ends, FreeBatch(), TakeSensor(sensor), MergeScaling()])


def backbone_of(model: bytes) -> Digest:
    """Names everything up to `features`: operators and weights that they are worked out from."""
    graph = read(model).graph
    waiting = [one for one in graph.outputs if one.name == FEATURES]
    seen: dict[str, ir.Value] = {}
    while waiting:
        value = waiting.pop()
        if str(value.name) not in seen:
            seen[str(value.name)] = value
            node = value.producer()
            waiting += [one for one in ([] if node is None else node.inputs) if one is not None]
    chunks: list[bytes] = []
    for name, value in sorted(seen.items()):
        node, numbers = value.producer(), constant(value)
        if node is not None:
            told = ir.to_proto(node)
            told.name = told.doc_string = ""
            chunks += [name.encode(), told.SerializeToString(deterministic=True)]
        elif numbers is not None:
            head = f"{name} {numbers.dtype} {numbers.shape}".encode()
            chunks += [head, np.ascontiguousarray(numbers).tobytes()]
    return Digest.of_chunks(chunks)


def _heldout(model: bytes, calibration: Samples | NDArray[np.generic]) -> Samples:
    """The data with classes: its own, or what the file in floats answers."""
    inputs = calibration.inputs if isinstance(calibration, Samples) else calibration
    if inputs.ndim < 2 or len(inputs) < FEWEST:
        raise DataError(
            "too little data to calibrate on",
            where="calibration",
            expected=f"inputs [N, ...], {FEWEST} at least, some hundred to be sure",
            got=list(inputs.shape),
            fix="bring more of what the sensor gives",
        )
    inputs = native(inputs)
    with within("calibration"):
        logits = _logits_of(model, inputs)
    if isinstance(calibration, Samples):
        calibration = replace(calibration, inputs=inputs)
        if calibration.classes > logits.shape[1]:
            raise _classes_apart("calibration: labels", logits.shape[1], calibration.classes)
        return replace(calibration, classes=logits.shape[1])
    return Samples(inputs, logits.argmax(1), np.arange(len(inputs)), logits.shape[1])


def _logits_of(model: bytes, inputs: NDArray[np.generic]) -> NDArray[np.float32]:
    """`[N, C]`, after a look whether the inputs are what the model takes and what it can answer."""
    engine = OnnxEngine(model)
    asked = Student(engine, Policy(labels=("any",)), clock=SystemClock())
    logits = np.concatenate([engine.run({INPUT: asked.checked(one)})[LOGITS] for one in in_batches(inputs)])
    if not np.isfinite(logits).all():
        raise DataError(
            "the model has no finite answer",
            where=f"input {int(np.flatnonzero(~np.isfinite(logits).all(1))[0])}",
            expected="finite logits",
            got="NaN or infinity",
            fix="are these the readings that the model was trained on? See `sensor`: scale, mean, deviation",
        )
    some = spread(inputs, _ALONE)
    rows = np.concatenate([engine.run({INPUT: some[at : at + 1]})[LOGITS] for at in range(len(some))])
    check_close(engine.run({INPUT: some})[LOGITS], rows, LOGITS, "rows of a batch know of each other")
    return logits.astype(np.float32)


def teacher_answers(teacher: bytes, heldout: Samples, sensor: Sensor) -> NDArray[np.float32]:
    """A teacher's logits `[N, C]`.

    Args:
        teacher: its ONNX.
        heldout: inputs as the sensor gives them, and how many classes there are.
        sensor: what becomes of them, for a teacher that takes floats.

    Raises:
        ModelError, ShapeError, DtypeError, DataError: it does not take them, or has no finite answer. ClassCountError: other classes.
    """
    with within("teacher"):
        model = through(teacher, [Modernise(), NameEnds(features=None), FreeBatch()])
        ((datatype, _),) = OnnxEngine(model).inputs.values()
        if np.dtype(NUMPY_NAMES[datatype]).kind == "f":  # it wants them prepared
            model = through(model, [TakeSensor(sensor)])
        answers = _logits_of(model, heldout.inputs)
    if answers.shape[1] != heldout.classes:
        raise _classes_apart("teacher", heldout.classes, answers.shape[1])
    return answers


def _reference(
    engine: Engine, backbone: Digest, heldout: Samples, teacher: NDArray[np.float32] | None
) -> Statistics:
    """Of the calibration data: targets are the teacher's where there is one, else the labels."""
    features = run_model(engine, heldout.inputs)[1]
    targets = np.eye(heldout.classes)[heldout.labels] if teacher is None else softmax(teacher)
    empty = Statistics.empty(backbone=backbone, window=0, classes=heldout.classes, features=features.shape[1])
    return empty.add(features, targets)


def _classes_apart(where: str, expected: int, got: int) -> ClassCountError:
    return ClassCountError(
        "different numbers of classes",
        where=where,
        expected=f"{expected} (the model's)",
        got=got,
        fix="names, labels and teacher are of the classes that the model tells, in their order",
    )
