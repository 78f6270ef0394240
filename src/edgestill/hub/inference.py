"""The teacher's endpoints: `/v2/...` of the Open Inference Protocol (`infer.serving`), as this hub lets callers in.

Health and metadata are open to anybody; to infer takes a device's certificate or credential, or a token whose role may operate. A device may say in
the request's parameters why it asks (`purpose`: `escalation` or `audit`) and whether the hub may keep what it sends (`retain`).
That keeping fails never costs a device its answer.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, cast, final

from sqlalchemy.exc import SQLAlchemyError
from starlette.requests import Request

from edgestill.core.errors import MessageError
from edgestill.hub import evidence, registry
from edgestill.hub.access import bearer, calling_device, require
from edgestill.hub.certificates import shown_in
from edgestill.hub.operators import TOKEN
from edgestill.hub.teacher import NAME
from edgestill.infer.serving.app import App
from edgestill.infer.serving.limits import Rate, RateLimit
from edgestill.infer.serving.served import LOGITS

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.oip import InferRequest
    from edgestill.hub.service import Hub
    from edgestill.infer.serving.app import Scope
    from edgestill.infer.serving.endpoint import Question
    from edgestill.infer.serving.served import Rows

log: Final = logging.getLogger(__name__)

PURPOSES: Final = ("escalation", "audit")


def create(hub: Hub) -> App:
    """The application for every path under `/v2` of this hub."""
    rate = Rate(hub.settings.infer_rate, hub.settings.infer_burst)
    return App(
        hub.endpoint,
        gate=Entrance(hub),
        limit=RateLimit(rate, clock=hub.clock),
        max_body=hub.settings.max_infer,
    )


@final
@dataclass(frozen=True, slots=True)
class Entrance:
    """Lets devices and the operator in."""

    hub: Hub

    async def admit(self, scope: Scope) -> Asker:
        """The device or the operator who asks, if the operator's role allows it.

        Raises:
            AccessError: neither.
        """
        request = Request(scope)
        if shown_in(scope) is None and bearer(request).startswith(TOKEN):
            return Asker(self.hub, None, (await require(request, "operate")).name)
        return Asker(self.hub, (await calling_device(request)).id)


@final
@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks the teacher.

    Attributes:
        hub: that is asked.
        device: its id; None for an operator, who leaves no evidence.
        operator: the operator's name.
    """

    hub: Hub
    device: str | None
    operator: str = ""

    @property
    def caller(self) -> str:
        """Whom the rate is counted against."""
        return f"operator {self.operator}" if self.device is None else f"device {self.device}"

    def check(self, request: InferRequest) -> None:
        """Refuses a purpose that nobody has.

        Raises:
            MessageError: another than `PURPOSES`.
        """
        purpose = _purpose(request)
        if purpose not in PURPOSES:
            raise MessageError(
                "unknown purpose",
                where="parameters",
                expected=" or ".join(PURPOSES),
                got=repr(purpose)[:80],
            )

    async def answered(self, question: Question, rows: Rows) -> JsonObject:
        """Keeps inputs and logits as evidence where the device says so; how many were kept."""
        kept = 0
        # what an adapter is asked with is no input, and what it says no word of the teacher
        asked = question.served.name == NAME and question.request.parameters.get("retain") is True
        if self.device is not None and asked:
            logits = cast("NDArray[np.float32]", rows.outputs[LOGITS])
            kept = await _retain(self.hub, _asked(self.device, question, logits))
        log.debug(
            "%s answers %d inputs of %s, %s; %d are kept",
            question.served.name,
            len(question.batch),
            self.caller,
            _purpose(question.request),
            kept,
        )
        return {"retained": kept}


async def _retain(hub: Hub, asked: evidence.Asked) -> int:
    try:
        async with hub.database.write() as connection:
            await registry.require_standing(connection, asked.device)
            return await evidence.keep_samples(
                connection, asked, now=hub.clock.now(), most=hub.settings.max_samples
            )
    except SQLAlchemyError:
        log.exception("evidence of %s could not be kept", asked.device)
        return 0


def _asked(device: str, question: Question, logits: NDArray[np.float32]) -> evidence.Asked:
    # the inputs as the model got them: a payload is not evidence of its own
    inputs = question.batch
    return evidence.Asked(
        device=device,
        purpose=str(_purpose(question.request)),
        request=question.request.id,
        datatype=question.served.input.datatype,
        shape=inputs.shape[1:],
        inputs=[row.astype(row.dtype.newbyteorder("<"), copy=False).tobytes() for row in inputs],
        logits=[row.astype("<f4").tobytes() for row in logits],
    )


def _purpose(request: InferRequest) -> object:
    return request.parameters.get("purpose", PURPOSES[0])
