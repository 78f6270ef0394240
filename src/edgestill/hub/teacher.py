"""The teacher: a large model behind the Open Inference Protocol v2, for devices that are unsure.

- One model named `teacher`, with one input and an output `logits` `[N, C]`; its version is the beginning of its digest.
- Adapters, each named `adapter-...` by its own digest (`infer.adapter`), for devices from which nothing but features may come.
- How it is asked, batched and described is `infer.serving`'s; it runs in threads of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import edgestill
from edgestill.core.digest import Digest
from edgestill.core.errors import ModelError, within
from edgestill.infer import adapter
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.serving.descriptions import About
from edgestill.infer.serving.endpoint import Endpoint
from edgestill.infer.serving.served import of_engine
from edgestill.infer.serving.waiting import Capacity

if TYPE_CHECKING:
    from collections.abc import Mapping

    from edgestill.core.protocols import Clock
    from edgestill.hub.settings import Settings
    from edgestill.infer.serving.served import Served

NAME: Final = "teacher"

_ABOUT: Final = About(
    name="edgestill-hub", version=edgestill.__version__, who="this hub", nothing="this hub has no teacher"
)
_VERSION_DIGITS: Final = 12


def endpoint_of(
    model: bytes | None, settings: Settings, *, clock: Clock, adapters: Mapping[str, bytes] | None = None
) -> Endpoint:
    """The endpoint of a hub.

    Args:
        model: the teacher's ONNX file; None where there is none. Without any model the endpoint is not ready.
        settings: how much it takes on.
        clock: for deadlines.
        adapters: what names them in errors -> ONNX files, as `Packed.adapter` has them; the same one twice is one.

    Raises:
        ModelError: not exactly one input with a free first dimension, or no output `logits`; or an adapter that is none.
        EngineError: the engine cannot load it.
    """
    served = list({file: _adapter(name, file) for name, file in (adapters or {}).items()}.values())
    if model is not None:
        version = Digest.of(model).hex[:_VERSION_DIGITS]
        served.append(of_engine(OnnxEngine(model), name=NAME, version=version))
    capacity = Capacity(
        most_rows=settings.batch_rows,
        linger=settings.batch_linger,
        threads=settings.teacher_threads,
        most_asked=settings.max_batch,
        most_bytes=settings.max_infer,
        most_waiting=settings.max_waiting,
        most_waiting_rows=settings.max_waiting_rows,
    )
    return Endpoint(served, about=_ABOUT, capacity=capacity, clock=clock)


def _adapter(path: str, file: bytes) -> Served:
    """An adapter under its name."""
    digest = Digest.of(file)
    with within(path):
        engine, name = OnnxEngine(file), adapter.model_name(digest)
    taken = {taken: (datatype, len(shape)) for taken, (datatype, shape) in engine.inputs.items()}
    if taken != {adapter.FEATURES: ("FP16", 2)} or adapter.LOGITS not in engine.outputs:  # [N, D]
        raise ModelError(
            "not an adapter",
            where=path,
            expected=f"one input {adapter.FEATURES}, FP16 [N, D], and an output {adapter.LOGITS}",
            got={one: f"{kind}, {rank} axes" for one, (kind, rank) in taken.items()},
            fix="give the file NAME.adapter.onnx that was written beside the bundle",
        )
    return of_engine(engine, name=name, version=digest.hex[:_VERSION_DIGITS], output=adapter.LOGITS)
