"""A model that tells how far an input lies from what its student was shown."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import onnx
import pytest
from lab_worlds import POLICY, motions, run
from lab_worlds import packed as packed_student

from edgestill.core.clock import SystemClock
from edgestill.core.errors import ModelError
from edgestill.core.manifest import MODEL
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.engines import engine_of, installed
from edgestill.infer.student import Student
from edgestill.lab.packing.assemble import REFERENCE
from edgestill.lab.packing.leverage import TellLeverage, relative_leverage
from edgestill.lab.packing.probabilities import shippable
from edgestill.learn.leverage import Leverage
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from numpy.typing import NDArray

HELD = motions(150)


def told_by(
    model: bytes, inputs: NDArray[np.generic] = HELD.inputs, engine: str = "onnxruntime"
) -> dict[str, NDArray[np.float64]]:
    """All outputs of a file."""
    found = engine_of(model, engine).run({"input": inputs})
    return {name: one.astype(np.float64) for name, one in found.items()}


@pytest.fixture(scope="module")
def packed() -> tuple[bytes, Leverage]:
    """The file of a student in floats, and the leverage of what it was shown."""
    made = packed_student()
    return made.model_fp32, relative_leverage(Statistics.from_bytes(made.blobs[REFERENCE]))


def test_the_graph_has_the_leverage_of_its_features(packed: tuple[bytes, Leverage]) -> None:
    """Beside logits and probabilities stands what numpy makes of the features, and no other output has changed."""
    model, reference = packed
    before, after = (told_by(shippable(model, 1.0, one)) for one in (None, reference))
    np.testing.assert_allclose(after["leverage"][:, 0], reference.of(before["features"]), rtol=1e-3)
    for name, values in before.items():
        np.testing.assert_allclose(after[name], values, rtol=1e-5, atol=1e-5)


def test_the_reference_has_a_leverage_of_one_in_the_mean(packed: tuple[bytes, Leverage]) -> None:
    """Data like that of the training lies around 1; data from elsewhere far above."""
    model, reference = packed
    file = shippable(model, 1.0, reference)
    here = told_by(file, motions(600).inputs)["leverage"]
    there = told_by(file, (8 * HELD.inputs.astype(np.float32)).astype(HELD.inputs.dtype))["leverage"]
    assert 0.7 < float(here.mean()) < 1.4
    assert float(np.median(there)) > 3 * float(np.median(here))


def test_a_student_is_as_sure_as_its_leverage_is_small(packed: tuple[bytes, Leverage]) -> None:
    """With the measure of that name, confidence is 1 / (1 + h) of what the model tells."""
    model, reference = packed
    file = shippable(model, 1.0, reference)
    student = Student(
        OnnxEngine(file), replace(POLICY, measure="leverage", temperature=1.0), clock=SystemClock()
    )
    leverage = told_by(file)["leverage"][:, 0]
    np.testing.assert_allclose(student.predict(HELD.inputs).confidence, 1 / (1 + leverage), rtol=1e-6)


def test_a_model_that_does_not_tell_it_is_named(packed: tuple[bytes, Leverage]) -> None:
    """A policy that measures by leverage on a file without it is a coded error."""
    engine = OnnxEngine(shippable(packed[0], 1.0))
    with pytest.raises(ModelError, match="leverage"):
        Student(engine, replace(POLICY, measure="leverage"), clock=SystemClock()).predict(HELD.inputs)


@pytest.mark.parametrize("name", sorted(installed()))
def test_every_engine_tells_the_same(packed: tuple[bytes, Leverage], name: str) -> None:
    """The operators are ones that all engines have."""
    model, reference = packed
    file = shippable(model, 1.0, reference)
    theirs, ours = told_by(file, engine=name), told_by(file)
    np.testing.assert_allclose(theirs["leverage"], ours["leverage"], rtol=1e-2)


def test_features_of_another_width_are_refused(packed: tuple[bytes, Leverage]) -> None:
    """The reference of another student fits no model but its own."""
    model, reference = packed
    other = Leverage(np.eye(len(reference.factor) + 3), 1.0)
    with pytest.raises(ModelError, match="no such features"):
        shippable(model, 1.0, other)


def test_it_is_told_once(packed: tuple[bytes, Leverage]) -> None:
    """A model that has such an output is refused by the pass."""
    model, reference = packed
    with pytest.raises(ModelError, match="already"):
        TellLeverage(reference).requires(shippable(model, 1.0, reference))


def test_a_bundle_made_with_the_measure_brings_what_it_needs() -> None:
    """Who asks for leverage gets a file that tells it, a policy that says so, and another temperature leaves it there."""
    made = run().pack(replace(POLICY, measure="leverage"))
    assert made.policy.measure == "leverage"
    outputs = {one.name for one in onnx.load_from_string(made.blobs[MODEL]).graph.output}
    assert outputs == {"logits", "features", "probabilities", "temperature", "leverage"}
    assert 0 < made.policy.threshold < 1
