"""How a device sends its sums: coordinates, codes, noise, and an account that no kill and no restart forgets."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from device_bundles import (
    CLASSES,
    FEATURES,
    HERE,
    batches,
    features_of,
    logits_of,
    model,
    policy_of,
    tiny_bundle,
)

from edgestill.core import bundle as bundles
from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError, PathError, SettingError
from edgestill.core.sharing import ALL, PLAIN, Noise, Sharing
from edgestill.device.arrays import to_tensor
from edgestill.device.frames import Frame
from edgestill.device.home import Home, Identity, Settings
from edgestill.device.memory import Memory
from edgestill.device.model import Serving
from edgestill.device.sending import Account, Sender
from edgestill.infer.policy import Policy
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.privacy import Spent
from edgestill.learn.screens import read
from edgestill.learn.statistics import Statistics, dtype_of
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.oip import Tensor

DAY = 86_400.0
BACKBONE = Digest.of(model(1))
NOISE = Noise(epsilon=8.0, delta=1e-6, messages=2, norm=2.0, weight=1.0)
PRIVATE = Sharing(encoding="float32", kept=2, least=16, noise=NOISE)


def reference() -> Statistics:
    """As the tiny bundle has it."""
    seen = batches(200, 7)
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=CLASSES, features=FEATURES)
    one = empty.add(features_of(1, seen), np.eye(CLASSES)[logits_of(1, seen).argmax(axis=1)])
    return Statistics.from_bytes(one.to_bytes())


def home_at(path: Path) -> Home:
    """A device that asks nobody."""
    identity = Identity(
        device="d1", credential="c" * 32, hub="http://127.0.0.1:9", hardware_class=HERE, interval=1.0
    )
    return Home.create(path, identity=identity, settings=Settings(leaves="raw", labels={}), root=b"{}")


def serving(home: Home, sharing: Sharing, clock: FakeClock, seed: int = 1) -> Serving:
    """A bundle of this policy that serves, without a teacher."""
    path = home.path / "x.esb"
    path.write_bytes(
        tiny_bundle(seed=seed, policy=policy_of(statistics=sharing, escalation_share=0.0, audit_share=0.0))
    )
    return Serving.open(home, path, clock=clock, random=lambda: 0.9)


def taught(one: Serving, n: int, seed: int = 3, scale: float = 1.0) -> np.ndarray[Any, Any]:
    """Teaches n labelled inputs, and gives their features."""
    inputs = (scale * batches(n, seed)).astype(np.float32)
    labels = np.arange(n) % CLASSES
    one.answer(Frame({"op": "teach"}, (to_tensor("input", inputs), to_tensor("labels", labels))))
    return features_of(1, inputs)


def sent(one: Serving) -> bytes | None:
    """The message that was handed out, if any."""
    tensor: Tensor | None = one.collect().tensor("statistics")
    return None if tensor is None else bytes(tensor.data)


def told(one: Serving) -> Any:
    """What status says of privacy."""
    return one.status()["privacy"]


def test_a_policy_that_says_nothing_sends_as_before(tmp_path: Path) -> None:
    """The features' own sums, as float32; nothing is said of privacy."""
    one = serving(home_at(tmp_path / "h"), PLAIN, FakeClock())
    features = taught(one, 20)
    data = sent(one)
    assert data is not None
    assert dtype_of(data) == "float32"
    found = read(data, backbone=BACKBONE)
    np.testing.assert_allclose(found.matrix[:-1, :-1], features.T @ features, rtol=1e-4, atol=1e-4)
    assert told(one) is None


def test_codes_in_the_references_coordinates_are_what_the_device_saw(tmp_path: Path) -> None:
    """The hub lifts the sum back, and has the device's sums within half a code."""
    one = serving(home_at(tmp_path / "h"), Sharing(), FakeClock())
    features = taught(one, 40)
    data = sent(one)
    assert data is not None
    assert dtype_of(data) == "int8"
    coordinates = Coordinates.of(reference(), ALL)
    found = coordinates.lift(read(data, backbone=coordinates.backbone))
    exact = features.T @ features
    assert np.abs(found.matrix[:-1, :-1] - exact).max() < 0.01 * np.abs(exact).max()
    assert found.n == 40


