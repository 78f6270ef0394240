"""A model behind the Open Inference Protocol as a `Predict`: the teacher of a cascade, wherever it runs.

- Tensors travel as raw bytes. A server that refuses these, or fails on them, is asked again with JSON tensors, once, over
  another connection; if that works, it is remembered. A server that has taken raw bytes is never asked in JSON.
- What comes back is believed only if it is `[N, C]` of finite numbers for the N inputs that were sent, C as before (or
  as given); anything else is a `RefusedError`, never an answer. The temperature makes probabilities of the logits here;
  an output named `probabilities` holds them already, and its rows must be that: at least 0, and 1 in sum.
- Where the caller brings a coder and the server's metadata offer codecs, inputs travel as few bytes. The offer is asked for
  once, or again after a while where the server was not able to say. A payload that is refused is followed by the numbers
  themselves; where those are taken, the server gets no more payloads.
- A server of ours tells who decided. What its teacher did not say alone is an answer, and no word of the teacher: NaN rows in `teacher`.
- The deadline of the caller, the timeout of the model, the breaker and the data budget each can keep the question from
  being asked, and end it.
- The breaker counts what speaks against the peer: no connection, no answer in time, a failing server, garbage, or that it
  does not have the model. That the question itself was refused speaks against the question.

Sources: the Open Inference Protocol v2 (REST) and its binary tensor data extension; see `core.oip`.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http import HTTPStatus
from typing import TYPE_CHECKING, Final, final
from urllib.parse import quote

import numpy as np

from edgestill.core.answer import VOICES, Answer
from edgestill.core.errors import (
    DeadlineError,
    DtypeError,
    MessageError,
    NotFiniteError,
    RefusedError,
    SettingError,
    ShapeError,
    SpentError,
)
from edgestill.core.jsonio import Fields, parse_object
from edgestill.core.oip import (
    CODEC,
    CODECS,
    DATATYPE_OF,
    HEADER,
    MAX_RANK,
    MAX_TENSORS,
    NUMPY_NAMES,
    SHAPE,
    InferRequest,
    InferResponse,
    Tensor,
)
from edgestill.core.protocols import Request
from edgestill.link.control import bearer
from edgestill.link.exchange import ABSENT, Reply, accepted, exchange

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock, Transport
    from edgestill.link.allowance import Budget, Held
    from edgestill.link.breaker import Guard

PROBABILITIES: Final = "probabilities"
SLACK: Final = 1e-3
"""By which the sum of a row of probabilities may miss 1: some servers round them."""
MAX_CLASSES: Final = 100_000
MAX_CODECS: Final = 64
LOOK_AGAIN: Final = 60.0
"""Seconds after which a server that could not say what it offers is asked once more."""
CODING: Final = "payload"
"""Where the time was lost if the server was not asked at all."""
MARGIN: Final = 0.9
"""Of the time that is left, for the server; the rest is for the way."""
MAX_TIERS: Final = 16
MAX_TOLD: Final = 1024
LONGEST_PAUSE: Final = 30.0
"""Seconds that a model which failed should be left alone, at most: a device is back soon after its cloud is."""
MAX_HEAD_BYTES: Final = 65_536
BYTES_PER_NUMBER: Final = 32  # of JSON at its most talkative
MAX_ANSWER_BYTES: Final = 64_000_000

Coder = Callable[["NDArray[np.generic]", Sequence[str], float], "tuple[str, tuple[bytes, ...]] | None"]
"""A batch, codecs that are offered, and monotonic time, to the codec and the bytes of each input (`infer.payload.Coder`)."""

_FLOATS: Final = frozenset({"FP16", "FP32", "FP64"})
# of servers that do not know raw tensors: malformed, of a kind they do not take, or not the JSON they expect; MLServer fails
# (500) when it wants to tell of bytes that are no text
_BINARY_REFUSALS: Final = frozenset(
    {
        HTTPStatus.BAD_REQUEST,
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        HTTPStatus.UNPROCESSABLE_ENTITY,
        HTTPStatus.INTERNAL_SERVER_ERROR,
    }
)


@final
class RemoteModel:
    """A model on a server.

    Args:
        transport: carries the questions.
        url: of the server, such as `https://hub.example`; `/v2/models/MODEL/infer` is appended.
        model: its name there.
        clock: for deadlines and latencies.
        timeout: seconds for one question, where the caller's deadline is not earlier.
        credential: shown as a bearer token; None shows nothing.
        input: the name of the model's input.
        output: the name of the output with the logits, `[N, C]`; `probabilities` are taken as they are.
        temperature: that the logits are divided by, above 0; of no use for probabilities.
        classes: C; None takes it from the first answer.
        allowance: counts the bodies of questions and answers; a question that does not fit is not asked.
        breaker: guards the model; share one among those who ask the same one.
        coder: makes few bytes of a batch, in one of the codecs that the server offers, or None; None sends the numbers.
        is_teacher: whether a server that does not tell who decided is taken for the teacher, rather than for another student.
        parameters: of every request, such as `{"purpose": "escalation", "retain": True}`.

    Raises:
        SettingError: a temperature or a credential that cannot be used.
    """

    def __init__(
        self,
        transport: Transport,
        url: str,
        *,
        model: str,
        clock: Clock,
        timeout: float,
        credential: str | None = None,
        input: str = "input",  # noqa: A002  # the protocol's own word
        output: str = "logits",
        temperature: float = 1.0,
        classes: int | None = None,
        allowance: Budget | None = None,
        breaker: Guard | None = None,
        coder: Coder | None = None,
        is_teacher: bool = True,
        parameters: JsonObject | None = None,
    ) -> None:
        if not 0 < temperature < float("inf"):
            raise SettingError(
                "a temperature out of range",
                expected="above 0, finite",
                got=temperature,
                where="temperature",
                fix="choose 1 where nothing was calibrated",
            )
        self._transport = transport
        self._model_url = f"{url.rstrip('/')}/v2/models/{quote(model, safe='')}"
        self._url = f"{self._model_url}/infer"
        self._clock = clock
        self._timeout = timeout
        self._headers = {} if credential is None else bearer(credential)
        self._input = input
        self._output = output
        self._temperature = temperature
        self._classes = classes
        self._allowance = allowance
        self._breaker = breaker
        self._parameters = dict(parameters or {})
        self._coder = coder
        self._voice = "teacher" if is_teacher else "student"
        self._offered: tuple[str, ...] | None = (
            () if coder is None else None
        )  # None until the server has said it
        self._binary: bool | None = None  # None until the server has shown what it takes
        self._look_at = -math.inf
        self._each: float | None = None
        self._sent = 0
        self._lock = threading.Lock()

    def predict(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Answer:
        """Asks the server about a batch.

        Args:
            batch: `[N, ...]`, N at least 1, of a datatype that the protocol has.
            deadline: monotonic time by which the caller needs the answer.

        Raises:
            ShapeError, DtypeError, NotFiniteError: a batch that cannot be asked about.
            UnreachableError: no connection, or the breaker is open.
            DeadlineError: no answer in time.
            SpentError: the data budget does not allow the question.
            RefusedError: the server says no, or its answer is none.
            AccessError, NotFoundError: it does not know us, or the model.
        """
        start = self._clock.monotonic()
        until = start + self._timeout if deadline is None else min(deadline, start + self._timeout)
        tensor = _tensor(self._input, batch)
        given, told = self._guarded(batch, tensor, until)
        voices = _voices(told, len(batch), self._voice)
        if self._output == PROBABILITIES:
            probabilities = given.astype(np.float32)
        else:
            probabilities = _softmax(given, self._temperature)
        return Answer(
            probabilities=probabilities,
            confidence=probabilities.max(axis=1),
            decided_by=voices,
            alpha=np.ones(len(batch), dtype=np.float32),
            teacher=np.where(np.array(voices)[:, None] == "teacher", probabilities, np.float32(np.nan)),
            tiers=_tiers(told),
            latency=self._clock.monotonic() - start,
        )

    def bytes_each(self, batch: NDArray[np.generic]) -> int:
        """What asking about one input of a batch sends: as much as inputs lately took, and before that its numbers."""
        return batch[0].nbytes if self._each is None else round(self._each)

    def take_sent(self) -> int:
        """Bytes of the bodies that were sent since this was last asked, be they answered or not."""
        with self._lock:
            sent, self._sent = self._sent, 0
        return sent

    def _guarded(
        self, batch: NDArray[np.generic], tensor: Tensor, until: float
    ) -> tuple[NDArray[np.float64], JsonObject]:
        """The rows and what the server tells beside them, unless the breaker is open; tells it how the peer did."""
        self._left(until)  # a deadline that has passed already does not speak against the peer
        if self._coder is None:  # what a payload takes is known once it is made
            self._refuse_if_it_does_not_fit(tensor)
        if self._breaker is None:
            return self._rows(self._asked(batch, tensor, until), tensor.shape[0])
        self._breaker.enter(self._url)
        answered: bool | None = False
        try:
            reply = self._asked(batch, tensor, until)
            answered = _speaks_of_the_question(reply.status)
            rows = self._rows(reply, tensor.shape[0])
            answered = True
        except SpentError:
            answered = None  # our own budget says nothing about the peer
            raise
        except DeadlineError as error:
            answered = None if error.where == CODING else False  # nor does our own slowness
            raise
        finally:
            self._breaker.leave(answered=answered)
        return rows

    def _asked(self, batch: NDArray[np.generic], tensor: Tensor, until: float) -> Reply:
        """What the server says to the batch, as a payload where it takes one."""
        coded = self._coded(batch, tensor, until)
        self._refuse_if_it_does_not_fit(coded or tensor)
        if coded is None:
            return self._ask(tensor, until)
        reply = self._send(coded, until, binary=True)
        if reply.status not in _BINARY_REFUSALS:
            if not reply.is_refusal:
                self._binary = True
            return reply
        self._refuse_if_it_does_not_fit(tensor)
        again = self._ask(tensor, until)
        if not again.is_refusal:
            self._offered = ()
        return again

    def _coded(self, batch: NDArray[np.generic], tensor: Tensor, until: float) -> Tensor | None:
        if self._coder is None or self._binary is False:
            return None
        if self._offered is None and self._clock.monotonic() >= self._look_at:
            self._look_at = self._clock.monotonic() + LOOK_AGAIN
            self._offered = self._offer(until)
        made = self._coder(batch, self._offered, until) if self._offered else None
        if self._clock.monotonic() >= until:
            raise DeadlineError(
                "no time left to ask",
                where=CODING,
                expected="time for an answer",
                got="a batch that took as long to code",
            )
        if made is None:
            return None
        codec, parts = made
        return Tensor.of_strings(tensor.name, parts, {CODEC: codec, SHAPE: list(tensor.shape[1:])})

    def _offer(self, until: float) -> tuple[str, ...] | None:
        """The codecs of the model's input, as its metadata have them; None where the server is not able to say now."""
        request = Request("GET", self._model_url, dict(self._headers))
        half = self._left(until) / 2
        try:
            reply = exchange(self._transport, request, timeout=half, max_bytes=MAX_HEAD_BYTES)
        except DeadlineError:
            return None
        self._charge(len(reply.body))
        if reply.is_refusal:
            unable = reply.status >= HTTPStatus.INTERNAL_SERVER_ERROR or reply.status in {
                HTTPStatus.TOO_MANY_REQUESTS,
                HTTPStatus.NOT_FOUND,
            }
            return None if unable else ()
        return _codecs(reply.body, self._input)

    def _ask(self, tensor: Tensor, until: float) -> Reply:
        """What the server says in the end, be it a refusal."""
        reply = self._send(tensor, until, binary=self._binary is not False)
        if self._binary is None and reply.status in _BINARY_REFUSALS:
            reply = self._send(tensor, until, binary=False)
            if not reply.is_refusal:
                self._binary = False
        elif self._binary is None and not reply.is_refusal:
            self._binary = True
        return reply

    def _send(self, tensor: Tensor, until: float, *, binary: bool) -> Reply:
        # the server need not work for an asker who has given up, and a gateway answers alone in time
        parameters = self._parameters | {"timeout_ms": max(1, int(1e3 * MARGIN * self._left(until)))}
        question = InferRequest(
            inputs=(tensor,), outputs=(self._output,), parameters=parameters, binary=binary
        )
        body, json_length = question.encode(binary=binary)
        kind = "application/json" if json_length is None else "application/octet-stream"
        headers = {"content-type": kind, **self._headers}
        if (
            binary and self._binary is None
        ):  # a server that fails on it may hang up, and the next question must go through
            headers["connection"] = "close"
        if json_length is not None:
            headers[HEADER] = str(json_length)
        request = Request("POST", self._url, headers, body)
        with self._held(len(body)) as held:
            timeout = self._left(until)
            self._charge(len(body), held)
            self._count_sent(len(body), tensor.shape[0])
            reply = exchange(
                self._transport, request, timeout=timeout, max_bytes=self._bound(tensor.shape[0])
            )
        self._charge(len(reply.body))
        return reply

    def _rows(self, reply: Reply, count: int) -> tuple[NDArray[np.float64], JsonObject]:
        accepted(reply, Request("POST", self._url), documented=ABSENT)
        try:
            length = _length(reply.headers.get(HEADER))
            answer = InferResponse.decode(reply.body, length)
        except MessageError as error:
            raise self._garbage("an answer that is none", expected=error.expected, got=error.what) from error
        found = next((one for one in answer.outputs if one.name == self._output), None)
        if found is None:
            raise self._garbage(
                "an answer without the output",
                expected=self._output,
                got=[one.name for one in answer.outputs],
            )
        return self._checked(found, count), answer.parameters

    def _checked(self, found: Tensor, count: int) -> NDArray[np.float64]:
        wanted = (count, self._classes or "C")
        if (
            found.datatype not in _FLOATS
            or len(found.shape) != len(wanted)
            or found.shape[0] != count
            or not 1 <= found.shape[1] <= MAX_CLASSES
            or found.shape[1] != (self._classes or found.shape[1])
        ):
            raise self._garbage(
                "an answer of another shape",
                expected=f"floats [{count}, {self._classes or 'C'}]",
                got=f"{found.datatype} {list(found.shape)}",
            )
        little = np.dtype(NUMPY_NAMES[found.datatype]).newbyteorder("<")
        logits = np.frombuffer(found.data, dtype=little).reshape(found.shape).astype(np.float64)
        if not np.isfinite(logits).all():
            raise self._garbage(
                "an answer that is not finite", expected="finite logits", got="NaN or infinity"
            )
        if self._output == PROBABILITIES and not _are_probabilities(logits):
            raise self._garbage(
                "an answer that is no set of probabilities",
                expected="rows of at least 0 that sum to 1",
                got="other numbers",
            )
        self._classes = found.shape[1]
        return logits

    def _garbage(self, what: str, *, expected: object, got: object) -> RefusedError:
        return RefusedError(what, where=f"{self._url}: {self._output}", expected=expected, got=got)

    def _left(self, until: float) -> float:
        left = until - self._clock.monotonic()
        if left <= 0:
            raise DeadlineError(
                "no time left to ask", where=self._url, got=f"{left:.3f} s", expected="time for an answer"
            )
        return left

    def _refuse_if_it_does_not_fit(self, tensor: Tensor) -> None:
        if self._allowance is not None:
            self._allowance.require(len(tensor.data))

    @contextmanager
    def _held(self, count: int) -> Iterator[Held | None]:
        """Holds the bytes of a question while it goes: others that are asked at the same time cannot have them."""
        if self._allowance is None:
            yield None
            return
        held = self._allowance.reserve(count)
        try:
            yield held
        finally:
            self._allowance.release(held)

    def _count_sent(self, count: int, inputs: int) -> None:
        with self._lock:
            self._sent += count
            each = count / max(1, inputs)
            self._each = each if self._each is None else 0.9 * self._each + 0.1 * each

    def _charge(self, count: int, held: Held | None = None) -> None:
        if self._allowance is not None:
            self._allowance.charge(count, held)

    def _bound(self, count: int) -> int:
        numbers = count * (self._classes or MAX_CLASSES)
        return min(MAX_HEAD_BYTES + numbers * BYTES_PER_NUMBER, MAX_ANSWER_BYTES)


