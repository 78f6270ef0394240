"""What a device does about a change of its world: what its policy says, told in its status, and over restarts."""

from __future__ import annotations

from dataclasses import replace
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from device_bundles import HERE, HttpHub, TinyHub, batches, policy_of, tiny_bundle

from edgestill.core.answer import Answer
from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.wire import Health
from edgestill.device.arrays import answer_from_frame, to_tensor
from edgestill.device.frames import Frame
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.learning import Learner, Lessons
from edgestill.device.memory import Memory
from edgestill.device.model import Serving
from edgestill.device.noticing import Change, Noticing
from edgestill.infer.cascade import Escalation
from edgestill.infer.policy import Policy
from edgestill.infer.reaction import Action, Reaction
from edgestill.learn.statistics import Statistics
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

C, D = 3, 4
EVERYTHING = Reaction(do=("audit", "learn", "report"), audit_factor=2, audit_inputs=500)


# The learner


def reference() -> Statistics:
    """Of features around 0."""
    rng = np.random.default_rng(1)
    empty = Statistics.empty(backbone=Digest.of(b"backbone"), window=0, classes=C, features=D)
    return empty.add(rng.normal(size=(400, D)), np.eye(C)[rng.integers(C, size=400)])


def learner(do: tuple[Action, ...], raises: list[bool] | None = None, *, works: bool = True) -> Learner:
    """One whose policy says so; what it raised is noted."""

    def raise_audits() -> bool:
        if raises is not None:
            raises.append(works)
        return works

    policy = Policy(labels=("a", "b", "c"), audit_share=0.1, threshold=0.6, on_drift=Reaction(do=do))
    clock = FakeClock(now=1_800_000_000.0)
    return Learner(
        bundle=Digest.of(b"bundle"),
        reference=reference(),
        policy=policy,
        clock=clock,
        lessons=Lessons(least=1),
        raise_audits=raise_audits,
    )


def heard(n: int, seed: int, *, shift: float = 0.0, **options: Any) -> Escalation:
    """N inputs about which the teacher was heard."""
    features = (np.random.default_rng(seed).normal(size=(n, D)) + shift).astype(np.float32)
    said = np.eye(C, dtype=np.float32)[features[:, :C].argmax(axis=1)]
    answer = Answer(
        probabilities=said,
        confidence=np.full(n, 0.5, np.float32),
        decided_by=("fused",) * n,
        features=features,
        alpha=np.full(n, 0.5, np.float32),
        student=said,
        teacher=said,
    )
    values: dict[str, Any] = {"decisions": ("escalate",) * n, "confidence": np.full(n, 0.9, np.float32)}
    return Escalation(batch=features, answer=answer, **(values | options))


def changed(one: Learner) -> Change:
    """After its world has changed."""
    for seed in range(20):
        one.observe(heard(20, seed), threshold=0.6)
    assert one.change is None
    one.observe(heard(60, 90, shift=6.0), threshold=0.6)
    assert one.drift == "confirmed"
    found = one.change
    assert found is not None
    return found


@pytest.mark.parametrize(
    "do",
    [(), ("learn",), ("report",), ("audit",), ("report", "learn"), ("audit", "learn", "report")],
    ids=lambda do: "+".join(do) or "nothing",
)
def test_what_the_policy_says_is_done_and_nothing_else(do: tuple[Action, ...]) -> None:
    """Sums begin anew only with `learn`, audits are raised only with `audit`, once; and the change tells what was done."""
    raises: list[bool] = []
    one = learner(do, raises)
    change = changed(one)
    assert (change.stream, change.at) == ("leverage", 1_800_000_000.0)
    assert 48 <= change.ago <= 64
    assert 400 < change.seen <= 460
    assert set(change.triggered) == set(do)
    assert len(raises) == ("audit" in do)
    sums = one.statistics()
    assert sums is not None
    assert (sums.n <= 64) is ("learn" in do)
    one.observe(heard(200, 91, shift=12.0), threshold=0.6)
    assert one.change == change
    assert len(raises) == ("audit" in do)


def test_audits_that_cannot_be_raised_are_not_told_as_raised() -> None:
    """Where no audit may leave, or nobody can be asked."""
    assert changed(learner(("audit", "report"), works=False)).triggered == ("report",)


def test_an_audit_stands_for_as_many_inputs_as_its_coin_was_tossed_for() -> None:
    """While one in two is audited an audit of a sure input counts twice; when it is the policy's tenth, ten times."""
    one = learner(("audit",))
    one.observe(heard(4, 3, decisions=("audit",) * 4, audit_shares=(0.5, 0.5, 0.25, 0.25)), threshold=0.6)
    one.observe(heard(2, 4, decisions=("audit",) * 2), threshold=0.6)
    sums = one.statistics()
    assert sums is not None
    assert sums.weight == pytest.approx(2 + 2 + 4 + 4 + 10 + 10)


# What is kept


