"""The teacher: a large model behind the Open Inference Protocol v2, for devices that are unsure.

- One model named `teacher`, with one input and an output `logits` `[N, C]`; its version is the beginning of its digest.
- How it is asked, batched and described is `infer.serving`'s; it runs in threads of its own.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import edgestill
from edgestill.core.digest import Digest
from edgestill.infer.engine import OnnxEngine
from edgestill.infer.serving.endpoint import About, Endpoint
from edgestill.infer.serving.served import of_engine
from edgestill.infer.serving.waiting import Capacity

if TYPE_CHECKING:
    from edgestill.core.protocols import Clock
    from edgestill.hub.settings import Settings

NAME: Final = "teacher"

_ABOUT: Final = About(
    name="edgestill-hub", version=edgestill.__version__, who="this hub", nothing="this hub has no teacher"
)
_VERSION_DIGITS: Final = 12


def endpoint_of(model: bytes | None, settings: Settings, *, clock: Clock) -> Endpoint:
    """The endpoint of a hub.

    Args:
        model: the teacher's ONNX file; None where there is none, and the endpoint is not ready.
        settings: how much it takes on.
        clock: for deadlines.

    Raises:
        ModelError: not exactly one input with a free first dimension, or no output `logits`.
        EngineError: the engine cannot load it.
    """
    served = []
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