def _speaks_of_the_question(status: int) -> bool:
    """Whether a refusal is one of this question alone; a model that is not there is missed by every question."""
    return (
        HTTPStatus.BAD_REQUEST <= status < HTTPStatus.INTERNAL_SERVER_ERROR and status != HTTPStatus.NOT_FOUND
    )


def _tensor(name: str, batch: NDArray[np.generic]) -> Tensor:
    if not 1 <= batch.ndim <= MAX_RANK or not batch.size:
        raise ShapeError(
            "a batch that cannot be asked about",
            where=name,
            expected=f"1 to {MAX_RANK} dimensions, none empty",
            got=batch.shape,
            fix="give what the model takes",
        )
    datatype = DATATYPE_OF.get(batch.dtype.name)
    if datatype is None:
        raise DtypeError(
            "a batch that cannot be asked about",
            where=name,
            expected=", ".join(DATATYPE_OF),
            got=batch.dtype,
            fix="give what the model takes",
        )
    if batch.dtype.kind == "f" and not np.isfinite(batch.astype(np.float64)).all():
        raise NotFiniteError(
            "a batch with NaN or infinity",
            where=name,
            expected="finite numbers",
            got="NaN or infinity",
            fix="drop these inputs",
        )
    little = batch.astype(batch.dtype.newbyteorder("<"), copy=False)
    return Tensor(name, datatype, batch.shape, np.ascontiguousarray(little).tobytes())


