"""What a server and its models are, as clients of the protocol ask for it.

Sources: the Open Inference Protocol v2 (REST), model metadata; Triton's model configuration, of which only what is true here
is told.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.oip import CODECS as OFFERED
from edgestill.core.oip import NUMPY_NAMES
from edgestill.infer.payload import available

if TYPE_CHECKING:
    from edgestill.core.jsonio import Json, JsonObject
    from edgestill.infer.serving.served import Port, Served
    from edgestill.infer.serving.waiting import Capacity


@dataclass(frozen=True, slots=True, kw_only=True)
class About:
    """The server itself.

    Attributes:
        name: of the program.
        version: of it.
        who: it is, in refusals.
        nothing: why a model is not there, where none is at all.
        needs_token: whether inference asks for a bearer token.
    """

    name: str
    version: str
    who: str = "this server"
    nothing: str = "nothing is served here"
    needs_token: bool = True


def metadata(served: Served) -> JsonObject:
    """Name, versions, inputs and outputs."""
    return {
        "name": served.name,
        "versions": [served.version],
        "platform": served.platform,
        "inputs": [_tensor(served.input, _codecs(served.input))],
        "outputs": [_tensor(port) for port in served.outputs],
    }


def config(served: Served, capacity: Capacity) -> JsonObject:
    """The model's configuration in Triton's words; dimensions are told without the batch's."""
    batching: JsonObject = {
        "preferred_batch_size": [capacity.most_rows],
        "max_queue_delay_microseconds": int(capacity.linger * 1e6),
    }
    return {
        "name": served.name,
        "platform": served.platform,
        "max_batch_size": capacity.most_asked,
        "input": [_configured(served.input)],
        "output": [_configured(port) for port in served.outputs],
        "dynamic_batching": batching,
        "instance_group": [{"kind": "KIND_CPU", "count": capacity.threads}],
    }


def index(served: Served) -> JsonObject:
    """The model's entry in the list of all."""
    return {"name": served.name, "version": served.version, "state": "READY", "reason": ""}


def _codecs(port: Port) -> JsonObject:
    """The codecs in which its inputs may be sent."""
    dtype = np.dtype(NUMPY_NAMES[port.datatype])
    shape = tuple(1 if dim is None else dim for dim in port.shape[1:])
    names = available(dtype, shape)
    return {OFFERED: list(names)} if names else {}


def _tensor(port: Port, more: JsonObject | None = None) -> JsonObject:
    told: JsonObject = {"name": port.name, "datatype": port.datatype, "shape": _dims(port.shape)}
    more = more or {}
    if port.labels:
        more["labels"] = list(port.labels)
    if port.by_name:
        more["by_name"] = True
    return told | ({"parameters": more} if more else {})


def _configured(port: Port) -> JsonObject:
    return {"name": port.name, "data_type": f"TYPE_{port.datatype}", "dims": _dims(port.shape[1:])}


def _dims(shape: tuple[int | None, ...]) -> list[Json]:
    return [-1 if dim is None else dim for dim in shape]
