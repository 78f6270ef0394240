"""Models under their names: what is told of them, and bytes to rows to bytes.

- A question is checked against what the model takes before anything is run: number and name of the inputs, datatype, shape,
  batch, finite numbers, the outputs asked for, the deadline.
- Nothing here waits: `submit` gives a future. Nothing here knows who asks.

Source: the Open Inference Protocol v2 (REST), with its binary tensor data extension.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import NotFoundError
from edgestill.core.jsonio import Fields
from edgestill.core.oip import InferRequest, InferResponse
from edgestill.infer.serving import descriptions
from edgestill.infer.serving.batching import Batcher
from edgestill.infer.serving.checks import checked_batch, to_tensor, wanted_outputs
from edgestill.infer.serving.openapi import document
from edgestill.infer.serving.waiting import Capacity

if TYPE_CHECKING:
    from collections.abc import Sequence
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.core.protocols import Clock
    from edgestill.infer.serving.descriptions import About
    from edgestill.infer.serving.places import Place
    from edgestill.infer.serving.served import Port, Rows, Served

TIMEOUT: Final = "timeout_ms"
EXTENSIONS: Final = ("binary_tensor_data", "model_configuration", "model_repository")


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Question:
    """A request that a model can answer.

    Attributes:
        served: the model.
        request: as it came.
        batch: the input, `[N, ...]`.
        outputs: that are sent back.
        deadline: monotonic; None waits.
    """

    served: Served
    request: InferRequest
    batch: NDArray[np.generic]
    outputs: tuple[Port, ...]
    deadline: float | None


@final
class Endpoint:
    """The models of a server. Close it when nobody asks any more.

    Args:
        models: each under another name; none at all is an endpoint that is not ready.
        about: the server.
        capacity: how much each of them takes on.
        clock: for deadlines.
    """

    def __init__(
        self, models: Sequence[Served], *, about: About, capacity: Capacity | None = None, clock: Clock
    ) -> None:
        self.about = about
        self.capacity = capacity or Capacity()
        self._models = {model.name: model for model in models}
        self._clock = clock
        self._batchers = {
            name: Batcher(model, capacity=self.capacity, clock=clock) for name, model in self._models.items()
        }
        self._draining = False
        for model in models:
            descriptions.metadata(model)  # codecs are tried now, and not while somebody waits

    @property
    def models(self) -> tuple[Served, ...]:
        """What is served."""
        return tuple(self._models.values())

    @property
    def ready(self) -> bool:
        """Whether questions are answered: there is a model, and the end is not near."""
        return bool(self._models) and not self._draining

    def drain(self) -> None:
        """Says from now on that it is not ready, and still answers."""
        self._draining = True

    def close(self) -> None:
        """Answers what was taken in, and takes nothing in any more; safe to call twice."""
        self.drain()
        for batcher in self._batchers.values():
            batcher.close()

    def model(self, name: str, version: str = "") -> Served:
        """The model of this name and version; an empty version is any.

        Raises:
            NotFoundError: there is none.
        """
        found = self._models.get(name)
        if found is None or version not in {"", found.version}:
            known = ", ".join(f"{one.name}/{one.version}" for one in self._models.values())
            raise NotFoundError(
                "no such model",
                got=repr(f"{name}/{version}" if version else name)[:80],
                where="models",
                expected=known or f"none: {self.about.nothing}",
                fix=f"name the model that {self.about.who} serves",
            )
        return found

    def tell(self, place: Place) -> tuple[int, Json]:
        """Status and value of everything but inference.

        Raises:
            NotFoundError: no such model.
        """
        if place.kind == "live":
            return 200, {"live": True}
        if place.kind == "ready":
            return 200 if self.ready else 503, {"ready": self.ready}
        if place.kind == "server":
            return 200, self._server()
        if place.kind == "openapi":
            return 200, document(self.models, self.capacity, self.about)
        if place.kind == "index":
            return 200, [descriptions.index(model) for model in self.models]
        return 200, self._of_model(place)

    def question(self, served: Served, body: bytes, json_length: int | None) -> Question:
        """Reads a request and checks it against what the model takes.

        Args:
            served: the model.
            body: uncompressed.
            json_length: the protocol's header, None where it is absent.

        Raises:
            MessageError: not a request, another input, an output that is not there, or a deadline that is none.
            DtypeError, ShapeError, NotFiniteError: not what the model takes.
        """
        request = InferRequest.decode(body, json_length)
        outputs = wanted_outputs(served, request.outputs)
        return Question(
            served=served,
            request=request,
            batch=checked_batch(served.input, request, self.capacity.most_asked, self.capacity.most_bytes),
            outputs=outputs,
            deadline=self._deadline(request.parameters),
        )

    def submit(self, question: Question) -> Future[Rows]:
        """The rows of a question, once they are there.

        Raises:
            DeadlineError: too many questions wait.
        """
        return self._batchers[question.served.name].submit(question.batch, deadline=question.deadline)

    def answer(
        self, question: Question, rows: Rows, parameters: JsonObject | None = None
    ) -> tuple[bytes, int | None]:
        """The response's body, and the length of its JSON where raw tensors follow."""
        beside: JsonObject = {name: list(values) for name, values in rows.told.items()}
        response = InferResponse(
            model=question.served.name,
            version=question.served.version,
            id=question.request.id,
            outputs=tuple(to_tensor(port.name, rows.outputs[port.name]) for port in question.outputs),
            parameters=beside | (parameters or {}),
        )
        return response.encode(binary=question.request.binary)

    def _server(self) -> JsonObject:
        return {
            "name": self.about.name,
            "version": self.about.version,
            "extensions": list(EXTENSIONS),
        }

    def _of_model(self, place: Place) -> JsonObject:
        served = self.model(place.model, place.version)
        if place.kind == "model-ready":
            return {"name": served.name, "ready": self.ready}
        if place.kind == "config":
            return descriptions.config(served, self.capacity)
        return descriptions.metadata(served)

    def _deadline(self, parameters: JsonObject) -> float | None:
        fields = Fields(parameters, "body: parameters")
        if not fields.has(TIMEOUT):
            return None
        return (
            self._clock.monotonic() + fields.number(TIMEOUT, least=0, most=self.capacity.longest * 1e3) / 1e3
        )