def test_a_policy_names_the_least_number_of_samples(tmp_path: Path) -> None:
    """With 30 asked for, 29 stay where they are."""
    one = serving(home_at(tmp_path / "h"), Sharing(least=30), FakeClock())
    taught(one, 29)
    assert sent(one) is None
    taught(one, 1)
    assert sent(one) is not None


def test_a_noisy_window_is_sent_once_when_it_is_over(tmp_path: Path) -> None:
    """Not while it grows, not a second time, and not where it has too few samples."""
    clock = FakeClock()
    one = serving(home_at(tmp_path / "h"), PRIVATE, clock)
    taught(one, 40)
    assert sent(one) is None
    clock.advance(DAY)
    data = sent(one)
    assert data is not None
    found = read(data, backbone=Coordinates.of(reference(), 2).backbone)
    assert min(found.noise) > 0
    assert sent(one) is None
    taught(one, 5)
    clock.advance(DAY)
    assert sent(one) is None
    assert told(one)["messages"] == 1


def test_what_is_sent_is_clipped(tmp_path: Path) -> None:
    """Samples a thousand times as long as usual weigh as much as any: their squares are within the norm's."""
    clock = FakeClock()
    one = serving(home_at(tmp_path / "h"), replace(PRIVATE, noise=replace(NOISE, epsilon=1e5)), clock)
    taught(one, 200, scale=1_000.0)
    clock.advance(DAY)
    data = sent(one)
    assert data is not None
    found = read(data)
    squares = found.matrix.diagonal()[:-1].sum()
    assert squares <= 200 * NOISE.norm**2 + 7 * FEATURES * found.noise[0]


def test_the_account_outlives_restarts_and_ends(tmp_path: Path) -> None:
    """Two messages were allowed: after them nothing is sent, by whatever bundle, and status says so."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    for day in range(4):
        one = serving(home, PRIVATE, clock, seed=1 if day < 3 else 2)
        taught(one, 40, seed=day)
        clock.advance(DAY)
        assert (sent(one) is not None) == (day < 2)
        one.close()
    said = told(serving(home, PRIVATE, clock))
    assert said["messages"] == 2
    assert said["epsilon_spent"] == pytest.approx(8.0, rel=1e-4)
    assert said["epsilon_of_each"] < 8.0
    assert (said["epsilon_allowed"], said["may_send"], said["unit"]) == (8.0, False, "sample")


def test_a_window_is_not_paid_for_twice_after_a_restart(tmp_path: Path) -> None:
    """The sums are still there, the window's number is, too."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    one = serving(home, PRIVATE, clock)
    taught(one, 40)
    clock.advance(DAY)
    assert sent(one) is not None
    one.close()
    assert sent(serving(home, PRIVATE, clock)) is None


def test_a_clock_that_stood_in_the_future_does_not_block_sending(tmp_path: Path) -> None:
    """Sent of a year ahead, then set right: the next whole window is sent, and none of the future's samples again."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    clock.jump(365 * DAY)
    one = serving(home, replace(PRIVATE, noise=replace(NOISE, epsilon=1e6)), clock)
    taught(one, 40)
    clock.advance(DAY)
    assert sent(one) is not None
    clock.jump(-366 * DAY)
    assert sent(one) is None
    one.close()
    again = serving(home, replace(PRIVATE, noise=replace(NOISE, epsilon=1e6)), clock)
    clock.advance(DAY)
    taught(again, 20)
    clock.advance(DAY)
    data = sent(again)
    assert data is not None
    assert abs(read(data).n - 20) <= 2
    again.close()
    names = [path.name for path in home.learned.glob("*.clipped")]
    assert len(names) == 1
    assert told(again)["messages"] == 2


def test_a_window_over_while_the_device_was_off_is_sent_after(tmp_path: Path) -> None:
    """Kept by the same bundle, its samples were clipped."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    one = serving(home, PRIVATE, clock)
    taught(one, 40)
    one.close()
    clock.advance(2 * DAY)
    assert sent(serving(home, PRIVATE, clock)) is not None


