"""Our client in a Flower federation: sums, answers about a shared set, and scores, with onnxruntime and without torch.

| message | asks for | is answered with |
|---|---|---|
| `train` | the sums of the client's samples, of a backbone | `answer`: a `learn.statistics` message |
| `query` | answers about `proxy`, perhaps after a `lesson` | `answer`: an `Answers` message, or a ballot (`learn.votes`) |
| `evaluate` | how a head does, on held-out samples | `metrics`: counts of samples and of right ones |

What the server sends is checked as well. What is refused becomes an error reply of one line: nothing of the client's
data or paths goes into it beyond what our own errors say.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Final, get_args

from flwr.app import ArrayRecord, ConfigRecord, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, EvidenceError, MessageError
from edgestill.federated.answers import Answers, Form
from edgestill.federated.records import (
    ANSWER,
    ARRAYS,
    CONFIG,
    COUNT,
    LESSON,
    METRICS,
    PROXY,
    one_array,
    one_value,
    read_head,
)
from edgestill.learn.votes import Question

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from flwr.app import Context
    from numpy.typing import NDArray

    from edgestill.federated.node import Lesson, Node

_REFUSED: Final = 100  # of the codes that Flower's own errors do not use


def client_app(open_node: Callable[[Context], Node], *, minimum: int = 1) -> ClientApp:
    """A client whose answers follow from a node of ours.

    Args:
        open_node: makes the node of this client, for each message; `context.node_config` says which.
        minimum: samples that sums must cover before they leave the client.
    """
    app = ClientApp()

    @app.train()  # type: ignore[untyped-decorator]  # Flower is not where types are checked
    @_answered
    def train(message: Message, context: Context) -> RecordDict:
        return _sums(message.content, open_node(context), minimum)

    @app.query()  # type: ignore[untyped-decorator]  # as above
    @_answered
    def query(message: Message, context: Context) -> RecordDict:
        reply = _answers(message.content, open_node(context))
        context.state[PROXY] = message.content[PROXY]  # a later lesson is about these inputs
        return reply

    @app.evaluate()  # type: ignore[untyped-decorator]  # as above
    @_answered
    def evaluate(message: Message, context: Context) -> RecordDict:
        return _scores(message.content, open_node(context), context.state)

    return app


def _answered(
    answer: Callable[[Message, Context], RecordDict],
) -> Callable[[Message, Context], Message]:
    """A handler of Flower's out of one of ours: an error of ours becomes an error reply."""

    @wraps(answer)
    def handler(message: Message, context: Context) -> Message:
        try:
            return Message(answer(message, context), reply_to=message)
        except EdgestillError as error:
            return Message(Error(_REFUSED, str(error)), reply_to=message)

    return handler


def _sums(content: RecordDict, node: Node, minimum: int) -> RecordDict:
    like = node.like
    asked = Digest.parse(one_value(content, CONFIG, "backbone", str))
    if asked != like.backbone:
        raise EvidenceError(
            "asked for the sums of another backbone", where=CONFIG, expected=like.backbone, got=asked
        )
    sums = node.statistics().require(minimum)
    try:
        data = sums.to_bytes("float64")
    except EvidenceError:  # too long for one message
        data = sums.to_bytes()
    return RecordDict({ANSWER: ConfigRecord({"statistics": data})})


def _answers(content: RecordDict, node: Node) -> RecordDict:
    form = one_value(content, CONFIG, "form", str)
    if form not in get_args(Form):
        raise MessageError(
            "an unknown form of answers", where=CONFIG, expected=" or ".join(get_args(Form)), got="another"
        )
    proxy = one_array(content, PROXY, "inputs")
    about = Question.about(proxy, one_value(content, CONFIG, "classes", int))
    answer = node.ballot if form == "votes" else node.answers
    said = answer(proxy, about, lesson=_lesson(content, proxy, about))
    return RecordDict({ANSWER: ConfigRecord({"answers": said.to_bytes()})})


def _scores(content: RecordDict, node: Node, state: RecordDict) -> RecordDict:
    """Of the server's head, where it is of this node's backbone, or of what the lesson teaches; and of the node alone."""
    like, record = node.like, content.get(ARRAYS)
    ours = one_value(content, CONFIG, "backbone", str) == str(like.backbone)
    if ours and isinstance(record, ArrayRecord) and len(record):
        head = read_head(content)
    else:
        lesson = None
        if LESSON in content and PROXY in state:
            proxy = one_array(state, PROXY, "inputs")
            lesson = _lesson(content, proxy, Question.about(proxy, like.classes))
        head = node.learned(lesson)
    score, alone = node.score(head), node.score(node.learned())
    told = {COUNT: score.n, "right": score.right, "right-alone": alone.right}
    return RecordDict({METRICS: MetricRecord(told)})


def _lesson(content: RecordDict, proxy: NDArray[np.generic], about: Question) -> Lesson | None:
    if LESSON not in content:
        return None
    data = one_value(content, LESSON, "answers", bytes)
    return proxy, Answers.from_bytes(data, about=about)
