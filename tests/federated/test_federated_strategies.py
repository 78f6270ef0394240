"""Our strategies and client with Flower's own messages, over the bytes that Flower sends, in one process.

They need Flower: `tests/federated/test_federated_environment.py` runs them where it is.
"""

from __future__ import annotations

import struct
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

pytest.importorskip(
    "flwr", reason="Flower is not in this environment; test_federated_environment.py makes one"
)

from federated_worlds import CLASSES, WIDTH, client_node, digits, kind_of, of_classes
from flower_loop import Loop, begin, instead, over_the_wire
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as some

from edgestill.core.digest import Digest
from edgestill.core.errors import SettingError
from edgestill.federated import ClosedForm, FederatedDistillation, HeadFromProxy, client_app, server_app
from edgestill.federated.answers import Answers
from edgestill.federated.records import Refusal, taken
from edgestill.learn.statistics import MAX_BYTES, Statistics, solve, usual_ridge
from edgestill.learn.votes import ABSTAIN, Ballot, Question

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.federated.node import Node

PROXY = digits().proxy.inputs
ABOUT = Question.about(PROXY, CLASSES)
CLIENTS = (10, 11, 12, 13)


@pytest.fixture
def nodes(tmp_path: Path) -> list[Node]:
    """Four clients of one network."""
    return [client_node(tmp_path, client) for client in range(4)]


def app_of(node: Node, **options: Any) -> Any:
    """One client."""
    return client_app(lambda _: node, **options)


def loop_of(nodes: list[Node], spoil: dict[int, Any] | None = None, **options: Any) -> Loop:
    """The four clients on one grid."""
    apps = {name: app_of(node, **options) for name, node in zip(CLIENTS, nodes, strict=True)}
    return Loop(apps, spoil)


def answer(**values: Any) -> Callable[[Message], Message]:
    """Puts these values into a reply, in the place of what the client said."""
    return lambda reply: instead(reply, RecordDict({"answer": ConfigRecord(values)}))


def central(nodes: list[Node]) -> Statistics:
    """The sums over all that the clients have, in one place, counted as often as they have it."""
    first, *others = (one.statistics() for one in nodes)
    return sum(others, start=first)


def head_of(arrays: ArrayRecord) -> tuple[np.ndarray, np.ndarray]:
    """Weight and bias."""
    return arrays["weight"].numpy(), arrays["bias"].numpy()


def test_the_closed_form_is_the_central_solution(nodes: list[Node]) -> None:
    """One round over Flower's messages gives the head that all data in one place gives."""
    strategy = ClosedForm(kind_of(0), nodes=4)
    result = strategy.start(loop_of(nodes), ArrayRecord(), num_rounds=1)
    whole = kind_of(0)
    for classes in ((0, 1, 2, 3), (3, 4, 5, 6), (6, 7, 8, 9), (9, 0, 4, 7)):
        mine = of_classes(digits().train, classes)
        whole = whole.add(nodes[0].features(mine.inputs), np.eye(CLASSES)[mine.targets])
    expected = solve(whole, ridge=usual_ridge(whole))
    weight, bias = head_of(result.arrays)
    assert strategy.total is not None
    assert strategy.total.n == whole.n
    assert np.abs(weight - expected.weight).max() <= 1e-6
    assert np.abs(bias - expected.bias).max() <= 1e-6
    told = result.evaluate_metrics_clientapp[1]
    assert (told["nodes"], told["num-examples"]) == (4, 2000)
    assert told["right-alone"] / 2000 < 0.5
    assert told["right"] / 2000 > 0.9
    assert strategy.refusals == []


def test_the_order_of_replies_does_not_matter(nodes: list[Node]) -> None:
    """The same messages from other nodes, in another order, give the same head bit for bit."""
    heads = set()
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0]):
        result = ClosedForm(kind_of(0), nodes=4).start(
            loop_of([nodes[i] for i in order]), ArrayRecord(), num_rounds=1
        )
        heads.add(b"".join(part.tobytes() for part in head_of(result.arrays)))
    assert len(heads) == 1


