"""The probe: golden answers that survive their file, attacks on that file, and bundles that must not serve."""

from __future__ import annotations

import contextlib
import io
import pickle
import tracemalloc
import zipfile
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from infer_models import expected_logits, tiny_model

from edgestill.core.errors import BundleError, EngineError, ProbeError
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.golden import MAX_BYTES, RUNS, Golden, probe, read_golden
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Mapping

    from numpy.typing import NDArray

INPUT = np.random.default_rng(1).normal(size=(7, 4)).astype(np.float32)
GOLDEN = Golden(input=INPUT, logits=expected_logits(INPUT), tolerance=0.01)


def npz(**members: object) -> bytes:
    """An npz file as numpy writes it."""
    buffer = io.BytesIO()
    np.savez(buffer, **members)  # type: ignore[arg-type]  # whatever a test wants in it
    return buffer.getvalue()


def zipped(members: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    """A zip file of raw members."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", compression) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def npy_bytes(array: NDArray[np.generic]) -> bytes:
    """One array as numpy writes it."""
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


@given(
    st.sampled_from(["float32", "uint8", "int16", "bool"]),
    st.lists(st.integers(1, 4), min_size=0, max_size=4),
    st.integers(1, 5),
    st.none() | st.floats(1e-6, 10),
)
def test_writing_and_reading_give_the_same_answers(
    dtype: str, dims: list[int], count: int, latency: float | None
) -> None:
    """Inputs of any type and shape, logits, tolerance and latency survive, in the same bytes every time."""
    rng = np.random.default_rng(0)
    golden = Golden(
        input=rng.integers(0, 2, size=(count, *dims)).astype(dtype),
        logits=rng.normal(size=(count, 3)).astype(np.float32),
        tolerance=0.02,
        latency_p95=latency,
    )
    data = golden.to_bytes()
    back = read_golden(data)
    np.testing.assert_array_equal(back.input, golden.input)
    assert back.input.dtype == golden.input.dtype
    np.testing.assert_array_equal(back.logits, golden.logits)
    assert (back.tolerance, back.latency_p95) == (golden.tolerance, latency)
    assert back.to_bytes() == data


def test_numpys_own_file_is_read() -> None:
    """A lab may write it with `numpy.savez`, compressed or not."""
    tolerance = np.float32(0.01)
    plain = npz(input=INPUT, logits=GOLDEN.logits, tolerance=tolerance)
    assert read_golden(plain).tolerance == pytest.approx(0.01)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, input=INPUT, logits=GOLDEN.logits, tolerance=tolerance)
    np.testing.assert_array_equal(read_golden(buffer.getvalue()).input, INPUT)


# Attacks on the file


def test_attack_a_pickle_in_the_file() -> None:
    """An object array is refused, and its pickle is never loaded."""

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return pytest.fail, ("the pickle was loaded",)

    trap = np.empty(1, dtype=object)
    trap[0] = Trap()
    with pytest.raises(BundleError, match="of plain numbers"):
        read_golden(npz(input=trap, logits=GOLDEN.logits, tolerance=0.1))
    with pytest.raises(BundleError, match="golden answers that cannot be read"):
        read_golden(zipped({"input.npy": pickle.dumps(Trap())}))


def test_attack_a_zip_bomb() -> None:
    """A file that would unpack to more than the bound is refused before it does."""
    bomb = zipped({"input.npy": b"\0" * (MAX_BYTES + 1)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 100_000
    tracemalloc.start()
    with pytest.raises(BundleError, match=f"expected at most {MAX_BYTES} bytes unpacked"):
        read_golden(bomb)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_attack_a_directory_that_lies_about_the_size() -> None:
    """A member larger than its entry says is cut there and refused."""
    honest = zipped({"input.npy": npy_bytes(np.zeros(10_000))}, zipfile.ZIP_DEFLATED)
    size = len(npy_bytes(np.zeros(10_000))).to_bytes(4, "little")
    with pytest.raises(BundleError):
        read_golden(honest.replace(size, (200).to_bytes(4, "little")))


def test_attack_a_header_that_lies_about_the_shape() -> None:
    """An array header that claims a terabyte is refused without making room for it."""
    honest = npy_bytes(np.zeros((100, 100)))
    for lie in (b"(900, 900)", b"(9**99999)", b"(99999999)", b"(((((((((("):
        with pytest.raises(BundleError, match="golden answers that cannot be read"):
            read_golden(zipped({"input.npy": honest.replace(b"(100, 100)", lie)}))


def test_attack_code_in_a_header() -> None:
    """Only the one spelling numpy writes is read; nothing is evaluated."""
    honest = npy_bytes(np.zeros(4))
    for old, new in ((b"False", b"not 1"), (b"'<f8'", b"str()"), (b"(4,)", b"[4,]"), (b"'<f8'", b"'|O8'")):
        assert old in honest
        with pytest.raises(BundleError, match="expected an npy file"):
            read_golden(zipped({"input.npy": honest.replace(old, new)}))


def test_attack_too_many_or_repeated_members() -> None:
    """Only the four known names may be there, each once."""
    with pytest.raises(BundleError, match="expected members among input, logits, tolerance, latency_p95"):
        read_golden(zipped({f"{i}.npy": b"" for i in range(1_000)}))
    with pytest.raises(BundleError, match="members among"):
        read_golden(zipped({"../input.npy": b""}))
    twice = zipped({"input.npy": npy_bytes(INPUT), "inpux.npy": npy_bytes(INPUT)})
    with pytest.raises(BundleError, match="members among"):
        read_golden(twice.replace(b"inpux", b"input"))


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_a_damaged_file_gives_our_error_only(position: int, value: int) -> None:
    """One byte changed anywhere: it is read, or refused with our error."""
    data = bytearray(GOLDEN.to_bytes())
    data[position % len(data)] = value
    with contextlib.suppress(BundleError):
        read_golden(bytes(data))


@given(st.binary(max_size=200))
def test_garbage_is_refused(data: bytes) -> None:
    """Bytes from anywhere are no golden answers."""
    with pytest.raises(BundleError, match="golden answers that cannot be read"):
        read_golden(data)


def test_values_that_cannot_be_are_refused() -> None:
    """Missing members, other shapes, NaN and tolerances out of range are named."""
    good: dict[str, object] = {"input": INPUT, "logits": GOLDEN.logits, "tolerance": 0.1}
    for change, named in (
        ({"tolerance": 0.0}, r"a tolerance in \(0, 1\]; got 0.0"),
        ({"tolerance": np.nan}, r"a tolerance in \(0, 1\]"),
        ({"tolerance": INPUT}, "tolerance as one number"),
        ({"logits": GOLDEN.logits[:3]}, r"\[G, \.\.\.\] inputs and \[G, C\] logits"),
        ({"logits": GOLDEN.logits * np.nan}, "finite logits"),
        ({"logits": np.zeros((7, 3), int)}, "logits as floats"),
        ({"input": INPUT[:0], "logits": GOLDEN.logits[:0]}, "at least one input"),
        ({"latency_p95": -1.0}, "a positive latency"),
        ({"input": np.asfortranarray(INPUT)}, "row-major"),
    ):
        with pytest.raises(BundleError, match=named):
            read_golden(npz(**(good | change)))
    with pytest.raises(BundleError, match="no \\['logits', 'tolerance'\\]"):
        read_golden(npz(input=INPUT))


# The probe


class Scripted:
    """An engine that gives these logits, and takes this long each time."""

    inputs: Mapping[str, tuple[str, tuple[int | None, ...]]] = {"input": ("FP32", (None, 4))}  # read only

    def __init__(self, clock: FakeClock, seconds: list[float], shift: float = 0.0) -> None:
        self.clock, self.seconds, self.shift = clock, seconds, shift
        self.runs = 0

    def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """The golden logits, the first shifted."""
        self.clock.advance(self.seconds[self.runs % len(self.seconds)])
        self.runs += 1
        logits = expected_logits(inputs["input"].astype(np.float32))
        logits[:, 0] += self.shift
        return {"logits": logits}


def test_the_right_model_passes() -> None:
    """The model the answers were made with answers them."""
    result = probe(OnnxEngine(tiny_model()), GOLDEN, FakeClock())
    assert result.passed
    assert result.reason == ""
    assert result.difference < 1e-5
    assert result.runs == RUNS
    assert result.check() is result


def test_another_model_fails() -> None:
    """Wrong answers are found, and told with their tolerance."""
    result = probe(OnnxEngine(tiny_model(seed=1)), GOLDEN, FakeClock())
    assert not result.passed
    with pytest.raises(
        ProbeError, match=r"the probe failed; at golden.npz; expected .*; got a probability differs by 0\."
    ) as c:
        result.check()
    assert "tolerance 0.01" in str(c.value)


def test_the_tolerance_is_one_of_probabilities() -> None:
    """Logits shifted all alike are the same answer; one logit shifted is another."""
    clock = FakeClock()
    assert probe(Scripted(clock, [0.0], shift=1e-3), GOLDEN, clock).passed
    assert not probe(Scripted(clock, [0.0], shift=0.5), GOLDEN, clock).passed
    shifted = replace(GOLDEN, logits=GOLDEN.logits + 100)
    assert probe(Scripted(clock, [0.0]), shifted, clock).passed


def test_a_slow_model_fails() -> None:
    """Of 50 answers three may be slow, more may not."""
    clock = FakeClock()
    bounded = replace(GOLDEN, latency_p95=0.01)
    few = [0.001] * 7 + ([0.001] * 23 + [0.02]) * 2 + [0.001] * 2
    result = probe(Scripted(clock, few), bounded, clock)
    assert result.passed
    assert result.latency_p95 == pytest.approx(0.001)
    many = probe(Scripted(clock, [0.001, 0.001, 0.001, 0.02]), bounded, clock)
    assert many.reason == "p95 latency is 0.02 s, bound 0.01 s"


def test_an_engine_that_fails_fails_the_probe() -> None:
    """Errors and foreign outputs become a `ProbeError` that says what the engine said."""

    class Broken(Scripted):
        def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
            raise EngineError("out of memory")

    class Nan(Scripted):
        def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
            return {"logits": np.full((1, 3), np.nan, dtype=np.float32)}

    class Other(Scripted):
        def run(self, inputs: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
            return {"logits": np.zeros((1, 2), dtype=np.float32)}

    clock = FakeClock()
    with pytest.raises(ProbeError, match=r"the model did not answer.*out of memory"):
        probe(Broken(clock, [0]), GOLDEN, clock)
    with pytest.raises(ProbeError, match=r"the model answers something else.*got \[1, 2\]"):
        probe(Other(clock, [0]), GOLDEN, clock)
    assert not probe(Nan(clock, [0]), GOLDEN, clock).passed