def shifted(noticing: Noticing) -> Noticing:
    """It has noticed that the features lie elsewhere."""
    usual = [0.02, 0.03, 0.025, 0.02] * 100
    noticing.see(leverage=usual, confidence=[0.8] * 400)
    noticing.see(leverage=[0.4] * 100, confidence=[0.8] * 100)
    noticing.answered(at=5.0, triggered=("learn",))
    return noticing


def fields_of(noticing: Noticing, **changes: object) -> Fields:
    """As it comes back from the disk."""
    told = parse_object(canonical(noticing.as_json()), where="t")
    return Fields({name: one for name, one in (told | changes).items() if one is not None}, "t")  # type: ignore[misc]  # attacks


def test_a_change_is_recalled_and_a_state_without_one_is_too() -> None:
    """What an older agent wrote tells that there was one, and not which."""
    one = shifted(Noticing())
    assert one.change is not None
    again = Noticing()
    again.recall(fields_of(one))
    assert again.change == one.change
    older = Noticing()
    older.recall(fields_of(one, change=None))
    assert (older.verdict, older.change) == ("confirmed", None)


@pytest.mark.parametrize(
    "change",
    [
        {"stream": "gut"},
        {"ago": -1},
        {"seen": 0.5},
        {"at": 1e300},
        {"triggered": "learn"},
        {"triggered": ["learn"] * 9},
        {"triggered": ["x" * 30]},
        {"triggered": ["\x1b[2J"]},
    ],
    ids=repr,
)
def test_attack_a_damaged_change_is_refused(change: dict[str, object]) -> None:
    """And nothing of the state is taken up."""
    one = shifted(Noticing())
    assert one.change is not None
    noticing = Noticing()
    before = noticing.as_json()
    with pytest.raises(MessageError):
        noticing.recall(fields_of(one, change=one.change.as_json() | change))
    with pytest.raises(MessageError, match="nobody was sure of"):
        noticing.recall(fields_of(one, sure=False))
    assert noticing.as_json() == before


def test_a_clock_that_is_out_of_its_mind_gives_a_date_all_the_same() -> None:
    """A moment that no calendar has is the nearest that one has."""
    one = shifted(Noticing())
    for at, kept in ((-5.0, 0.0), (1e300, 253_402_300_799)):
        one.answered(at=at, triggered=())
        assert one.change is not None
        assert one.change.at == kept


# The bundle that serves


@pytest.fixture(scope="module")
def server() -> Iterator[HttpHub]:
    """A hub with a teacher."""
    with HttpHub(TinyHub()) as one:
        yield one


class Device:
    """A device whose bundle answers a change so; its engine can be started again and again."""

    def __init__(
        self, path: Path, hub: str, reaction: Reaction, *, leaves: str = "raw", a_day: int | None = None
    ) -> None:
        identity = Identity(device="d1", credential="c" * 32, hub=hub, hardware_class=HERE, interval=1.0)
        self.home = Home.create(
            path / "h", identity=identity, settings=Settings(leaves=leaves, labels={}), root=b"{}"
        )
        policy = policy_of(
            threshold=0.5, escalation_share=0.2, audit_share=0.1, on_drift=reaction, bytes_per_day=a_day
        )
        self.archive = path / "x.esb"
        self.archive.write_bytes(tiny_bundle(policy=policy))
        self.coins = np.random.default_rng(0)
        self.start()

    def start(self) -> Serving:
        """Its engine, anew."""
        self.serving = Serving.open(
            self.home, self.archive, clock=FakeClock(now=1_800_000_000.0), random=self.coins.random
        )
        return self.serving

    def meets(self, batch: NDArray[np.float32]) -> None:
        """Answers inputs, a few at a time."""
        for at in range(0, len(batch), 50):
            frame = Frame({"op": "predict"}, (to_tensor("input", batch[at : at + 50]),))
            assert len(answer_from_frame(self.serving.answer(frame))) == len(batch[at : at + 50])

    def told(self) -> Health:
        """The figures that go to the hub; what is learned is kept with them."""
        return Health.from_fields(Fields(self.serving.collect().header, "engine").inner("health"))


USUAL, STRANGE = batches(300, 1), 20 * batches(100, 2)


def test_the_status_tells_what_happened_when_and_what_was_triggered(tmp_path: Path, server: HttpHub) -> None:
    """Before there is nothing to tell; afterwards it is told, over restarts too, and the raise goes on where it was."""
    one = Device(tmp_path, server.url, EVERYTHING)
    one.meets(USUAL)
    before = one.serving.status()
    assert (before["drift"], before["change"], before["audits_raised_for"]) == ("none", None, 0)
    one.told()
    one.meets(STRANGE)
    assert one.told().drift == "confirmed"
    status = one.serving.status()
    assert status["drift"] == "confirmed"
    change = status["change"]
    assert isinstance(change, dict)
    assert change["at"] == "2027-01-15T08:00:00Z"
    assert change["triggered"] == ["audit", "learn", "report"]
    left = status["audits_raised_for"]
    assert isinstance(left, int)
    assert 400 <= left <= 500
    again = one.start().status()
    assert (again["change"], again["audits_raised_for"]) == (change, left)
    one.meets(USUAL)
    assert one.serving.status()["audits_raised_for"] == left - 300