def _softmax(logits: NDArray[np.float64], temperature: float) -> NDArray[np.float32]:
    # shifted before it is divided: the largest is 0 whatever the temperature, and what overflows is as good as never
    with np.errstate(over="ignore", under="ignore"):
        powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / temperature)
        probabilities: NDArray[np.float32] = (powers / powers.sum(axis=1, keepdims=True)).astype(np.float32)
    return probabilities


def _are_probabilities(rows: NDArray[np.float64]) -> bool:
    return bool(rows.min() >= 0 and np.abs(rows.sum(axis=1) - 1).max() <= SLACK)


def _codecs(metadata: bytes, name: str) -> tuple[str, ...]:
    """Those that the metadata offer for the input of this name; none where they make no sense."""
    try:
        fields = Fields(parse_object(metadata, where="metadata", max_bytes=MAX_HEAD_BYTES), "metadata")
        inputs = fields.objects("inputs", at_most=MAX_TENSORS)
        ours = next((one for one in inputs if one.text("name") == name), None)
        if ours is None or not ours.has("parameters") or not ours.inner("parameters").has(CODECS):
            return ()
        return tuple(map(str, ours.inner("parameters").items(CODECS, at_most=MAX_CODECS)))
    except MessageError:
        return ()


def _voices(parameters: JsonObject, count: int, otherwise: str) -> tuple[str, ...]:
    """Who decided each answer, as a server of ours tells it."""
    told = parameters.get("decided_by")
    if isinstance(told, list) and len(told) == count and all(one in VOICES for one in told):
        return tuple(map(str, told))
    return (otherwise,) * count


def _tiers(parameters: JsonObject) -> tuple[str, ...]:
    """Whom the server asked, as one of ours tells it; what is none of that is left out."""
    told = parameters.get("tiers")
    texts = [one for one in told[:MAX_TOLD] if isinstance(one, str)] if isinstance(told, list) else []
    names = dict.fromkeys(name for text in texts for name in text[:MAX_TOLD].split(",") if name.isprintable())
    return tuple(name for name in names if name)[:MAX_TIERS]


def _length(header: str | None) -> int | None:
    if header is None:
        return None
    if not header.isdecimal() or len(header) > len(str(MAX_ANSWER_BYTES)):
        raise MessageError("a header that is no length", where=HEADER, expected="a number", got=header[:40])
    return int(header)