def test_samples_that_were_not_clipped_are_never_sent_with_noise(tmp_path: Path) -> None:
    """A bundle whose policy adds no noise learned them: the next one, of the same backbone, never sends them, however often it starts."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    one = serving(home, PLAIN, clock)
    taught(one, 40, scale=1_000.0)
    one.close()
    for _ in range(3):
        again = serving(home, PRIVATE, clock)
        assert sent(again) is None
        again.close()
        clock.advance(DAY)


@pytest.mark.parametrize("change", [{"norm": 1.0}, {"weight": 0.5}])
def test_samples_that_were_clipped_otherwise_are_never_sent(tmp_path: Path, change: dict[str, Any]) -> None:
    """A policy with a smaller norm, or a smaller weight, forgets what was clipped for the larger one."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    one = serving(home, PRIVATE, clock)
    taught(one, 40)
    one.close()
    assert list(home.learned.glob("*.clipped"))
    clock.advance(DAY)
    stricter = serving(home, replace(PRIVATE, noise=replace(NOISE, **change)), clock)
    assert sent(stricter) is None
    assert not list(home.learned.glob("*.clipped"))
    stricter.close()
    assert sent(serving(home, PRIVATE, clock)) is None


def test_what_is_learned_on_the_device_is_not_clipped(tmp_path: Path) -> None:
    """A private policy changes what is sent, not the sums of which the device makes its own head."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    one = serving(home, PRIVATE, clock)
    features = taught(one, 40, scale=1_000.0)
    one.close()
    (kept,) = home.learned.glob("*.stats")
    found = Statistics.from_bytes(kept.read_bytes())
    np.testing.assert_allclose(found.matrix[:-1, :-1], features.T @ features, rtol=1e-4)


def test_clipped_features_are_within_the_norm_as_they_are_summed() -> None:
    """Also where they lie far from 0 and differ little, so that float32 would round them over the norm."""
    rng = np.random.default_rng(0)
    spread = np.logspace(0, -2, FEATURES)
    seen = (50 + rng.normal(size=(400, FEATURES)) * spread).astype(np.float32)
    labels = np.eye(CLASSES)[rng.integers(0, CLASSES, len(seen))]
    told = Statistics.empty(backbone=BACKBONE, window=0, classes=CLASSES, features=FEATURES)
    far = told.add(seen, labels)
    sharing = replace(PRIVATE, kept=ALL)
    sender = Sender(far, sharing, account=Account(), rng=np.random.default_rng(0))
    coordinates = Coordinates.of(far, ALL)
    for one in (50 + 20 * rng.normal(size=(200, FEATURES)) * spread).astype(np.float32):
        near, _ = sender.prepared(one, 1.0)
        sums = coordinates.project(told.add(near[None], labels[:1]))
        assert sums.matrix.diagonal()[:-1].sum() <= NOISE.norm**2


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_kill_around_the_account_loses_a_message_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """Killed before it is written nothing was sent; killed after, it is paid and lost. Never sent and not paid."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    one = serving(home, PRIVATE, clock)
    taught(one, 40)
    clock.advance(DAY)
    whole = bundles.replace

    class KilledError(BaseException):
        """The process is gone."""

    def killed(path: Path, data: bytes) -> None:
        if path.name == "privacy.json":
            if moment == "after":
                whole(path, data)
            raise KilledError
        whole(path, data)

    monkeypatch.setattr(bundles, "replace", killed)
    with pytest.raises(KilledError):
        one.collect()
    monkeypatch.undo()
    again = serving(home, PRIVATE, clock)
    assert (sent(again) is None) == (moment == "after")
    assert told(again)["messages"] == 1