def test_another_bundle_begins_without_a_change_and_without_a_raise(tmp_path: Path, server: HttpHub) -> None:
    """What was noticed under one bundle says nothing of the next; what was sent today stays sent."""
    one = Device(tmp_path, server.url, EVERYTHING, a_day=10**6)
    one.meets(USUAL)
    one.meets(STRANGE)
    assert one.told().bytes_up > 0
    assert one.serving.status()["audits_raised_for"]
    spent = one.serving._cascade.state.spent
    one.archive.write_bytes(tiny_bundle("1.1.0", policy=policy_of(on_drift=EVERYTHING)))
    status = one.start().status()
    assert (status["drift"], status["change"], status["audits_raised_for"]) == ("none", None, 0)
    assert one.serving._cascade.state.spent == spent > 0


def test_more_are_audited_after_a_change_within_the_same_share(tmp_path: Path, server: HttpHub) -> None:
    """A tenth becomes a fifth, which is all that may be asked about; then it is a tenth again."""
    one = Device(tmp_path, server.url, replace(EVERYTHING, audit_inputs=800))
    one.meets(USUAL)
    one.meets(STRANGE)
    assert one.told().drift == "confirmed"
    left = one.serving.status()["audits_raised_for"]
    assert isinstance(left, int)
    one.meets(batches(left, 3))
    during = one.told()
    assert during.audits == during.escalated, "the whole share is spent on audits"
    assert during.audits / left == pytest.approx(0.2, abs=0.06)
    one.meets(batches(800, 4))
    after = one.told()
    assert after.audits / 800 == pytest.approx(0.1, abs=0.04)
    assert after.escalated / 800 == pytest.approx(0.2, abs=0.05)


def test_bytes_and_share_hold_while_audits_are_raised(tmp_path: Path, server: HttpHub) -> None:
    """However large the factor: what was sent stays within the day's bytes."""
    reaction = Reaction(do=("audit",), audit_factor=1_000, audit_inputs=100_000)
    one = Device(tmp_path, server.url, reaction, a_day=60_000)
    sent = asked = n = 0
    for batch in (USUAL, STRANGE, *(batches(400, seed) for seed in range(5))):
        one.meets(batch)
        health = one.told()
        sent, asked, n = sent + health.bytes_up, asked + health.escalated, n + len(batch)
    assert one.serving.status()["audits_raised_for"] == 100_000 - 2_000
    assert 0 < sent <= 60_000
    assert asked / n <= 0.2 + 42 / n + 0.02


def test_a_device_that_may_not_report_says_none_to_the_hub_and_the_truth_to_its_owner(tmp_path: Path) -> None:
    """Without `report` the figures are those of a device that has noticed nothing."""
    one = Device(tmp_path, "http://127.0.0.1:9", Reaction(do=("learn",)), leaves="nothing")
    one.meets(USUAL)
    one.meets(STRANGE)
    assert one.told().drift == "none"
    assert one.serving.status()["drift"] == "confirmed"


def test_where_nothing_may_leave_no_audit_is_raised(tmp_path: Path) -> None:
    """The owner's level binds the publisher's policy; what cannot be done is not told as done."""
    one = Device(tmp_path, "http://127.0.0.1:9", EVERYTHING, leaves="nothing")
    one.meets(USUAL)
    one.meets(STRANGE)
    status = one.serving.status()
    assert status["audits_raised_for"] == 0
    assert isinstance(status["change"], dict)
    assert status["change"]["triggered"] == ["learn", "report"]


class KilledError(BaseException):
    """The power fails."""


def test_attack_a_kill_at_any_write_loses_no_raise(
    tmp_path: Path, server: HttpHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After each: either the change is known and audits are raised, or it is noticed again, and they are."""
    write = Memory._write
    for last in count():
        path = tmp_path / str(last)
        path.mkdir()
        one = Device(path, server.url, EVERYTHING)
        one.meets(USUAL)
        one.told()
        one.meets(STRANGE)
        left = [last]

        def failing(self: Memory, name: str, data: bytes, left: list[int] = left) -> None:
            if left[0] == 0:
                raise KilledError
            left[0] -= 1
            write(self, name, data)

        monkeypatch.setattr(Memory, "_write", failing)
        whole = True
        try:
            one.serving.keep()
        except KilledError:
            whole = False
        monkeypatch.setattr(Memory, "_write", write)
        one.start()
        if one.serving.status()["change"] is None:
            one.meets(STRANGE)
        status = one.serving.status()
        assert status["change"] is not None
        raised_for = status["audits_raised_for"]
        assert isinstance(raised_for, int)
        assert 0 < raised_for <= 500
        if whole:
            break
    assert last >= 3, "the policy's state, sums and progress were each cut off once"
