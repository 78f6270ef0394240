"""The probe: known inputs, the answers they must get, and how fast.

`golden.npz` is an ordinary, deterministic npz file, but its reader trusts nothing: few members with known names, sizes
bounded in the archive's directory and again in each array's header before anything is allocated, numbers only, no
pickle. Answers are compared as probabilities, `softmax(logits)`, because that is what tolerances can speak about: the
same int8 file gives slightly other logits on another processor.
"""

from __future__ import annotations

import io
import re
import zipfile
import zlib
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Final, Self

import numpy as np
from numpy.lib import format as npy

from edgestill.core.errors import BundleError, EdgestillError, ProbeError
from edgestill.infer.confidence import softmax
from edgestill.infer.student import LOGITS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.protocols import Clock, Engine

MAX_BYTES: Final = 64_000_000
MAX_HEADER_BYTES: Final = 512
MAX_RANK: Final = 8
RUNS: Final = 50
_WHERE: Final = "golden.npz"
_REQUIRED: Final = ("input", "logits", "tolerance")
_MEMBERS: Final = (*_REQUIRED, "latency_p95")
_HEADER: Final = re.compile(
    rb"\x93NUMPY\x01\x00(?P<length>[\x00-\xff]{2})"
    rb"\{'descr': '(?P<descr>\|b1|\|[iu]1|[<>][iu][248]|[<>]f[248])', 'fortran_order': False, "
    rb"'shape': \((?P<shape>(?:[0-9]{1,10}(?:, ?|,?(?=\))))*)\), \} *\n",
    re.DOTALL,
)
_EPOCH: Final = (1980, 1, 1, 0, 0, 0)
_DAMAGE: Final = (
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    ValueError,
    NotImplementedError,
    RuntimeError,
    OSError,
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Golden:
    """Known questions and answers.

    Attributes:
        input: `[G, ...]`, what the sensor gives.
        logits: float32 `[G, C]`.
        tolerance: largest difference of a probability that passes, in (0, 1].
        latency_p95: seconds for one answer that 95 of 100 must not exceed; None sets no bound.
    """

    input: NDArray[np.generic]
    logits: NDArray[np.float32]
    tolerance: float
    latency_p95: float | None = None

    def __post_init__(self) -> None:
        if self.input.ndim < 1 or self.logits.ndim != 2 or len(self.logits) != len(self.input):  # [G, C]
            raise _broken(
                "[G, ...] inputs and [G, C] logits", f"{list(self.input.shape)}, {list(self.logits.shape)}"
            )
        if not len(self.input) or not self.logits.shape[1] or not np.isfinite(self.logits).all():
            raise _broken("at least one input, and finite logits", f"{len(self.input)} inputs")
        if not 0 < self.tolerance <= 1:
            raise _broken("a tolerance in (0, 1]", self.tolerance)
        if self.latency_p95 is not None and not 0 < self.latency_p95 < float("inf"):
            raise _broken("a positive latency", self.latency_p95)

    def to_bytes(self) -> bytes:
        """`golden.npz`: the same bytes every time."""
        arrays: dict[str, NDArray[np.generic]] = {
            "input": self.input,
            "logits": self.logits.astype(np.float32),
            "tolerance": np.array(self.tolerance, dtype=np.float64),
        }
        if self.latency_p95 is not None:
            arrays["latency_p95"] = np.array(self.latency_p95, dtype=np.float64)
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
            for name, array in arrays.items():
                member = io.BytesIO()
                npy.write_array(member, np.ascontiguousarray(array).reshape(array.shape), (1, 0))
                archive.writestr(zipfile.ZipInfo(f"{name}.npy", _EPOCH), member.getvalue())
        return buffer.getvalue()


def read_golden(data: bytes) -> Golden:
    """Reads `golden.npz`.

    Raises:
        BundleError: not the format, over a bound, or values that cannot be.
    """
    try:
        arrays = _arrays(data)
    except _DAMAGE as error:
        raise _broken("an npz file of numbers", error) from error
    missing = [name for name in _REQUIRED if name not in arrays]
    if missing:
        raise _broken(", ".join(_REQUIRED), f"no {missing}")
    if arrays["logits"].dtype.kind != "f":
        raise _broken("logits as floats", arrays["logits"].dtype)
    latency = _scalar(arrays, "latency_p95") if "latency_p95" in arrays else None
    return Golden(
        input=arrays["input"],
        logits=arrays["logits"].astype(np.float32),
        tolerance=_scalar(arrays, "tolerance"),
        latency_p95=latency,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """What an engine made of the golden inputs.

    Attributes:
        difference: largest difference of a probability, in [0, 1].
        tolerance: its bound.
        latency_p95: seconds, of answers to one input each.
        latency_bound: its bound, or None.
        runs: answers that were timed.
    """

    difference: float
    tolerance: float
    latency_p95: float
    latency_bound: float | None
    runs: int

    @property
    def reason(self) -> str:
        """Why it failed, in one sentence; empty where it passed."""
        if not self.difference <= self.tolerance:
            return f"a probability differs by {self.difference:.3g}, tolerance {self.tolerance:.3g}"
        if self.latency_bound is not None and self.latency_p95 > self.latency_bound:
            return f"p95 latency is {self.latency_p95:.3g} s, bound {self.latency_bound:.3g} s"
        return ""

    @property
    def passed(self) -> bool:
        """Whether the bundle may serve."""
        return not self.reason

    def check(self) -> Self:
        """This probe, if it passed.

        Raises:
            ProbeError: it did not.
        """
        if self.passed:
            return self
        raise ProbeError(
            "the probe failed",
            where=_WHERE,
            got=self.reason,
            fix="keep the release that serves now",
            expected="the golden answers, in time",
        )


def probe(engine: Engine, golden: Golden, clock: Clock) -> Probe:
    """Asks every golden input alone, as a device does, then times at least 50 answers.

    Raises:
        ProbeError: the engine failed, or its logits have another shape.
    """
    if len(engine.inputs) != 1:
        raise ProbeError(
            "a student takes one input",
            where="model.onnx",
            got=list(engine.inputs),
            expected="one input",
            fix="export a network of one input",
        )
    (name,) = engine.inputs
    rows = [golden.input[index : index + 1] for index in range(len(golden.input))]
    given = np.concatenate([_logits(engine, name, row, golden.logits.shape[1]) for row in rows])
    times = []
    for index in range(max(RUNS, len(rows))):
        start = clock.monotonic()
        engine.run({name: rows[index % len(rows)]})
        times.append(clock.monotonic() - start)
    difference = np.abs(softmax(given) - softmax(golden.logits)).max()
    return Probe(
        # NaN is no difference that could pass
        difference=float(difference) if np.isfinite(given).all() else float("inf"),
        tolerance=golden.tolerance,
        latency_p95=sorted(times)[-(-len(times) * 95 // 100) - 1],
        latency_bound=golden.latency_p95,
        runs=len(times),
    )


def _logits(engine: Engine, name: str, row: NDArray[np.generic], classes: int) -> NDArray[np.float32]:
    try:
        given = engine.run({name: row}).get(LOGITS)
    except EdgestillError as error:
        raise ProbeError(
            "the model did not answer",
            where="model.onnx",
            got=error,
            fix="keep what serves now",
            expected="an answer to the golden inputs",
        ) from error
    if given is None or given.shape != (1, classes):
        raise ProbeError(
            "the model answers something else",
            where=LOGITS,
            expected=[1, classes],
            got="nothing" if given is None else list(given.shape),
            fix="build the bundle again with its own golden answers",
        )
    return given.astype(np.float32)


def _arrays(data: bytes) -> dict[str, NDArray[np.generic]]:
    if len(data) > MAX_BYTES:
        raise _broken(f"at most {MAX_BYTES} bytes", len(data))
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = archive.infolist()
        names = [entry.filename.removesuffix(".npy") for entry in entries]
        if len(set(names)) != len(names) or not set(names) <= set(_MEMBERS):
            raise _broken(f"members among {', '.join(_MEMBERS)}", ", ".join(names)[:200])
        if sum(entry.file_size for entry in entries) > MAX_BYTES:
            raise _broken(f"at most {MAX_BYTES} bytes unpacked", sum(entry.file_size for entry in entries))
        return {name: _array(archive, entry) for name, entry in zip(names, entries, strict=True)}


def _array(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> NDArray[np.generic]:
    """One member: its header is believed only where it agrees with the size in the directory."""
    with archive.open(entry) as stream:
        raw = stream.read(entry.file_size)
    # numpy's own reader evaluates the header as Python and repairs it where it can; one spelling is enough here
    header = _HEADER.match(raw[:MAX_HEADER_BYTES])
    if header is None:
        raise _broken("an npy file, version 1.0, of plain numbers, row-major", entry.filename)
    dtype = np.dtype(header["descr"].decode())
    shape = tuple(int(dim) for dim in header["shape"].split(b",") if dim.strip())
    start = 10 + int.from_bytes(header["length"], "little")
    if header.end() != start or len(shape) > MAX_RANK or prod(shape) * dtype.itemsize != len(raw) - start:
        raise _broken(f"{list(shape)} numbers of {dtype}", f"{entry.filename}: {len(raw) - start} bytes")
    array: NDArray[np.generic] = np.frombuffer(raw[start:], dtype=dtype).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def _scalar(arrays: dict[str, NDArray[np.generic]], name: str) -> float:
    value = arrays[name]
    if value.size != 1:
        raise _broken(f"{name} as one number", list(value.shape))
    return float(value.reshape(()).item())


def _broken(expected: str, got: object) -> BundleError:
    return BundleError(
        "golden answers that cannot be read",
        where=_WHERE,
        expected=expected,
        got=got,
        fix="build the bundle again",
    )
