"""The benchmark of learning together: fleets that are dealt alike, a FedAvg that is FedAvg, and results that say what they claim."""

from __future__ import annotations

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

if TYPE_CHECKING:
    from types import ModuleType

pytest.importorskip("torch")
pytest.importorskip("sklearn")

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results" / "learn.json"
SKEWS = (100.0, 0.5, 0.1, 0.02)


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Imports a module of `bench/learning`."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return lambda name: importlib.import_module(f"learning.{name}")


@pytest.fixture
def fleets(bench: Any) -> ModuleType:
    """The module that deals samples out."""
    module: ModuleType = bench("fleets")
    return module


def whole(fleets: ModuleType, width: int = 8, n: int = 400) -> Any:
    """Four classes that a head can tell apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, n)
    centres = 2 * np.random.default_rng(1).normal(size=(4, width))
    features = centres[labels] + rng.normal(size=(n, width))
    return fleets.Part(features=features.astype(np.float32), labels=labels)


def small(fleets: ModuleType, skew: float = 0.1, width: int = 8, seed: int = 0) -> Any:
    """A fleet of these."""
    sizes = fleets.Sizes(test=80, proxy=60, validation=60)
    return fleets.fleet(whole(fleets, width), sizes, classes=4, skew=skew, seed=seed)


@pytest.fixture
def kept() -> dict[str, Any]:
    """The kept results."""
    found: dict[str, Any] = json.loads(RESULTS.read_text())
    return found


# Dealing out


@pytest.mark.parametrize("skew", SKEWS)
def test_every_sample_is_on_one_device_or_set_aside(fleets: ModuleType, skew: float) -> None:
    """None is lost, none is there twice."""
    part = fleets.Part(features=np.arange(400, dtype=np.float32)[:, None], labels=np.arange(400) % 4)
    sizes = fleets.Sizes(test=80, proxy=60, validation=60)
    one = fleets.fleet(part, sizes, classes=4, skew=skew, seed=0)
    assert [len(each) for each in (one.test, one.proxy, one.validation)] == [80, 60, 60]
    each = [*one.devices, one.test, one.proxy, one.validation]
    values = np.concatenate([part.features[:, 0] for part in each])
    assert len(np.unique(values)) == 400


def test_other_features_of_the_same_samples_are_dealt_alike(fleets: ModuleType) -> None:
    """So that widths can be compared; and the test samples are those of every seed."""
    for one, other in zip(small(fleets, width=8).devices, small(fleets, width=16).devices, strict=True):
        assert one.labels.tolist() == other.labels.tolist()
    assert small(fleets, seed=0).test.labels.tolist() == small(fleets, seed=1).test.labels.tolist()
    assert small(fleets, seed=0).proxy.labels.tolist() != small(fleets, seed=1).proxy.labels.tolist()


def test_a_smaller_number_is_more_skew(fleets: ModuleType) -> None:
    """Share of a device's samples that are of its most frequent class, over the devices."""
    shares = [
        np.mean(
            [
                np.bincount(one.labels).max() / len(one)
                for seed in range(5)
                for one in small(fleets, skew, seed=seed).devices
                if len(one)
            ]
        )
        for skew in SKEWS
    ]
    assert shares == sorted(shares)


# The others


def test_one_step_of_fedavg_by_hand(bench: Any, fleets: ModuleType) -> None:
    """One epoch in one batch from zeros: rate times the mean gradient, weighted by samples, is a step on all samples."""
    federated = bench("federated")
    one = small(fleets)
    settings = federated.Settings(epochs=1, rate=0.5, batch=1_000)
    found = next(federated.rounds(one, settings, count=1))
    x = np.hstack([one.central.features, np.ones((len(one.central), 1))])
    gradient = x.T @ (0.25 - one.central.one_hot(4)) / len(x)
    np.testing.assert_allclose(found, -0.5 * gradient, atol=1e-5)


def test_fedprox_stays_closer_to_the_server(bench: Any, fleets: ModuleType) -> None:
    """The larger mu, the shorter the way of a round; mu = 0 is FedAvg."""
    federated, one = bench("federated"), small(fleets)
    ways = [
        np.linalg.norm(
            next(federated.rounds(one, federated.Settings(epochs=5, rate=0.1, batch=16, mu=mu), count=1))
        )
        for mu in (0.0, 0.1, 1.0, 5.0)
    ]
    assert ways == sorted(ways, reverse=True)
    assert ways[0] > 1.5 * ways[-1]