def spoilt_sums(good: Statistics) -> dict[str, Callable[[Message], Message]]:
    """Ways to spoil a client's sums, by what the refusal says."""
    other = Statistics.empty(backbone=Digest.of(b"other"), window=0, classes=CLASSES, features=WIDTH)
    narrow = Statistics.empty(backbone=good.backbone, window=0, classes=CLASSES, features=3)
    ones = np.ones((1, WIDTH))
    twisted = good.to_bytes("float64")[:-8] + struct.pack("<d", np.nan)
    return {
        "statistics of another backbone": answer(statistics=other.add(ones, np.eye(CLASSES)[:1]).to_bytes()),
        "statistics of another kind": answer(
            statistics=narrow.add(ones[:, :3], np.eye(CLASSES)[:1]).to_bytes()
        ),
        "too few samples": answer(statistics=kind_of(0).to_bytes()),
        "sums too large for one client": answer(statistics=good.scaled(1e25).to_bytes("float64")),
        "NaN or infinity": answer(statistics=twisted),
        "got statistics": answer(statistics="text"),
        "got nothing": answer(),
        "a message is too long": answer(statistics=b"\0" * (MAX_BYTES + 1)),
        "another kind of message": answer(statistics=b"noise of any kind"),
        "targets that are 1 together": answer(statistics=_unsummable(good).to_bytes("float64")),
        "without negative eigenvalues": answer(statistics=_indefinite(good).to_bytes("float64")),
        "Cauchy-Schwarz": answer(statistics=_loud(good).to_bytes("float64")),
        "sums with noise": answer(statistics=replace(good, noise=(1.0, 1.0)).to_bytes("float64")),
        "it broke [31m badlyxx": lambda reply: instead(
            reply, Error(2, "it broke\x1b[31m\nbadly" + "x" * 1000)
        ),
        "a value is missing": lambda reply: instead(
            reply, RecordDict({"answer": MetricRecord({"statistics": 1})})
        ),
    }


def _indefinite(good: Statistics) -> Statistics:
    """Labels as before, and every two features against each other: no three vectors can be so."""
    matrix = good.matrix
    off = matrix.diagonal().copy()
    matrix = np.where(np.eye(len(matrix)) > 0, matrix, -matrix)
    matrix[:, -1], matrix[-1] = good.matrix[:, -1], good.matrix[-1]
    np.fill_diagonal(matrix, off)
    return replace(good, a=matrix[np.triu_indices(len(matrix))])


def _loud(good: Statistics) -> Statistics:
    """One class pulled up against another a thousandfold: all labels are 1 together still."""
    b = good.b.copy()
    b[0, 0] += 1e3 * good.matrix[0, 0]
    b[0, 1] -= 1e3 * good.matrix[0, 0]
    return replace(good, b=b)


def _unsummable(good: Statistics) -> Statistics:
    """Every pair of entries keeps within Cauchy and Schwarz, and yet no samples have these sums."""
    size = good.features + 1
    matrix = np.eye(size)
    matrix[:3, :3] = [[1, 0.9, -0.9], [0.9, 1, 0.9], [-0.9, 0.9, 1]]
    rows, columns = np.triu_indices(size)
    made = kind_of(0)
    return Statistics(
        backbone=made.backbone, window=0, classes=CLASSES, features=WIDTH, n=size, a=matrix[rows, columns],
        b=np.zeros((size, CLASSES)),
    )  # fmt: skip


@pytest.mark.parametrize("says", [*spoilt_sums(kind_of(0).add(np.ones((2, WIDTH)), np.eye(CLASSES)[:2]))])
def test_attack_spoilt_sums_are_refused_and_the_round_goes_on(nodes: list[Node], says: str) -> None:
    """One client's bad message is named and counted; the head is that of the other three."""
    spoil = spoilt_sums(nodes[0].statistics())[says]
    loop = loop_of(
        nodes, {CLIENTS[1]: lambda reply: spoil(reply) if reply.metadata.message_type == "train" else reply}
    )
    strategy = ClosedForm(kind_of(0), nodes=4)
    result = strategy.start(loop, ArrayRecord(), num_rounds=1)
    ((number, node, reason),) = strategy.refusals
    assert (number, node) == (1, CLIENTS[1])
    assert says in reason
    assert len(reason) < 1500
    assert reason.isprintable()
    assert result.train_metrics_clientapp[1]["refused"] == 1
    rest = central([node for name, node in zip(CLIENTS, nodes, strict=True) if name != CLIENTS[1]])
    assert np.allclose(head_of(result.arrays)[0], solve(rest, ridge=usual_ridge(rest)).weight, atol=1e-6)


