"""The teacher: a large model behind the Open Inference Protocol v2, for devices that are unsure.

- One model named `teacher`, with one input and an output `logits` `[N, C]`; its version is the beginning of its digest.
- A request is checked against what the model takes before anything is run: name, datatype, shape, size, finite numbers.
- It runs in threads of its own. At most so many requests wait for them; the next one is told to come back (503) at once, since a
  device that waits longer answers alone anyway.
- Where a device says `retain`, inputs and logits are kept as evidence. That this fails never costs it the answer.

Source: the Open Inference Protocol v2 (REST), with its binary tensor data extension.
"""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Self, final

import numpy as np

from edgestill.core.digest import Digest
from edgestill.core.errors import (
    DeadlineError,
    DtypeError,
    EngineError,
    MessageError,
    ModelError,
    NotFiniteError,
    ShapeError,
)
from edgestill.core.oip import NUMPY_NAMES, InferRequest, InferResponse, Tensor
from edgestill.infer.engine import OnnxEngine

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.hub.settings import Settings

NAME: Final = "teacher"
OUTPUT: Final = "logits"

_VERSION_DIGITS: Final = 12
_RANK_OF_LOGITS: Final = 2


@final
class Teacher:
    """The model and the threads that run it. Made by `load`.

    Attributes:
        version: the beginning of the model's digest.
    """

    def __init__(self, engine: OnnxEngine, *, version: str, settings: Settings) -> None:
        ((self._input, (self._datatype, self._shape)),) = engine.inputs.items()
        self.version = version
        self._engine = engine
        self._settings = settings
        self._threads = ThreadPoolExecutor(settings.teacher_threads, thread_name_prefix="hub-teacher")
        self._waiting = 0

    @classmethod
    def load(cls, model: bytes, settings: Settings) -> Self:
        """The teacher of this ONNX file.

        Raises:
            ModelError: not exactly one input with a free first dimension, or no output `logits`.
            EngineError: the engine cannot load it.
        """
        engine = OnnxEngine(model)
        shapes = [shape for _, shape in engine.inputs.values()]
        if len(shapes) != 1 or not shapes[0] or shapes[0][0] is not None:
            raise ModelError(
                "a teacher needs one input",
                expected="shape [N, ...] with N free",
                got=shapes,
                where="teacher",
                fix="export it with one input and a free batch",
            )
        if OUTPUT not in engine.outputs:
            raise ModelError(
                "a teacher needs logits",
                expected=f"an output {OUTPUT}",
                got=list(engine.outputs),
                where="teacher",
                fix=f"name its output {OUTPUT}",
            )
        return cls(engine, version=Digest.of(model).hex[:_VERSION_DIGITS], settings=settings)

    def close(self) -> None:
        """Ends the threads, once what they run is done."""
        self._threads.shutdown()

    def describe(self) -> JsonObject:
        """The model's metadata, as the protocol has it."""
        datatype, shape = self._engine.outputs[OUTPUT]
        return {
            "name": NAME,
            "versions": [self.version],
            "platform": "onnxruntime_onnx",
            "inputs": [_described(self._input, self._datatype, self._shape)],
            "outputs": [_described(OUTPUT, datatype, shape)],
        }

    def batch(self, request: InferRequest) -> NDArray[np.generic]:
        """The inputs of a request, `[N, ...]`, if the model can take them.

        Raises:
            MessageError: another number of inputs, another name, or an output that is not there.
            DtypeError, ShapeError, NotFiniteError: not what the model takes.
        """
        tensor = request.inputs[0]
        if len(request.inputs) != 1 or tensor.name != self._input:
            raise MessageError(
                "the model has one input",
                expected=self._input,
                got=", ".join(one.name[:40] for one in request.inputs),
                where="inputs",
            )
        if set(request.outputs) - {OUTPUT}:
            raise MessageError(
                "the model has one output", expected=OUTPUT, got=list(request.outputs), where="outputs"
            )
        if tensor.datatype != self._datatype:
            raise DtypeError(
                "another datatype",
                where=tensor.name,
                expected=self._datatype,
                got=tensor.datatype,
                fix="send what the model takes",
            )
        self._check_shape(tensor)
        dtype = np.dtype(NUMPY_NAMES[tensor.datatype]).newbyteorder("<")
        array = np.frombuffer(tensor.data, dtype).reshape(tensor.shape).astype(dtype.newbyteorder("="))
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise NotFiniteError(
                "inputs hold NaN or infinity",
                where=tensor.name,
                expected="finite numbers",
                got="NaN or infinity",
                fix="drop these inputs",
            )
        return array

    async def logits(self, batch: NDArray[np.generic]) -> NDArray[np.float32]:
        """The logits `[N, C]` of a checked batch.

        Raises:
            DeadlineError: too many requests wait.
            EngineError: the engine failed, or gave something else than logits.
        """
        if self._waiting >= self._settings.max_waiting:
            raise DeadlineError(
                "the teacher is busy",
                expected="fewer requests at once",
                fix="ask again later",
                where="teacher",
                got="too many",
            )
        self._waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, self._run, batch)
        finally:
            self._waiting -= 1

    def answer(
        self, request: InferRequest, logits: NDArray[np.float32], parameters: JsonObject
    ) -> InferResponse:
        """The response to a request."""
        data = logits.astype("<f4", copy=False).tobytes()
        return InferResponse(
            model=NAME,
            version=self.version,
            id=request.id,
            outputs=(Tensor(OUTPUT, "FP32", logits.shape, data),),
            parameters=parameters,
        )

    def _run(self, batch: NDArray[np.generic]) -> NDArray[np.float32]:
        found = self._engine.run({self._input: batch})[OUTPUT].astype(np.float32)
        if found.ndim != _RANK_OF_LOGITS or len(found) != len(batch) or not np.isfinite(found).all():
            raise EngineError(
                "the teacher gave no logits",
                expected=f"finite [{len(batch)}, C]",
                got=found.shape,
                where="teacher",
                fix="look at the teacher: it must answer with finite rows",
            )
        return found

    def _check_shape(self, tensor: Tensor) -> None:
        most = self._settings.max_batch
        fits = len(tensor.shape) == len(self._shape) and all(
            wanted is None or wanted == got for wanted, got in zip(self._shape, tensor.shape, strict=True)
        )
        if not fits or not 1 <= tensor.shape[0] <= most:
            wanted = ["N", *("?" if dim is None else dim for dim in self._shape[1:])]
            raise ShapeError(
                "another shape",
                where=tensor.name,
                expected=f"{wanted} with N from 1 to {most}",
                got=list(tensor.shape),
                fix="send what the model takes",
            )


def _described(name: str, datatype: str, shape: tuple[int | None, ...]) -> JsonObject:
    return {"name": name, "datatype": datatype, "shape": [-1 if dim is None else dim for dim in shape]}