def test_fedavg_learns_and_settings_are_chosen_on_validation(bench: Any, fleets: ModuleType) -> None:
    """The best of two rates, one of them useless, is told by the test samples of every fleet."""
    federated = bench("federated")
    dealt = [small(fleets, 0.5, seed=seed) for seed in (0, 1)]
    settings = [federated.Settings(epochs=1, rate=rate, batch=16) for rate in (0.0, 0.1)]
    trials = federated.Trials.of(dealt, settings, count=3)
    told = trials.told(3)
    assert trials.best(3) == 1
    assert told["settings"]["rate"] == 0.1
    assert told["accuracy"] == trials.test[1, :, 2].tolist()
    assert len(told["curve"]) == 3
    assert min(told["accuracy"]) > 0.8


def test_heads_of_eight_bits_are_the_nearest_of_255_levels(bench: Any) -> None:
    """Weight and bias of each setting have a scale of their own; zeros stay zeros, and rounding twice changes nothing."""
    federated = bench("federated")
    heads = np.random.default_rng(0).normal(size=(9, 3, 4)).astype(np.float32) * [[[1.0], [50.0], [0.0]]]
    heads[-1] *= 1_000
    came = federated._rounded(heads, "int8")  # how heads arrive
    for one, other in ((heads[:-1], came[:-1]), (heads[-1:], came[-1:])):
        largest = np.abs(one).max(axis=(0, 2), keepdims=True)
        assert (np.abs(one - other) <= largest / 254 * 1.001).all()
        assert len(np.unique(other[:, 0])) <= 255
    assert not came[:, 2].any()
    np.testing.assert_allclose(federated._rounded(came, "int8"), came, rtol=1e-5)  # as above
    assert federated.head_bytes(8, 4, "int8") == 9 * 4


def test_fedavg_of_eight_bits_loses_little_where_it_learns(bench: Any, fleets: ModuleType) -> None:
    """The rival that takes a quarter of the bytes is no straw man."""
    federated, dealt = bench("federated"), [small(fleets, 0.5, seed=seed) for seed in (0, 1)]
    settings = [federated.Settings(epochs=1, rate=0.1, batch=16)]
    told = {
        precision: federated.Trials.of(dealt, settings, count=3, precision=precision).told(3)["accuracy"]
        for precision in ("float32", "int8")
    }
    assert np.abs(np.subtract(told["float32"], told["int8"])).max() <= 0.03


def test_fedavg_is_offered_as_many_settings_as_anybody(bench: Any) -> None:
    """Nobody is tuned harder than FedAvg and FedProx are."""
    federated, summed, voting = (bench(name) for name in ("federated", "summed", "voting"))
    assert min(len(federated.FEDAVG), len(federated.FEDPROX)) >= 30
    assert len(federated.FEDAVG) > max(len(summed.SOLUTIONS), len(voting.LIMITS))


# Ours