def test_attack_a_second_reply_does_not_count(nodes: list[Node]) -> None:
    """Who replies twice is summed once."""
    replies = loop_of(nodes).send_and_receive(
        ClosedForm(kind_of(0), nodes=4).configure_train(1, ArrayRecord(), ConfigRecord(), loop_of(nodes))
    )
    strategy = ClosedForm(kind_of(0), nodes=4)
    strategy.aggregate_train(1, [*replies, replies[0]])
    assert strategy.total is not None
    assert strategy.total.n == central(nodes).n
    assert [(one.node, one.reason) for one in strategy.refusals] == [
        (replies[0].metadata.src_node_id, "a second reply")
    ]


def test_a_round_without_a_good_reply_changes_nothing(nodes: list[Node]) -> None:
    """Where all are refused there is no head, and the run ends as usual."""
    strategy = ClosedForm(kind_of(0), nodes=4, minimum=10**6)
    result = strategy.start(loop_of(nodes), ArrayRecord(), num_rounds=1)
    assert len(result.arrays) == 0
    assert result.train_metrics_clientapp[1]["refused"] == 4
    assert strategy.total is None


def test_a_client_keeps_sums_over_few_samples_to_itself(nodes: list[Node]) -> None:
    """With a minimum on the client's side, the sums do not leave it; the server reads why."""
    strategy = ClosedForm(kind_of(0), nodes=4)
    strategy.start(loop_of(nodes, minimum=10**6), ArrayRecord(), num_rounds=1)
    assert [one.reason.split()[0] for one in strategy.refusals] == ["[evidence-refused]"] * 4
    assert all("too few samples" in one.reason for one in strategy.refusals)


@pytest.mark.parametrize("form", ["soft", "votes"])
def test_distillation_is_better_than_any_client_alone(tmp_path: Path, form: Any) -> None:
    """Four clients of four different networks, each of which knows four classes, teach a fifth network nine in ten digits."""
    nodes = [client_node(tmp_path, client, seed=client) for client in range(4)]
    server = client_node(tmp_path, 0, seed=9)
    strategy = FederatedDistillation(
        kind_of(9), PROXY, HeadFromProxy(server.features(PROXY), kind_of(9)), form=form, nodes=4
    )
    result = strategy.start(loop_of(nodes), ArrayRecord(), num_rounds=2)
    weight, bias = head_of(result.arrays)
    test = digits().test
    right = ((server.features(test.inputs) @ weight + bias).argmax(axis=1) == test.targets).mean()
    alone = [node.score(node.learned()) for node in nodes]
    assert max(one.right / one.n for one in alone) < 0.5
    assert right > 0.85
    # the clients' own networks have learned from the lesson, too
    told = result.evaluate_metrics_clientapp[2]
    assert told["right"] / told["num-examples"] > 0.8
    assert told["right-alone"] / told["num-examples"] < 0.5
    # who has had a lesson knows more of the shared set
    first, second = (result.train_metrics_clientapp[number]["agreed"] for number in (1, 2))
    assert second >= first
    assert strategy.refusals == []


def test_the_head_goes_back_to_clients_of_the_servers_network(nodes: list[Node]) -> None:
    """Where networks are the same, clients are tried with the server's head: its score times four."""
    strategy = FederatedDistillation(
        kind_of(0), PROXY, HeadFromProxy(nodes[0].features(PROXY), kind_of(0)), nodes=4
    )
    result = strategy.start(loop_of(nodes), ArrayRecord(), num_rounds=1)
    weight, bias = head_of(result.arrays)
    test = digits().test
    right = ((nodes[0].features(test.inputs) @ weight + bias).argmax(axis=1) == test.targets).sum()
    assert result.evaluate_metrics_clientapp[1]["right"] == 4 * right


