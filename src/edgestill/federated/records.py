"""Flower's records on their way in: what is read of them is bounded and checked, and a reply is taken or named.

- Flower hands over arrays as npy files. Their header says how much memory is to be made, so it is compared with the
  bytes that are there before an array is made; Python objects are never loaded.
- A reply that is an error, is not what was asked for, or comes from a node that has replied already, is refused. It is
  named and counted, and the round goes on with the others. A reply on which reading breaks down with an error that is
  not ours is refused likewise, and the traceback is in the log: a round belongs to all its clients, and one message
  that our checks did not foresee shall not end it.
- What the other side says ends in logs: one line, of bounded length, without control characters.
"""

from __future__ import annotations

import io
import logging
import math
from typing import TYPE_CHECKING, Final, NamedTuple, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord
from numpy.lib import format as npy

from edgestill.core.errors import EdgestillError, MessageError
from edgestill.core.jsonio import plain
from edgestill.infer.arrayfile import native
from edgestill.learn.statistics import Head

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flwr.app import Message, RecordDict
    from numpy.typing import NDArray

ARRAYS: Final = "arrays"
CONFIG: Final = "config"
ANSWER: Final = "answer"
PROXY: Final = "proxy"
LESSON: Final = "lesson"
METRICS: Final = "metrics"
"""Names of records in messages; the first two are Flower's own."""
COUNT: Final = "num-examples"
"""Flower's name for the weight of a reply."""

MAX_ARRAY_BYTES: Final = 256_000_000
MAX_AXES: Final = 32
MAX_AXIS: Final = MAX_ARRAY_BYTES
MAX_COUNT: Final = 10**9
MAX_REASON: Final = 300
_KINDS: Final = "biuf"

_T = TypeVar("_T")
log = logging.getLogger(__name__)


class Refusal(NamedTuple):
    """A reply that does not count.

    Attributes:
        round: that it came in, counted from 1.
        node: who sent it.
        reason: in one line; it begins with the code of an error of ours where there is one.
    """

    round: int
    node: int
    reason: str


def read_array(array: Array, *, where: str) -> NDArray[np.generic]:
    """The numbers of a Flower array.

    Raises:
        MessageError: no npy file of plain numbers, over a bound, or header and bytes disagree.
    """
    if array.stype != "numpy.ndarray" or len(array.data) > MAX_ARRAY_BYTES:
        raise MessageError(
            "not an array that is read",
            where=where,
            expected=f"numpy.ndarray of at most {MAX_ARRAY_BYTES} bytes",
            got=f"{plain(array.stype[:50])} of {len(array.data)}",
        )
    source = io.BytesIO(array.data)
    try:  # numpy reads a header as a piece of Python, and then raises nearly anything
        version = npy.read_magic(source)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, is_fortran, dtype = header(source)
        _check_header(shape, dtype, len(array.data) - source.tell(), where)
        flat = np.frombuffer(array.data, dtype=dtype, offset=source.tell())
        found: NDArray[np.generic] = native(flat.reshape(shape, order="F" if is_fortran else "C"))
    except EdgestillError:
        raise
    except Exception as error:
        raise MessageError(
            "a damaged array", where=where, expected="an npy file", got=type(error).__name__
        ) from error
    return found


def _check_header(shape: tuple[int, ...], dtype: np.dtype[np.generic], there: int, where: str) -> None:
    """Axes first: a product of what is no number, or of thousands of digits, is no size to compare with."""
    # type(): True is an int, and no length
    if len(shape) > MAX_AXES or any(type(axis) is not int or not 0 <= axis <= MAX_AXIS for axis in shape):
        raise MessageError(
            "an array whose axes are not read",
            where=where,
            expected=f"at most {MAX_AXES} axes of 0 to {MAX_AXIS}",
            got=f"{len(shape)} axes: {str(shape[:4])[:MAX_REASON]}",
        )
    wanted = math.prod(shape) * dtype.itemsize
    if dtype.kind not in _KINDS or wanted != there:
        raise MessageError(
            "an array of another size or kind",
            where=where,
            expected=f"plain numbers, {wanted} bytes (its own header)",
            got=f"{dtype.str}, {there} bytes",
        )


def one_array(content: RecordDict, record: str, name: str) -> NDArray[np.generic]:
    """An array of a record, by both names.

    Raises:
        MessageError: there is none, or as `read_array`.
    """
    found = content.get(record)
    array = found.get(name) if isinstance(found, ArrayRecord) else None
    if not isinstance(array, Array):
        raise MessageError("an array is missing", where=record, expected=name, got=_names(found))
    return read_array(array, where=f"{record}: {name}")


def one_value(content: RecordDict, record: str, name: str, kind: type[_T]) -> _T:
    """A value of a record of settings, by both names.

    Raises:
        MessageError: there is none, or of another type.
    """
    found = content.get(record)
    value = found.get(name) if isinstance(found, ConfigRecord) else None
    if type(value) is not kind:
        raise MessageError(
            "a value is missing", where=record, expected=f"{name}, {kind.__name__}", got=_names(found)
        )
    return value


def counts(content: RecordDict, *names: str) -> list[int]:
    """Counts of the metrics, each in [0, 1e9].

    Raises:
        MessageError: one is missing or out of range.
    """
    found = content.get(METRICS)
    values = [found.get(name) if isinstance(found, MetricRecord) else None for name in names]
    good = [value for value in values if type(value) is int and 0 <= value <= MAX_COUNT]
    if len(good) != len(names):
        raise MessageError(
            "a count is missing or out of range",
            where=METRICS,
            expected=f"{', '.join(names)}: 0 to {MAX_COUNT}",
            got=_names(found),
        )
    return good


def head_record(head: Head) -> ArrayRecord:
    """A head as Flower sends it."""
    return ArrayRecord({"weight": Array(head.weight), "bias": Array(head.bias)})


def read_head(content: RecordDict, record: str = ARRAYS) -> Head:
    """A head from a message; whoever uses it checks its shape (`node.check_head`).

    Raises:
        MessageError: there is none.
    """
    weight, bias = (one_array(content, record, name) for name in ("weight", "bias"))
    return Head(weight.astype(np.float32), bias.astype(np.float32))


def taken(
    replies: Iterable[Message],
    read: Callable[[RecordDict], _T],
    *,
    server_round: int,
    refusals: list[Refusal],
) -> list[tuple[Message, _T]]:
    """The replies that could be read, by node, with what was read of them; the others are added to `refusals`."""
    found: dict[int, tuple[Message, _T]] = {}
    for reply in replies:
        node = reply.metadata.src_node_id
        try:
            if reply.has_error():
                reason = plain(str(reply.error.reason))[:MAX_REASON]
            elif node in found:
                reason = "a second reply"
            else:
                found[node] = (reply, read(reply.content))
                continue
        except EdgestillError as error:
            reason = str(error)
        except Exception as error:
            log.exception("round %d: reading a reply of node %d broke down", server_round, node)
            reason = f"reading it broke down: {type(error).__name__}"
        refusals.append(Refusal(server_round, node, reason))
        log.warning("round %d: a reply of node %d does not count: %s", server_round, node, reason)
    return [found[node] for node in sorted(found)]


def _names(record: object) -> str:
    if not isinstance(record, ArrayRecord | ConfigRecord | MetricRecord):
        return "no such record"
    return plain(", ".join(sorted(map(str, record))))[:MAX_REASON] or "nothing"
