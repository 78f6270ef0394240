"""Averaging of a torch network's weights by Flower's own FedAvg, with what ours keeps from it.

They need Flower and torch: `tests/federated/test_federated_environment.py` runs them where both are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip(
    "flwr", reason="Flower is not in this environment; test_federated_environment.py makes one"
)
pytest.importorskip("torch")

import torch
from federated_worlds import CLASSES, PIXELS, SKEWED, digits, of_classes
from flower_loop import Loop, instead
from flwr.app import Array, ArrayRecord, Error, Message, MetricRecord, RecordDict
from torch import nn

from edgestill.federated import Averaging, averaging_client_app

if TYPE_CHECKING:
    from collections.abc import Callable

CLIENTS = (10, 11, 12, 13)


def network() -> nn.Sequential:
    """A small one with a batch norm, whose counter is a whole number."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(PIXELS, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, CLASSES))


def tensors(client: int) -> tuple[Any, Any]:
    """What this client has seen."""
    mine = of_classes(digits().train, SKEWED[client])
    return torch.from_numpy(mine.inputs), torch.from_numpy(mine.targets)


def train(model: nn.Module, client: int) -> int:
    """Ten steps on all of it."""
    inputs, labels = tensors(client)
    steps = torch.optim.SGD(model.parameters(), lr=0.2)
    model.train()
    for _ in range(10):
        steps.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs), labels)
        loss.backward()  # type: ignore[no-untyped-call]  # torch types it no better
        steps.step()
    return len(labels)


def right(model: nn.Module) -> tuple[int, int]:
    """On the test part."""
    model.eval()
    with torch.no_grad():
        named = model(torch.from_numpy(digits().test.inputs)).argmax(dim=1).numpy()
    return len(named), int((named == digits().test.targets).sum())


def app_of(client: int) -> Any:
    """One client."""
    return averaging_client_app(
        lambda _: network(), lambda model, _: train(model, client), lambda model, _: right(model)
    )


def loop_of(spoil: dict[int, Any] | None = None) -> Loop:
    """Four clients of one network."""
    apps = {name: app_of(client) for client, name in enumerate(CLIENTS)}
    return Loop(apps, spoil)


def played(loop: Loop, rounds: int) -> tuple[Averaging, Any]:
    """The strategy and its result."""
    strategy = Averaging(min_train_nodes=4, min_evaluate_nodes=4, min_available_nodes=4)
    return strategy, strategy.start(loop, ArrayRecord(network().state_dict()), num_rounds=rounds)


def test_one_round_is_the_weighted_mean_of_what_the_clients_trained() -> None:
    """FedAvg over our records is the mean of the networks, by their samples, in the types that were sent."""
    strategy, result = played(loop_of(), 1)
    trained = []
    for client in range(4):
        model = network()
        trained.append((train(model, client), model.state_dict()))
    total = sum(n for n, _ in trained)
    for name, array in result.arrays.items():
        mean = sum(n / total * state[name].numpy().astype(np.float64) for n, state in trained)
        assert np.allclose(array.numpy(), mean, atol=1e-5), name
        assert array.numpy().dtype == network().state_dict()[name].numpy().dtype
    assert strategy.refusals == []


def test_rounds_make_a_network_that_knows_more_than_a_client_does() -> None:
    """After twenty rounds the averaged network names far more digits than one that one client trained as long."""
    _, result = played(loop_of(), 20)
    alone = network()
    for _ in range(20):
        train(alone, 0)
    n, known = right(alone)
    assert known / n < 0.5
    assert result.evaluate_metrics_clientapp[20]["accuracy"] > 0.7


def weights(change: Callable[[dict[str, np.ndarray]], None], n: Any = 100) -> Callable[[Message], Message]:
    """A reply with other weights, or another count of samples."""

    def spoil(reply: Message) -> Message:
        if reply.metadata.message_type != "train":
            return reply
        state = {name: value.numpy().copy() for name, value in network().state_dict().items()}
        change(state)
        record = ArrayRecord({name: Array(value) for name, value in state.items()})
        return instead(reply, RecordDict({"arrays": record, "metrics": MetricRecord({"num-examples": n})}))

    return spoil


@pytest.mark.parametrize(
    "spoil",
    [
        weights(lambda state: state["0.weight"].fill(np.nan)),
        weights(lambda state: state["0.weight"].fill(1e38)),
        weights(lambda state: state.update({"0.weight": np.zeros((2, 2), dtype=np.float32)})),
        weights(lambda state: state.update({"0.weight": state["0.weight"].astype(np.float64)})),
        weights(lambda state: state.update(more=np.zeros(1))),
        weights(lambda state: state.clear()),
        weights(lambda _: None, 0),
        weights(lambda _: None, -5),
        weights(lambda _: None, 10**12),
        weights(lambda _: None, [1, 2]),
        weights(lambda _: None, 1.5),
        lambda reply: instead(reply, RecordDict()),
        lambda reply: instead(reply, Error(2, "no")),
    ],
)
def test_attack_spoilt_weights_are_refused_and_the_round_goes_on(spoil: Any) -> None:
    """What Flower's FedAvg would average, or end the run over, is named; the mean is that of the other three."""

    def on_train(reply: Message) -> Message:
        return spoil(reply) if reply.metadata.message_type == "train" else reply

    strategy, result = played(loop_of({CLIENTS[0]: on_train}), 1)
    assert [(one.round, one.node) for one in strategy.refusals] == [(1, CLIENTS[0])]
    trained = []
    for client in (1, 2, 3):
        model = network()
        trained.append((train(model, client), model.state_dict()["0.weight"].numpy()))
    total = sum(n for n, _ in trained)
    assert np.allclose(
        result.arrays["0.weight"].numpy(), sum(n / total * one for n, one in trained), atol=1e-5
    )


@pytest.mark.parametrize(
    "told",
    [
        MetricRecord({"num-examples": 5}),
        MetricRecord({"num-examples": 5, "accuracy": 1.5}),
        MetricRecord({"num-examples": 5, "accuracy": float("nan")}),
        MetricRecord({"num-examples": 5, "accuracy": 0.5, "more": 1.0}),
        MetricRecord({"num-examples": 5, "accuracy": [0.5]}),
    ],
)
def test_attack_metrics_of_another_kind_do_not_end_the_run(told: MetricRecord) -> None:
    """Flower's FedAvg raises where replies differ in their names; ours leaves that reply out."""

    def boast(reply: Message) -> Message:
        if reply.metadata.message_type != "evaluate":
            return reply
        return instead(reply, RecordDict({"metrics": told}))

    strategy, result = played(loop_of({CLIENTS[3]: boast}), 1)
    assert [one.node for one in strategy.refusals] == [CLIENTS[3]]
    assert 0 <= result.evaluate_metrics_clientapp[1]["accuracy"] <= 1