def test_an_account_that_cannot_be_written_sends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full disk must not make noise free."""
    clock = FakeClock()
    one = serving(home_at(tmp_path / "h"), PRIVATE, clock)
    taught(one, 40)
    clock.advance(DAY)

    def full(_self: Memory, _account: Account) -> None:
        raise PathError("no room", where="privacy.json", expected="room", got="none", fix="make some")

    monkeypatch.setattr(Memory, "keep_account", full)
    assert sent(one) is None


@pytest.mark.parametrize(
    "data", [b"", b"{}", b"{", b'{"spent":{"rho":-1,"messages":0},"window":0}', b"x" * 20_000]
)
def test_attack_a_damaged_account_is_no_new_beginning(tmp_path: Path, data: bytes) -> None:
    """What was spent is not known: nothing is sent, and status says that it is not known."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    home.learned.mkdir(parents=True, exist_ok=True)
    (home.learned / "privacy.json").write_bytes(data)
    one = serving(home, PRIVATE, clock)
    taught(one, 40)
    clock.advance(DAY)
    assert sent(one) is None
    assert (told(one)["epsilon_spent"], told(one)["may_send"]) == (None, False)


def test_attack_a_lost_account_is_no_new_beginning(tmp_path: Path) -> None:
    """All that was learned is gone, what was spent is not: the budget of two messages stays spent."""
    home, clock = home_at(tmp_path / "h"), FakeClock()
    for day in range(3):
        one = serving(home, PRIVATE, clock)
        taught(one, 40, seed=day)
        clock.advance(DAY)
        assert (sent(one) is not None) == (day < 2)
        one.close()
        shutil.rmtree(home.learned)
    assert told(serving(home, PRIVATE, clock))["messages"] == 2


@pytest.mark.parametrize("newer", ["home", "learned"])
def test_of_two_accounts_the_one_that_spent_more_counts(tmp_path: Path, newer: str) -> None:
    """A kill between the two, or an older agent that knows but one of them, loses nothing of what was spent."""
    home = home_at(tmp_path / "h")
    home.learned.mkdir(parents=True, exist_ok=True)
    old, new = (Account(spent=Spent(rho=float(one), messages=one), window=one) for one in (1, 2))
    for name, folder in (("home", home.path), ("learned", home.learned)):
        (folder / "privacy.json").write_bytes((new if name == newer else old).to_bytes())
    assert Memory(home.learned, BACKBONE).account() == new


def test_noise_of_the_system_differs_and_given_noise_does_not(tmp_path: Path) -> None:
    """The generator is an argument; without one no two messages have the same noise."""
    made = []
    for seed in (1, 1, None, None):
        rng = np.random.default_rng(seed)
        sender = Sender(reference(), PRIVATE, account=Account(), rng=rng)
        made.append(sender.message(reference()))
    assert made[0] == made[1]
    assert len(set(made)) == 3


def test_a_window_is_paid_for_once() -> None:
    """In order, and only while there is something left."""
    sender = Sender(reference(), PRIVATE, account=Account(), rng=np.random.default_rng(0))
    first = sender.pay(5)
    assert Account.from_bytes(first.to_bytes()) == first
    with pytest.raises(EvidenceError, match="a window that was sent"):
        sender.pay(5)
    assert sender.pay(6).spent.messages == 2
    with pytest.raises(EvidenceError, match="the privacy budget is spent"):
        sender.pay(7)
    with pytest.raises(MessageError):
        Account.from_bytes(b'{"spent":{"rho":1,"messages":1},"window":-2}')


def test_an_account_of_a_stricter_policy_counts_on(tmp_path: Path) -> None:
    """What was spent under one policy is not given back by the next."""
    spent = Account(spent=Spent(rho=100.0, messages=3), window=1)
    sender = Sender(reference(), PRIVATE, account=spent, rng=np.random.default_rng(0))
    assert not sender.may_pay()


def test_a_reference_without_the_policys_coordinates_sends_nothing(tmp_path: Path) -> None:
    """It serves and learns all the same."""
    flat = Statistics.empty(backbone=BACKBONE, window=0, classes=CLASSES, features=FEATURES).add(
        np.ones((50, FEATURES)), np.eye(CLASSES)[np.arange(50) % CLASSES]
    )
    home = home_at(tmp_path / "h")
    path = home.path / "x.esb"
    path.write_bytes(
        tiny_bundle(policy=policy_of(statistics=Sharing()), blobs={"reference.stats": flat.to_bytes()})
    )
    one = Serving.open(home, path, clock=FakeClock(), random=lambda: 0.9)
    taught(one, 40)
    assert sent(one) is None


