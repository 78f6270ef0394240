"""Strategies for a Flower server: a head in closed form, and federated distillation.

Both ask all nodes that are connected, once at least `nodes` of them are, take what can be read (`records.taken`), and go
on without the others, which `refusals` names. The arrays of both are a head, `weight` `[D, C]` and `bias` `[C]`.

*Closed form.* One round: sums of all clients add to the sums of all samples, so the head is the one that all data in one
place would give (`learn.statistics`). Sums that no classifier's samples can have are refused (`learn.screens`). Sums are added in an order of their own bytes, so that the same messages give the
same head, bit for bit, whoever was first.

*Federated distillation.* Each round the clients answer a shared set of inputs without labels; what they agree on teaches
the server's student, and goes back to them with the next round as a lesson. Clients need not have the server's network,
only its inputs and classes. Where nobody says anything, nothing is learned.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from typing import TYPE_CHECKING, Final, TypeVar, final

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy
from flwr.serverapp.strategy.strategy_utils import sample_nodes

from edgestill.core.errors import EvidenceError, SettingError
from edgestill.federated.answers import Answers, agreed, check_quorum
from edgestill.federated.records import (
    ANSWER,
    ARRAYS,
    CONFIG,
    COUNT,
    LESSON,
    PROXY,
    Refusal,
    counts,
    head_record,
    one_value,
    taken,
)
from edgestill.learn import screens
from edgestill.learn.statistics import Statistics, regularised_inverse_factor, solve, usual_ridge
from edgestill.learn.votes import Ballot, Cast, Question, tally

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from flwr.serverapp import Grid
    from numpy.typing import NDArray

    from edgestill.federated.answers import Form

MAX_SAMPLES: Final = 10**9
MAX_SUM: Final = 1e24
"""Of one client's message: whatever it sends, the sum of all stays finite."""

_T = TypeVar("_T")
log = logging.getLogger(__name__)

Trained = tuple["ArrayRecord | None", "MetricRecord | None"]


