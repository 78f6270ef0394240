"""A request against what a model takes: refused before anything is run, and told what would be right."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from edgestill.core.errors import DtypeError, MessageError, NotFiniteError, ShapeError
from edgestill.core.jsonio import Fields
from edgestill.core.oip import BYTES, CODEC, DATATYPE_OF, MAX_RANK, NUMPY_NAMES, SHAPE, Tensor
from edgestill.infer.payload import Payload, decode

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.oip import InferRequest
    from edgestill.infer.serving.served import Port, Served


def wanted_outputs(served: Served, names: tuple[str, ...]) -> tuple[Port, ...]:
    """The outputs of these names; for no name at all those that need not be named.

    Raises:
        MessageError: the model does not have one of them.
    """
    if not names:
        return tuple(port for port in served.outputs if not port.by_name)
    ports = {port.name: port for port in served.outputs}
    if set(names) - set(ports):
        raise MessageError(
            "the model has one output" if len(ports) == 1 else "the model has other outputs",
            expected=", ".join(ports),
            got=[name[:40] for name in names],
            where="outputs",
        )
    return tuple(ports[name] for name in dict.fromkeys(names))


def checked_batch(port: Port, request: InferRequest, most: int, most_bytes: int) -> NDArray[np.generic]:
    """The input of a request, `[N, ...]`, if it is what the port takes.

    Args:
        port: the model's input.
        request: that was sent.
        most: inputs in one request.
        most_bytes: of inputs that came as a payload, decoded.

    Raises:
        MessageError: another number of inputs, another name, or a payload that is damaged.
        SettingError: a codec that is not known here.
        DtypeError, ShapeError, NotFiniteError: not what it takes.
    """
    tensor = request.inputs[0]
    if len(request.inputs) != 1 or tensor.name != port.name:
        raise MessageError(
            "the model has one input",
            expected=port.name,
            got=", ".join(one.name[:40] for one in request.inputs),
            where="inputs",
        )
    if tensor.datatype == BYTES and CODEC in tensor.parameters:
        return _finite(_decoded(port, tensor, most, most_bytes), tensor.name)
    if tensor.datatype != port.datatype:
        raise DtypeError(
            "another datatype",
            where=tensor.name,
            expected=port.datatype,
            got=tensor.datatype,
            fix="send what the model takes",
        )
    _check_shape(port, tensor.name, tensor.shape, most)
    return _finite(_array(tensor), tensor.name)


def _decoded(port: Port, tensor: Tensor, most: int, most_bytes: int) -> NDArray[np.generic]:
    """Inputs that came as a payload: what each is like is told beside them, and must be what the model takes."""
    told = Fields(tensor.parameters, tensor.name)
    dims = told.items(SHAPE, at_most=MAX_RANK)
    each = Fields({str(place): dim for place, dim in enumerate(dims)}, f"{tensor.name}: {SHAPE}")
    shape = tuple(each.integer(str(place), most=2**31) for place in range(len(dims)))
    _check_shape(port, tensor.name, (*tensor.shape, *shape), most)
    payload = Payload(codec=told.text(CODEC, at_most=40), parts=tensor.strings())
    return decode(payload, np.dtype(NUMPY_NAMES[port.datatype]), shape, at_most=most_bytes)


def _finite(array: NDArray[np.generic], name: str) -> NDArray[np.generic]:
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise NotFiniteError(
            "inputs hold NaN or infinity",
            where=name,
            expected="finite numbers",
            got="NaN or infinity",
            fix="drop these inputs",
        )
    return array


def _check_shape(port: Port, name: str, shape: tuple[int, ...], most: int) -> None:
    fits = len(shape) == len(port.shape) and all(
        got > 0 if wanted is None else wanted == got for wanted, got in zip(port.shape, shape, strict=True)
    )
    if not fits or not 1 <= shape[0] <= most:
        wanted = ["N", *("?" if dim is None else dim for dim in port.shape[1:])]
        raise ShapeError(
            "another shape",
            where=name,
            expected=f"{wanted} with N from 1 to {most}",
            got=list(shape),
            fix="send what the model takes",
        )


def _array(tensor: Tensor) -> NDArray[np.generic]:
    """The tensor's numbers, without a copy where the machine's byte order is the wire's and they lie aligned."""
    dtype = np.dtype(NUMPY_NAMES[tensor.datatype]).newbyteorder("<")
    array = np.frombuffer(tensor.data, dtype).reshape(tensor.shape)
    native = array.astype(dtype.newbyteorder("="), copy=False)
    return np.require(native, requirements="A")


def to_tensor(name: str, rows: NDArray[np.generic]) -> Tensor:
    """Rows as bytes."""
    little = np.ascontiguousarray(rows, dtype=rows.dtype.newbyteorder("<"))
    return Tensor(name, DATATYPE_OF[rows.dtype.name], rows.shape, little.tobytes())