# The policy


def test_a_policy_keeps_how_sums_are_sent() -> None:
    """There and back; the default is not written, so that older devices' policies stay what they were."""
    for sharing in (PLAIN, Sharing(), PRIVATE):
        policy = Policy(labels=("a",), statistics=sharing)
        assert Policy.from_bytes(policy.to_bytes()).statistics == sharing
        assert ("statistics" in json.loads(policy.to_bytes())) == (sharing != PLAIN)


def test_attack_an_agent_that_knows_no_noise_refuses_a_policy_that_asks_for_it() -> None:
    """It reads schema 1 only: without noise the schema is what it always was, with noise it is another."""
    policies = [Policy(labels=("a",), statistics=sharing) for sharing in (PLAIN, Sharing(), PRIVATE)]
    assert [json.loads(policy.to_bytes())["schema"] for policy in policies] == [1, 1, 2]


def test_a_section_has_defaults_and_keeps_what_it_does_not_know() -> None:
    """`statistics` and `on_drift` alike; what is unknown is written again."""
    told = {
        "schema": 1,
        "labels": ["a"],
        "statistics": {"kept": 16, "newer": {"x": 1}},
        "on_drift": {"do": ["audit"], "newer": [2]},
    }
    policy = Policy.from_bytes(json.dumps(told).encode())
    assert (policy.statistics.kept, policy.statistics.encoding, policy.statistics.least) == (16, "int8", 16)
    assert (policy.on_drift.do, policy.on_drift.audit_inputs) == (("audit",), 2_000)
    again = json.loads(policy.to_bytes())
    assert (again["statistics"]["newer"], again["on_drift"]["newer"]) == ({"x": 1}, [2])
    assert Policy.from_bytes(policy.to_bytes()) == policy


def test_attack_of_noise_nothing_is_passed_over() -> None:
    """Noise that says more, or less, than an agent knows is no noise that it can add."""
    told = json.loads(Policy(labels=("a",), statistics=PRIVATE).to_bytes())
    for change in ("more", "less"):
        noise = dict(told["statistics"]["noise"])
        if change == "more":
            noise["clip_targets"] = 0.5
        else:
            del noise["norm"]
        other = told | {"statistics": told["statistics"] | {"noise": noise}}
        with pytest.raises(MessageError):
            Policy.from_bytes(json.dumps(other).encode())


@pytest.mark.parametrize(
    "change",
    [
        {"encoding": "int4"},
        {"kept": -1},
        {"kept": ALL + 1},
        {"least": 0},
        {"noise": NOISE},
        {"noise": NOISE, "encoding": "float32", "kept": 0},
    ],
)
def test_a_policy_out_of_range_is_refused(change: dict[str, Any]) -> None:
    """Noise needs floats of bounded coordinates."""
    with pytest.raises(SettingError, match="statistics: "):
        Sharing(**change)


@pytest.mark.parametrize(
    "change",
    [
        {"unit": "fleet"},
        {"epsilon": 0.0},
        {"delta": 1.0},
        {"messages": 0},
        {"norm": -1.0},
        {"most": float("nan")},
    ],
)
def test_noise_out_of_range_is_refused(change: dict[str, Any]) -> None:
    """Each value by its name."""
    with pytest.raises(SettingError, match=f"noise: {next(iter(change))}"):
        replace(NOISE, **change)


def test_noise_comes_from_the_system_unless_somebody_gives_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A message is made of as many bytes of the system's randomness as it has elements, and more."""
    asked: list[int] = []
    whole = os.urandom

    def counted(size: int) -> bytes:
        asked.append(size)
        return whole(size)

    monkeypatch.setattr(os, "urandom", counted)
    clock = FakeClock()
    one = serving(home_at(tmp_path / "h"), PRIVATE, clock)
    taught(one, 40)
    clock.advance(DAY)
    asked.clear()
    assert sent(one) is not None
    assert sum(asked) >= 8 * (6 + 3 * CLASSES)