class _AskingAll(Strategy):  # type: ignore[misc]  # Flower is not where types are checked
    """What both strategies share: whom they ask, how they evaluate, and whom they refused.

    Attributes:
        refusals: replies that did not count, of all rounds.
    """

    def __init__(self, like: Statistics, nodes: int) -> None:
        if nodes < 1:
            raise SettingError(
                "a number of nodes is out of range",
                where="nodes",
                expected="at least 1",
                got=nodes,
                fix="say how many nodes must be there before a round begins",
            )
        self._like = like
        self._nodes = nodes
        self.refusals: list[Refusal] = []

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks all nodes how the head does on what they held out."""
        del server_round
        told = ConfigRecord({**config, "backbone": str(self._like.backbone)})
        return self._to_all(MessageType.EVALUATE, {ARRAYS: arrays, CONFIG: told, **self._lesson()}, grid)

    def aggregate_evaluate(self, server_round: int, replies: Iterable[Message]) -> MetricRecord | None:
        """Counts over all nodes: `num-examples`, `right` with what was learned together, `right-alone` without."""
        found = self._taken(server_round, replies, _score)
        if not found:
            return None
        total = [sum(column) for column in zip(*found, strict=True)]
        return MetricRecord(
            dict(zip((COUNT, "right", "right-alone", "nodes"), [*total, len(found)], strict=True))
        )

    def summary(self) -> None:
        """Says what is learned, and from how many nodes."""
        like = self._like
        log.info(
            "%s: %d features, %d classes, at least %d nodes",
            type(self).__name__, like.features, like.classes, self._nodes,
        )  # fmt: skip

    @abstractmethod
    def _lesson(self) -> dict[str, ConfigRecord]:
        """What was agreed in the last round, as a record of a message; nothing where there is none."""

    def _taken(
        self, server_round: int, replies: Iterable[Message], read: Callable[[RecordDict], _T]
    ) -> list[_T]:
        pairs = taken(replies, read, server_round=server_round, refusals=self.refusals)
        return [found for _, found in pairs]

    def _to_all(self, kind: str, records: dict[str, ArrayRecord | ConfigRecord], grid: Grid) -> list[Message]:
        present = len(list(grid.get_node_ids()))
        chosen, _ = sample_nodes(grid, self._nodes, max(present, self._nodes))
        return [Message(RecordDict(records), message_type=kind, dst_node_id=node) for node in chosen]

    def _told(self, server_round: int, answered: int, more: dict[str, int]) -> MetricRecord:
        refused = sum(one.round == server_round for one in self.refusals)
        return MetricRecord({"answered": answered, "refused": refused, **more})


@final
class ClosedForm(_AskingAll):
    """The head that all samples of all clients in one place would give, in one round.

    Args:
        like: statistics of the bundle: backbone, features and classes; its sums do not count.
        share: of `learn.statistics.usual_ridge`. It adds over clients as the sums do: where it makes each client's sums
            solvable, it makes their total so.
        nodes: that must be connected before the round begins.
        minimum: samples that one client's sums must cover to count.

    Attributes:
        total: the sum of the last round; None before.
        refusals: replies that did not count.
    """

    def __init__(self, like: Statistics, *, share: float = 1e-3, nodes: int = 2, minimum: int = 1) -> None:
        super().__init__(like, nodes)
        self._share = share
        self._minimum = minimum
        self.total: Statistics | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks all nodes for their sums."""
        del server_round, arrays
        told = ConfigRecord({**config, "backbone": str(self._like.backbone)})
        return self._to_all(MessageType.TRAIN, {CONFIG: told}, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        """Adds and solves; None where no reply counts."""
        found = self._taken(server_round, replies, self._read)
        if not found:
            return None, self._told(server_round, 0, {COUNT: 0})
        first, *others = sorted(found, key=lambda one: one.to_bytes("float64"))
        total = sum(others, start=first)
        head = solve(total, ridge=usual_ridge(total, self._share))
        self.total = total
        return head_record(head), self._told(server_round, len(found), {COUNT: total.n})

    def _read(self, content: RecordDict) -> Statistics:
        data = one_value(content, ANSWER, "statistics", bytes)
        found = screens.read(data, backbone=self._like.backbone).require(self._minimum)
        if (found.features, found.classes) != (self._like.features, self._like.classes):
            raise EvidenceError(
                "statistics of another kind",
                where=ANSWER,
                expected=f"{self._like.features} features, {self._like.classes} classes",
                got=f"{found.features}, {found.classes}",
            )
        if any(found.noise):  # nobody asks for it here, and who claims it gets wider screens
            raise EvidenceError(
                "sums with noise", where=ANSWER, expected="none", got="{:g} and {:g}".format(*found.noise)
            )
        largest = max(float(np.abs(found.a).max()), float(np.abs(found.b).max()))
        if found.n > MAX_SAMPLES or largest > MAX_SUM:
            raise EvidenceError(
                "sums too large for one client",
                where=ANSWER,
                expected=f"at most {MAX_SAMPLES:.0e} samples and {MAX_SUM:g} in any sum",
                got=f"{found.n} samples, {largest:g}",
            )
        regularised_inverse_factor(
            found, usual_ridge(found, self._share)
        )  # refuses what no samples could sum to
        return found

    def _lesson(self) -> dict[str, ConfigRecord]:
        return {}


@final
class FederatedDistillation(_AskingAll):
    """What the clients agree on teaches the server's student.

    Args:
        like: statistics of the server's bundle: backbone, features and classes.
        proxy: inputs `[N, ...]` without labels, as the students take them; they are sent to every client.
        distil: makes the arrays that go out from what was agreed; `HeadFromProxy` for a head, or the user's own
            training of a student, which returns whatever its clients understand.
        form: `soft` for distributions (`Answers`), `votes` for a class or nothing (`learn.votes`).
        quorum: clients that must say something about an input before it teaches.
        nodes: that must be connected before a round begins.

    Attributes:
        consensus: what was agreed in the last round; None before.
        refusals: replies that did not count.

    Raises:
        SettingError: a number out of range. EvidenceError: more inputs or classes than can be asked about.
    """

    def __init__(
        self,
        like: Statistics,
        proxy: NDArray[np.generic],
        distil: Callable[[Answers], ArrayRecord],
        *,
        form: Form = "soft",
        quorum: int = 1,
        nodes: int = 2,
    ) -> None:
        super().__init__(like, nodes)
        self._proxy = proxy
        check_quorum(quorum)
        self._about = Question.about(proxy, like.classes)
        self._distil = distil
        self._form: Form = form
        self._quorum = quorum
        self.consensus: Answers | None = None

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Asks all nodes about the shared inputs; from the second round on with a lesson."""
        del server_round, arrays
        told = ConfigRecord({**config, "form": self._form, "classes": self._about.classes})
        proxy = ArrayRecord({"inputs": Array(self._proxy)})
        return self._to_all(MessageType.QUERY, {PROXY: proxy, CONFIG: told, **self._lesson()}, grid)

    def aggregate_train(self, server_round: int, replies: Iterable[Message]) -> Trained:
        """Agrees and distils; None where nothing was said about any input."""
        together = self._elected if self._form == "votes" else self._agreed
        answered, consensus = together(server_round, replies)
        known = 0 if consensus is None else int(consensus.known.sum())
        told = self._told(server_round, answered, {"inputs": self._about.samples, "agreed": known})
        if consensus is None or not known:
            return None, told
        self.consensus = consensus
        return self._distil(consensus), told

    def _agreed(self, server_round: int, replies: Iterable[Message]) -> tuple[int, Answers | None]:
        """How many answered, and the mean of their distributions."""
        found = self._taken(
            server_round, replies, lambda one: Answers.from_bytes(_said(one), about=self._about)
        )
        return len(found), agreed(found, quorum=self._quorum) if found else None

    def _elected(self, server_round: int, replies: Iterable[Message]) -> tuple[int, Answers | None]:
        """How many voted, and what their ballots come to; who voted is what Flower says, not the ballot."""
        pairs = taken(
            replies,
            lambda one: Ballot.from_bytes(_said(one), self._about),
            server_round=server_round,
            refusals=self.refusals,
        )
        came = [
            Cast(voter=str(reply.metadata.src_node_id), sequence=server_round, ballot=ballot)
            for reply, ballot in pairs
        ]
        return len(came), Answers.elected(tally(self._about, came), quorum=self._quorum) if came else None

    def _lesson(self) -> dict[str, ConfigRecord]:
        if self.consensus is None:
            return {}
        return {LESSON: ConfigRecord({"answers": self.consensus.to_bytes()})}


@final
class HeadFromProxy:
    """Distils what was agreed into a head on the server's own features, in closed form.

    Args:
        features: of the proxy inputs, by the server's student: `[N, D]` (`Node.features`).
        like: statistics of the server's bundle.
    """

    def __init__(self, features: NDArray[np.float32], like: Statistics) -> None:
        self._features = features
        self._empty = Statistics.empty(
            backbone=like.backbone, window=0, classes=like.classes, features=like.features
        )

    def __call__(self, consensus: Answers) -> ArrayRecord:
        """The head."""
        known = consensus.known
        total = self._empty.add(self._features[known], consensus.targets[known])
        return head_record(solve(total, ridge=usual_ridge(total)))


def _said(content: RecordDict) -> bytes:
    return one_value(content, ANSWER, "answers", bytes)


def _score(content: RecordDict) -> list[int]:
    n, *right = counts(content, COUNT, "right", "right-alone")
    if max(right) > n:
        raise EvidenceError(
            "more right than there were", where="metrics", expected=f"at most {n}", got=max(right)
        )
    return [n, *right]