def test_sums_are_counted_as_the_messages_they_are(bench: Any, fleets: ModuleType) -> None:
    """Up is the longest message with its framing, down a bare head; and the result is the central one."""
    summed, dealt = bench("summed"), [small(fleets, 0.02, seed=seed) for seed in (0, 1)]
    found = summed.measured(dealt, summed.ENCODINGS["float32"])
    bare = 4 * (9 * 10 // 2 + 9 * 4)
    assert bare < found["up"] < bare + 400
    assert found["down"] == 4 * 9 * 4
    assert found["gap_points"] == [0.0, 0.0]
    assert min(found["accuracy"]) > 0.8


def test_what_jobs_ship_is_a_third_of_the_bytes_and_near_the_central_head(
    bench: Any, fleets: ModuleType
) -> None:
    """Sums in coordinates of the samples that whoever makes a bundle has, without their labels; also of devices that hold nothing."""
    summed, dealt = bench("summed"), [small(fleets, 0.02, width=32, seed=seed) for seed in (0, 1)]
    assert min(len(one) for fleet in dealt for one in fleet.devices) == 0
    floats, coded = (summed.measured(dealt, summed.ENCODINGS[name]) for name in ("float32", summed.SHIPPED))
    assert coded["up"] < floats["up"] / 2
    assert coded["down"] == floats["down"]
    assert max(map(abs, coded["gap_points"])) <= 2.5


def test_labels_have_no_part_in_coordinates(bench: Any, fleets: ModuleType) -> None:
    """Whatever the labels of the shared set and of the validation samples are, messages are the same."""
    summed, one = bench("summed"), small(fleets)
    other = replace(one, proxy=replace(one.proxy, labels=one.proxy.labels[::-1]))
    encoding = summed.ENCODINGS[summed.SHIPPED]
    made = [summed.coordinates(encoding.reference(each)) for each in (one, other)]
    assert made[0].backbone == made[1].backbone


def test_sums_too_rough_to_be_solved_count_as_wrong(bench: Any, fleets: ModuleType) -> None:
    """A way that has no solution is never chosen, and no error."""
    summed, dealt = bench("summed"), [small(fleets, 0.5)]
    total = summed.sums(dealt[0].central, 4)
    broken = total.scaled(0.0)
    assert summed.head(broken, ("least squares", 1e-3)) is not None  # a least ridge is kept
    spoiled = type(total)(
        **{name: getattr(total, name) for name in ("backbone", "window", "classes", "features", "n", "b")},
        a=-total.a,
    )
    assert all(summed.head(spoiled, one) is None for one in summed.SOLUTIONS)
    assert summed.best([spoiled], dealt) in summed.SOLUTIONS


def test_the_way_that_is_best_on_validation_samples_is_taken(bench: Any, fleets: ModuleType) -> None:
    """Of least squares and discriminants, whatever their settings."""
    summed, round_ = bench("summed"), small(fleets, 0.5)
    found = summed.measured([round_], summed.ENCODINGS["float32"])
    rights = {
        one: summed.right(summed.head(summed.sums(round_.central, 4), one), round_.validation)
        for one in summed.SOLUTIONS
    }
    assert rights[tuple(found["solution"])] >= max(rights.values()) - 0.02


def test_votes_abstain_where_labels_are_skewed(bench: Any, fleets: ModuleType) -> None:
    """Ballots are smaller and the distilled head is better than with plain votes, also of students with other features."""
    voting = bench("voting")
    dealt = [small(fleets, 0.02, seed=seed) for seed in (0, 1, 2)]
    found = voting.voted(dealt, (2.0, np.inf))
    assert found[2.0]["up"] < 60
    assert np.mean(found[2.0]["accuracy"]) > np.mean(found[np.inf]["accuracy"])
    others = [
        [small(fleets, 0.02, width=8 + device, seed=seed) for device in range(10)] for seed in (0, 1, 2)
    ]
    different = voting.voted(dealt, (2.0,), others)
    assert np.mean(different[2.0]["accuracy"]) > np.mean(found[np.inf]["accuracy"])


def test_soft_labels_are_tuned_and_counted(bench: Any, fleets: ModuleType) -> None:
    """A byte for each sample and class; weighting is a setting."""
    voting = bench("voting")
    found = voting.soft({"even": [small(fleets, 100.0)]}, voting.LOCAL[1:3])
    assert found["up"] == 60 * 4
    assert found["trials"] == 4
    assert found["accuracy"][0] > 0.7


# What is kept


def test_the_kept_figures_are_those_of_the_kept_parts(bench: Any, kept: dict[str, Any]) -> None:
    """Each part has a module, and the figures that the project is held to follow from what is kept."""
    bench("fleets")  # puts the benches on the path
    module = importlib.import_module("bench_learn")
    assert set(module.modules()) == set(module.PARTS) == set(kept["parts"])
    assert module.figures(kept["parts"]) == kept["figures"]
    assert set(kept["figures"]) >= {
        "gap_to_central_points",
        "digits_minus_fedavg_points",
        "digits_fedavg_bytes_over_ours",
        "cifar_minus_fedavg_points",
        "cifar_bytes_over_fedavg",
    }


def test_every_skew_was_measured_with_three_seeds(kept: dict[str, Any]) -> None:
    """Of every method, at the width that the project is held to."""
    part = kept["parts"]["digits"]
    assert set(part["skews"]) == {"100", "0.5", "0.1", "0.02"}
    for one in part["skews"].values():
        told = [*one["statistics"].values(), *one["fedavg"].values(), *one["fedprox"].values()]
        told += [*one["votes"].values(), one["soft_labels"], one["votes_of_different_students"]]
        assert {len(each["accuracy"]) for each in told} == {3}
        assert one["fedavg"]["256 float32"]["rounds"] == 20


def test_one_message_is_the_central_head_with_fewer_bytes(kept: dict[str, Any]) -> None:
    """The bounds that the project set itself for digits."""
    figures = kept["figures"]
    assert figures["gap_to_central_points"] <= 0.1
    assert figures["digits_fedavg_bytes_over_ours"] >= 2


def test_our_message_takes_no_more_bytes_than_the_rounds_it_is_compared_with(kept: dict[str, Any]) -> None:
    """On all features of both backbones."""
    for backbone in kept["parts"]["cifar"]["backbones"].values():
        for one in backbone["features"].values():
            theirs = one["fedavg_equal"]
            assert one["ours"]["up"] + one["ours"]["down"] <= theirs["rounds"] * (
                theirs["round_up"] + theirs["round_down"]
            )
            _takes_as_few_rounds_as_reach_our_bytes(one["shipped"])
    assert kept["figures"]["cifar_bytes_over_fedavg"] <= 1
    assert kept["figures"]["cifar_minus_fedavg_points"] > 0


def _takes_as_few_rounds_as_reach_our_bytes(coded: dict[str, Any]) -> None:
    """What jobs ship, against FedAvg in float32 and in a quarter of that."""
    ours = coded["ours"]["up"] + coded["ours"]["down"]
    sizes = []
    for theirs in (coded["fedavg_float32"], coded["fedavg_int8"]):
        sizes.append(theirs["round_up"] + theirs["round_down"])
        assert (theirs["rounds"] - 1) * sizes[-1] < ours <= theirs["rounds"] * sizes[-1]
        assert theirs["trials"] >= 30
    assert sizes[0] == 4 * sizes[1] == 2 * coded["ours"]["down"]
    assert coded["fedavg_int8_unrounded"]["rounds"] == coded["fedavg_int8"]["rounds"]


def test_what_jobs_ship_was_measured_wherever_sums_were(kept: dict[str, Any]) -> None:
    """At each skew and width of the digits, with a reference that is told."""
    for skew in kept["parts"]["digits"]["skews"].values():
        names = {name.partition(" ")[2] for name in skew["statistics"]}
        assert {"float32", "int8, all coordinates", "int8, coordinates of the shared set alone"} <= names
    assert kept["figures"]["cifar_int8_minus_fedavg_points"] > 0


def test_one_liar_takes_little_from_the_robust_head(kept: dict[str, Any]) -> None:
    """Of every world and attack; and the plain sum, which believes everybody, loses far more."""
    part = kept["parts"]["hostile"]
    assert kept["figures"]["hostile_shift_points"] <= 2.5
    for skews in part.values():
        for found in skews.values():
            assert found["none"]["refused"]["most"] == 0, "honest devices pass the screens"
            plain = min(one["plain"]["mean"] for one in found.values())
            assert plain < min(one["robust"]["mean"] for one in found.values()) - 20


def test_a_head_goes_back_in_two_kilobytes(kept: dict[str, Any]) -> None:
    """In whatever light devices see; it brings them something, and codes change few of its answers."""
    assert kept["figures"]["update_bytes"] <= 2_000
    for world in kept["parts"]["rounds"].values():
        assert world["after"] > world["before"]
        assert world["rounded"] < 0.01


def test_ten_thousand_messages_are_summed_by_one_process(kept: dict[str, Any]) -> None:
    """As many as the page of the hub says, in seconds of the processor."""
    part = kept["parts"]["summing"]
    assert (part["devices"], part["features"], part["classes"]) == (10_000, 256, 10)
    assert kept["figures"]["sum_10k_cpu_s"] <= 15


@pytest.mark.parametrize("part", ["betting", "encodings", "hostile", "noisy", "summing"])
def test_each_part_runs_and_tells_its_figures(bench: Any, tmp_path: Path, part: str) -> None:
    """In the quick form, which needs no data from elsewhere."""
    module = bench(part)
    found = json.loads(json.dumps(module.measured(tmp_path, tmp_path, quick=True)))
    assert found
    assert all(np.isfinite(value) for value in module.figures(found).values())