@pytest.mark.parametrize(
    "spoil",
    [
        answer(answers=b"noise"),
        answer(answers=Answers(Question.about(PROXY + 1, CLASSES), np.full((400, CLASSES), 0.1)).to_bytes()),
        answer(statistics=b""),
        lambda reply: instead(reply, Error(2, "no")),
        lambda reply: instead(reply, RecordDict()),
    ],
)
def test_attack_spoilt_answers_are_refused_and_the_round_goes_on(nodes: list[Node], spoil: Any) -> None:
    """What is agreed is what the other three say."""
    strategy = FederatedDistillation(
        kind_of(0), PROXY, HeadFromProxy(nodes[0].features(PROXY), kind_of(0)), nodes=4
    )
    strategy.start(loop_of(nodes, {CLIENTS[0]: spoil}), ArrayRecord(), num_rounds=1)
    assert {(one.round, one.node) for one in strategy.refusals} == {(1, CLIENTS[0])}
    other = FederatedDistillation(
        kind_of(0), PROXY, HeadFromProxy(nodes[0].features(PROXY), kind_of(0)), nodes=3
    )
    apps = loop_of(nodes).clients
    other.start(Loop({name: apps[name] for name in CLIENTS[1:]}), ArrayRecord(), num_rounds=1)
    assert strategy.consensus is not None
    assert other.consensus is not None
    assert np.array_equal(strategy.consensus.targets, other.consensus.targets)


def ballot(labels: np.ndarray, proxy: np.ndarray = PROXY) -> bytes:
    """A ballot on the shared inputs, or on others."""
    question = Question.about(proxy, CLASSES)
    return Ballot.of(question, student=Digest.of(b"any"), labels=labels).to_bytes()


EVERY_ONE = np.zeros(len(PROXY), dtype=np.int64)
SPOILT_BALLOTS = {
    "not a ballot": answer(answers=Answers(ABOUT, np.full((len(PROXY), CLASSES), 0.1)).to_bytes()),
    "votes on another question": answer(answers=ballot(EVERY_ONE, PROXY + 1)),
    "votes are spelled in another way": answer(answers=ballot(EVERY_ONE) + b"\0"),
    "a value is missing": answer(answers="text"),
    "it broke": lambda reply: instead(reply, Error(2, "it broke")),
}


@pytest.mark.parametrize("says", SPOILT_BALLOTS)
def test_attack_spoilt_ballots_are_refused_and_the_round_goes_on(nodes: list[Node], says: str) -> None:
    """What is elected is what the other three vote for."""
    strategy = FederatedDistillation(kind_of(0), PROXY, lambda _: ArrayRecord(), form="votes", nodes=4)
    loop = loop_of(nodes, {CLIENTS[0]: SPOILT_BALLOTS[says]})
    strategy.aggregate_train(
        1, loop.send_and_receive(strategy.configure_train(1, ArrayRecord(), ConfigRecord(), loop))
    )
    ((number, node, reason),) = strategy.refusals
    assert (number, node) == (1, CLIENTS[0])
    assert says in reason
    votes = np.stack([one.ballot(PROXY, ABOUT).labels for one in nodes[1:]])
    counts_of = (votes[:, :, None] == np.arange(CLASSES)).sum(axis=0)
    assert strategy.consensus is not None
    assert strategy.consensus.known.tolist() == (votes != ABSTAIN).any(axis=0).tolist()
    expected = counts_of / np.maximum(counts_of.sum(axis=1, keepdims=True), 1)
    assert np.allclose(strategy.consensus.targets, expected, rtol=0, atol=1e-12)


def test_attack_one_node_has_one_vote(nodes: list[Node]) -> None:
    """A second ballot of a node does not count, whatever student it names, and with a quorum of two one node teaches nothing."""
    begin()
    strategy = FederatedDistillation(
        kind_of(0), PROXY, lambda _: ArrayRecord(), form="votes", quorum=2, nodes=1
    )
    loop = loop_of(nodes, {CLIENTS[0]: answer(answers=ballot(EVERY_ONE))})
    asked = strategy.configure_train(1, ArrayRecord(), ConfigRecord(), loop)
    (mine,) = (one for one in loop.send_and_receive(asked) if one.metadata.src_node_id == CLIENTS[0])
    _, told = strategy.aggregate_train(1, [mine, mine])
    assert told is not None
    assert (told["answered"], told["refused"], told["agreed"]) == (1, 1, 0)
    assert strategy.consensus is None


