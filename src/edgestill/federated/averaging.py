"""Averaging of weights, for those who want it: the user's network in torch on the clients, Flower's own FedAvg on the server.

FedAvg (McMahan et al. 2017) is Flower's. What is ours is that a bad reply does not end the run: one whose arrays have
other names, shapes or types than those sent out, or are not finite, is refused, named and counted, and FedAvg
averages the rest.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, final

import numpy as np
from flwr.app import ArrayRecord, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp.strategy import FedAvg

from edgestill.core.errors import EvidenceError, MessageError
from edgestill.federated.records import ARRAYS, COUNT, METRICS, counts, read_array, taken

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flwr.app import ConfigRecord, Context
    from flwr.serverapp import Grid
    from torch import nn

    from edgestill.federated.records import Refusal

_Kinds = dict[str, tuple[str, tuple[int, ...]]]
ACCURACY: Final = "accuracy"
MAX_WEIGHT: Final = 1e30
"""Of any number of a reply: the average of all stays finite."""


@final
class Averaging(FedAvg):  # type: ignore[misc]  # Flower is not where types are checked
    """Flower's FedAvg over the replies that fit the arrays that were sent; it takes FedAvg's own arguments.

    Attributes:
        refusals: replies that did not count, of all rounds.
    """

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._kinds: _Kinds = {}
        self.refusals: list[Refusal] = []

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """As FedAvg; what is sent says what may come back."""
        self._kinds = _kinds_of(arrays)
        sent: Iterable[Message] = super().configure_train(server_round, arrays, config, grid)
        return sent

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """As FedAvg, over those that fit; nothing where none does."""
        kept = self._kept(replies, server_round, self._check_weights)
        averaged, metrics = super().aggregate_train(server_round, kept)
        if averaged is not None:  # FedAvg makes doubles of whole numbers, such as the counters of batch norms
            averaged = ArrayRecord(
                {name: _like(array, self._kinds[name]) for name, array in averaged.items()}
            )
        return averaged, metrics

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """As FedAvg, over those that can be read."""
        found: MetricRecord | None = super().aggregate_evaluate(
            server_round, self._kept(replies, server_round, lambda one: _check_metrics(one, ACCURACY))
        )
        return found

    def _kept(
        self, replies: Iterable[Message], server_round: int, check: Callable[[RecordDict], None]
    ) -> list[Message]:
        pairs = taken(replies, check, server_round=server_round, refusals=self.refusals)
        return [reply for reply, _ in pairs]

    def _check_weights(self, content: RecordDict) -> None:
        _check_metrics(content)
        record = content.get(ARRAYS)
        if (
            len(content.array_records) != 1
            or not isinstance(record, ArrayRecord)
            or set(record) != set(self._kinds)
        ):
            raise MessageError(
                "other arrays than were sent",
                where=ARRAYS,
                expected=f"{len(self._kinds)} arrays, by the names that were sent",
                got="others, or none",
            )
        for name, array in record.items():
            found = read_array(array, where=name)
            if (found.dtype.str, found.shape) != self._kinds[name]:
                raise MessageError(
                    "an array of another kind", where=name, expected=self._kinds[name], got=(found.dtype.str, found.shape)
                )  # fmt: skip
            if not (np.isfinite(found).all() and (np.abs(found.astype(np.float64)) <= MAX_WEIGHT).all()):
                raise EvidenceError(
                    "weights that are not finite, or too large",
                    where=name,
                    expected=f"at most {MAX_WEIGHT:g}",
                    got="others",
                )


def averaging_client_app(
    make: Callable[[Context], nn.Module],
    train: Callable[[nn.Module, Context], int],
    evaluate: Callable[[nn.Module, Context], tuple[int, int]],
) -> ClientApp:
    """A client that trains the user's network and sends its weights.

    Args:
        make: the network, with any weights; those of the server are loaded into it.
        train: trains it on the client's samples, in place, and returns how many there were.
        evaluate: returns how many samples there were, and how many of them it named right.
    """
    app = ClientApp()

    def received(message: Message, context: Context) -> nn.Module:
        network = make(context)
        _load_(network, message.content)
        return network

    @app.train()  # type: ignore[untyped-decorator]  # Flower is not where types are checked
    def on_train(message: Message, context: Context) -> Message:
        network = received(message, context)
        n = train(network, context)
        weights = ArrayRecord(network.state_dict())
        return Message(RecordDict({ARRAYS: weights, METRICS: MetricRecord({COUNT: n})}), reply_to=message)

    @app.evaluate()  # type: ignore[untyped-decorator]  # as above
    def on_evaluate(message: Message, context: Context) -> Message:
        n, right = evaluate(received(message, context), context)
        told = MetricRecord({COUNT: n, ACCURACY: right / max(n, 1)})
        return Message(RecordDict({METRICS: told}), reply_to=message)

    return app


def _load_(network: nn.Module, content: RecordDict) -> None:
    record = content.get(ARRAYS)
    if not isinstance(record, ArrayRecord):
        raise MessageError("no weights", where=ARRAYS, expected="the server's weights", got="none")
    _kinds_of(record)  # an array that numpy must not be given is refused here
    network.load_state_dict(record.to_torch_state_dict())


def _kinds_of(arrays: ArrayRecord) -> _Kinds:
    found = {name: read_array(array, where=name) for name, array in arrays.items()}
    return {name: (array.dtype.str, array.shape) for name, array in found.items()}


def _like(array: Any, kind: tuple[str, tuple[int, ...]]) -> Any:
    values: Any = array.numpy()
    return type(array)(values.astype(kind[0]))


def _check_metrics(content: RecordDict, *more: str) -> None:
    """FedAvg ends the run where replies differ in their names, and where nobody has a sample."""
    record = content.get(METRICS)
    names = set(record) if isinstance(record, MetricRecord) else set()
    shares = [record[name] for name in more if name in names]
    if names != {COUNT, *more} or len(content.metric_records) != 1 or not all(map(_is_share, shares)):
        raise MessageError(
            "metrics of another kind",
            where=METRICS,
            expected=" and ".join([COUNT, *(f"{one} in [0, 1]" for one in more)]),
            got="others",
        )
    if counts(content, COUNT) == [0]:
        raise EvidenceError("a reply without samples", where=METRICS, expected="at least 1", got=0)


def _is_share(value: object) -> bool:
    return isinstance(value, float) and 0 <= value <= 1