def test_a_quorum_of_none_is_refused_before_a_round() -> None:
    """The setting is refused where it is set, not after the clients have answered."""
    with pytest.raises(SettingError, match="quorum"):
        FederatedDistillation(kind_of(0), PROXY, lambda _: ArrayRecord(), quorum=0)


def test_silence_teaches_nothing(nodes: list[Node]) -> None:
    """With a quorum that nobody reaches there is no head and no lesson."""
    strategy = FederatedDistillation(kind_of(0), PROXY, lambda _: ArrayRecord(), quorum=5, nodes=4)
    result = strategy.start(loop_of(nodes), ArrayRecord(), num_rounds=1)
    assert result.train_metrics_clientapp[1]["agreed"] == 0
    assert strategy.consensus is None


BACKBONE = {"backbone": str(kind_of(0).backbone)}
ASKED = {"form": "soft", "classes": CLASSES}


def content(config: dict[str, Any], **records: Any) -> RecordDict:
    """A server's message."""
    return RecordDict({"config": ConfigRecord(config), **records})


@pytest.mark.parametrize(
    ("kind", "sent", "says"),
    [
        ("train", RecordDict(), "a value is missing"),
        ("train", content({"backbone": "sha256:no"}), "not a digest"),
        ("train", content({"backbone": 5}), "a value is missing"),
        ("train", content({"backbone": str(Digest.of(b"other"))}), "sums of another backbone"),
        ("query", content({"form": "loud", "classes": 10}), "an unknown form"),
        ("query", content(ASKED), "an array is missing"),
        ("query", content(ASKED, proxy=ConfigRecord({"inputs": 1})), "an array is missing"),
        ("query", content(ASKED, proxy=ArrayRecord({"inputs": Array(PROXY[:, :5].copy())})), "another shape"),
        (
            "query",
            content(ASKED, proxy=ArrayRecord({"inputs": Array(np.full_like(PROXY, np.nan))})),
            "NaN or infinity",
        ),
        (
            "query",
            content(ASKED, proxy=ArrayRecord({"inputs": Array(np.array(1.0))})),
            "samples out of range",
        ),
        (
            "query",
            content(ASKED | {"classes": 11}, proxy=ArrayRecord({"inputs": Array(PROXY)})),
            "other classes",
        ),
        (
            "query",
            content(ASKED | {"classes": 10**9}, proxy=ArrayRecord({"inputs": Array(PROXY)})),
            "classes out of range",
        ),
        (
            "query",
            content(
                ASKED, proxy=ArrayRecord({"inputs": Array(PROXY)}), lesson=ConfigRecord({"answers": b"noise"})
            ),
            "another kind of message",
        ),
        (
            "evaluate",
            content(BACKBONE, arrays=ArrayRecord({"weight": Array(np.eye(3)), "bias": Array(np.ones(3))})),
            "a head that cannot be used",
        ),
        (
            "evaluate",
            content(BACKBONE, arrays=ArrayRecord({"weight": Array(np.eye(3))})),
            "an array is missing",
        ),
    ],
)
def test_attack_a_servers_bad_message_is_an_error_reply(
    nodes: list[Node], kind: str, sent: RecordDict, says: str
) -> None:
    """The client answers a message that it cannot use with one line of ours, and keeps its process."""
    (reply,) = loop_of(nodes).send_and_receive([Message(sent, message_type=kind, dst_node_id=CLIENTS[0])])
    assert reply.has_error()
    assert reply.error.code == 100
    assert reply.error.reason.startswith("[")
    assert says in reply.error.reason


def test_a_client_of_another_network_is_tried_with_its_own(nodes: list[Node]) -> None:
    """A head of another backbone is of no use to it: it reports what it knows by itself."""
    sent = content({"backbone": str(Digest.of(b"other"))}, arrays=ArrayRecord({"weight": Array(np.eye(3))}))
    (reply,) = loop_of(nodes).send_and_receive(
        [Message(sent, message_type="evaluate", dst_node_id=CLIENTS[0])]
    )
    told = reply.content["metrics"]
    assert told["right"] == told["right-alone"] == nodes[0].score(nodes[0].learned()).right


def test_attack_more_right_than_samples_does_not_count(nodes: list[Node]) -> None:
    """A client cannot make the score of all better than it could be."""

    def boast(reply: Message) -> Message:
        if reply.metadata.message_type != "evaluate":
            return reply
        told = MetricRecord({"num-examples": 10, "right": 11, "right-alone": 0})
        return instead(reply, RecordDict({"metrics": told}))

    strategy = ClosedForm(kind_of(0), nodes=4)
    result = strategy.start(loop_of(nodes, {CLIENTS[2]: boast}), ArrayRecord(), num_rounds=1)
    assert [one.node for one in strategy.refusals] == [CLIENTS[2]]
    assert result.evaluate_metrics_clientapp[1]["nodes"] == 3


def test_a_reader_that_breaks_down_ends_no_round(nodes: list[Node], caplog: pytest.LogCaptureFixture) -> None:
    """A reply on which reading fails unforeseen is refused by name, with the traceback in the log; the others count."""
    replies = loop_of(nodes).send_and_receive(
        ClosedForm(kind_of(0), nodes=4).configure_train(1, ArrayRecord(), ConfigRecord(), loop_of(nodes))
    )
    left, refusals = [1, 0, 1, 1], list[Refusal]()
    found = taken(replies, lambda _: 1 // left.pop(), server_round=1, refusals=refusals)
    assert [one for _, one in found] == [1, 1, 1]
    bad = replies[2].metadata.src_node_id
    assert refusals == [Refusal(1, bad, "reading it broke down: ZeroDivisionError")]
    assert "ZeroDivisionError: " in caplog.text


def test_a_number_of_nodes_must_be_one() -> None:
    """No nodes at all is a setting that is refused."""
    with pytest.raises(SettingError, match="number of nodes"):
        ClosedForm(kind_of(0), nodes=0)


def test_a_server_app_plays_the_rounds_and_hands_over_the_result(nodes: list[Node]) -> None:
    """Flower calls it with a grid and a context; strategy, result and context reach the user's function."""
    kept: list[Any] = []
    app = server_app(
        lambda context: ClosedForm(kind_of(0), nodes=int(context.run_config["nodes"])),
        lambda *found: kept.append(found),
        rounds=lambda context: int(context.run_config["rounds"]),
    )
    loop = loop_of(nodes)
    context = Context(1, 1, {}, RecordDict(), {"nodes": 4, "rounds": 2})
    app(loop, context)
    ((strategy, result, same),) = kept
    assert same is context
    assert strategy.total.n == central(nodes).n
    assert sorted(result.train_metrics_clientapp) == [1, 2]
    assert loop.asked.count((CLIENTS[0], "train")) == 2


@given(some.data())
def test_however_samples_are_parted_the_head_is_the_same(data: some.DataObject) -> None:
    """Any parting of any samples among any number of clients sums to the solution of all in one place."""
    n = data.draw(some.integers(1, 40))
    rng = np.random.default_rng(data.draw(some.integers(0, 2**32)))
    features, targets = rng.normal(size=(n, WIDTH)), np.eye(CLASSES)[rng.integers(0, CLASSES, n)]
    owner = rng.integers(0, data.draw(some.integers(1, 6)), n)
    begin()
    replies = [
        reply_of(100 + one, kind_of(0).add(features[owner == one], targets[owner == one]))
        for one in set(owner)
    ]
    strategy = ClosedForm(kind_of(0))
    arrays, _ = strategy.aggregate_train(1, replies)
    whole = kind_of(0).add(features, targets)
    expected = solve(whole, ridge=usual_ridge(whole))
    assert arrays is not None
    assert strategy.refusals == []
    assert np.abs(head_of(arrays)[0] - expected.weight).max() <= 1e-5 * np.abs(expected.weight).max()


def reply_of(node: int, sums: Statistics) -> Message:
    """A client's sums, over the wire."""
    asked = Message(RecordDict(), message_type="train", dst_node_id=int(node))
    told = RecordDict({"answer": ConfigRecord({"statistics": sums.to_bytes("float64")})})
    return over_the_wire(Message(told, reply_to=over_the_wire(asked)))
