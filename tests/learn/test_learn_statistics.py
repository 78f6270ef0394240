"""Additive statistics: sums in any order, the central solution, honest messages, and what is refused."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING, get_args

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError
from edgestill.core.jsonio import canonical, parse_object
from edgestill.learn.encodings import Dtype
from edgestill.learn.statistics import MAX_BYTES, Statistics, clipped, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKBONE = Digest.of(b"backbone")
OTHER = Digest.of(b"another backbone")
D, C = 5, 3

seeds = st.integers(0, 10_000)
dtypes = st.sampled_from(get_args(Dtype))


def empty(window: int = 7, features: int = D, classes: int = C) -> Statistics:
    """Sums over nothing."""
    return Statistics.empty(backbone=BACKBONE, window=window, classes=classes, features=features)


def samples(
    seed: int, n: int = 40, *, whole: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Features `[n, D]` and targets `[n, C]`; whole numbers where sums must be exact."""
    rng = np.random.default_rng(seed)
    if whole:
        return rng.integers(-9, 10, (n, D)).astype(float), rng.integers(0, 2, (n, C)).astype(float)
    return rng.normal(size=(n, D)), rng.dirichlet(np.ones(C), n)


def same(one: Statistics, other: Statistics) -> bool:
    """Whether two sums are equal to the last bit."""
    return (
        (one.backbone, one.window, one.n) == (other.backbone, other.window, other.n)
        and np.array_equal(one.a, other.a)
        and np.array_equal(one.b, other.b)
    )


# Sums


def test_sums_by_hand() -> None:
    """Two samples with one feature: A = [[5, 3], [3, 2]], B = [[2, 1], [1, 1]]."""
    one = empty(features=1, classes=2).add(np.array([[1.0], [2.0]]), np.array([[0.0, 1.0], [1.0, 0.0]]))
    assert one.matrix.tolist() == [[5, 3], [3, 2]]
    assert one.a.tolist() == [5, 3, 2]
    assert one.b.tolist() == [[2, 1], [1, 1]]
    assert (one.n, one.weight) == (2, 2.0)


def test_weights_count_samples_several_times() -> None:
    """A weight of 3 is three times the sample, though it is one sample."""
    features, targets = samples(0, 4, whole=True)
    weighted = empty().add(features, targets, np.array([3.0, 1, 1, 1]))
    repeated = empty().add(features[[0, 0, 0, 1, 2, 3]], targets[[0, 0, 0, 1, 2, 3]])
    assert np.array_equal(weighted.a, repeated.a)
    assert np.array_equal(weighted.b, repeated.b)
    assert (weighted.n, weighted.weight) == (4, 6.0)


@given(seeds, st.lists(st.integers(0, 39), max_size=6), st.randoms(use_true_random=False))
def test_sums_do_not_depend_on_cuts_or_order(seed: int, cuts: list[int], random: object) -> None:
    """Samples dealt out to devices in any way, added in any order, give the same sums: exactly, for whole numbers."""
    features, targets = samples(seed, whole=True)
    parts = np.split(np.arange(40), sorted(cuts))
    random.shuffle(parts)  # type: ignore[attr-defined]  # a random.Random
    total = empty()
    for part in parts:
        total += empty().add(features[part], targets[part])
    assert same(total, empty().add(features, targets))


@given(seeds, seeds)
def test_addition_is_commutative_and_associative(first: int, second: int) -> None:
    """Exactly commutative; associative up to rounding."""
    a, b, c = (empty(window=w).add(*samples(s)) for w, s in ((1, first), (2, second), (3, 5)))
    assert same(a + b, b + a)
    np.testing.assert_allclose(((a + b) + c).a, (a + (b + c)).a, rtol=1e-12, atol=1e-12)
    assert (a + b + c).window == 3


def test_adding_changes_nothing_that_was_there() -> None:
    """Statistics are values."""
    one = empty()
    one.add(*samples(0))
    assert one.n == 0
    assert not one.a.any()


def test_scaling_weighs_a_prior_down() -> None:
    """Half of a prior has half its sums and all of its samples."""
    prior = empty().add(*samples(0))
    half = prior.scaled(0.5)
    np.testing.assert_allclose(half.a * 2, prior.a)
    assert (half.n, half.weight) == (prior.n, prior.n / 2)
    with pytest.raises(EvidenceError, match=r"a weight is out of range.*got -1"):
        prior.scaled(-1)


# The solution


@given(seeds, st.floats(1e-3, 10))
def test_the_sum_of_skewed_devices_has_the_central_solution(seed: int, ridge: float) -> None:
    """Devices that each see one class solve, together, what all samples in one place would."""
    features, targets = samples(seed)
    labels = targets.argmax(axis=1)
    total = empty()
    for label in range(C):
        total += empty().add(features[labels == label], targets[labels == label])
    phi = np.hstack([features, np.ones((40, 1))])
    central = np.linalg.solve(phi.T @ phi + ridge * np.eye(D + 1), phi.T @ targets)
    head = solve(total, ridge=ridge)
    np.testing.assert_allclose(np.vstack([head.weight, head.bias]), central, rtol=1e-4, atol=1e-5)
    assert head.weight.dtype == head.bias.dtype == np.float32


def test_the_solution_by_hand() -> None:
    """One feature 1 with target 1, ridge 1: A + I = [[2, 1], [1, 2]], so both weights are 1/3."""
    head = solve(empty(features=1, classes=1).add(np.array([[1.0]]), np.array([[1.0]])), ridge=1.0)
    assert head.weight.item() == pytest.approx(1 / 3)
    assert head.bias.item() == pytest.approx(1 / 3)


def test_the_solution_learns_what_is_linear() -> None:
    """A linear relation with a bias is found again."""
    features, _ = samples(0, 500)
    weight, bias = np.random.default_rng(1).normal(size=(D, C)), np.array([1.0, -2.0, 3.0])
    head = solve(empty().add(features, features @ weight + bias), ridge=1e-6)
    np.testing.assert_allclose(head.weight, weight, atol=1e-5)
    np.testing.assert_allclose(head.bias, bias, atol=1e-5)


@pytest.mark.parametrize("ridge", [0.0, -1.0, float("nan"), float("inf")])
def test_a_ridge_out_of_range_is_refused(ridge: float) -> None:
    """Without a positive ridge there may be no solution."""
    with pytest.raises(EvidenceError, match="ridge is out of range"):
        solve(empty().add(*samples(0)), ridge=ridge)


def test_sums_of_no_samples_are_refused() -> None:
    """A matrix that is not positive definite has no solution here, and the error says what to do."""
    one = empty(features=2, classes=1).add(np.eye(2), np.ones((2, 1)))
    bad = np.array([1.0, 1.0, 1.0, 1.0, -1.0, 1.0])  # pairwise possible, together not
    forged = Statistics(backbone=BACKBONE, window=0, classes=1, features=2, n=2, a=bad, b=one.b)
    with pytest.raises(EvidenceError, match=r"not the sums of any samples.*use a larger ridge"):
        solve(forged, ridge=0.1)


# Messages


@given(seeds, st.integers(0, 2**53 - 1))
def test_a_float64_message_is_exact(seed: int, window: int) -> None:
    """Nothing is lost."""
    one = empty(window=window).add(*samples(seed))
    back = Statistics.from_bytes(one.to_bytes("float64"), backbone=BACKBONE)
    assert same(one, back)
    assert (back.features, back.classes) == (D, C)


@given(seeds, dtypes)
def test_reading_and_writing_again_gives_the_same_bytes(seed: int, dtype: Dtype) -> None:
    """Rounding happens once."""
    data = empty().add(*samples(seed)).to_bytes(dtype)
    assert Statistics.from_bytes(data).to_bytes(dtype) == data


@given(seeds, st.floats(1e-3, 1e3))
def test_the_rounding_of_messages_is_bounded(seed: int, scale: float) -> None:
    """float32 keeps 7 digits, float16 a thousandth of the largest element, whatever the features' size."""
    features, targets = samples(seed)
    one = empty().add(features * scale, targets)
    for dtype, bound in (("float32", 1e-7), ("float16", 6e-4)):
        back = Statistics.from_bytes(one.to_bytes(dtype))  # type: ignore[arg-type]  # two of its values
        assert np.abs(back.a - one.a).max() <= bound * np.abs(one.a).max()
        assert np.abs(back.b - one.b).max() <= bound * np.abs(one.b).max()


def test_the_rounding_of_messages_hardly_moves_the_solution() -> None:
    """Ten devices' float16 messages: predictions differ by less than 0.005, float32 ones by less than 1e-5."""
    features, targets = samples(1, 2_000)
    exact = solve(empty().add(features, targets), ridge=1.0)
    for dtype, bound in (("float32", 1e-5), ("float16", 5e-3)):
        total = empty()
        for part in np.split(np.arange(2_000), 10):
            message = empty().add(features[part], targets[part]).to_bytes(dtype)  # type: ignore[arg-type]
            total += Statistics.from_bytes(message)
        head = solve(total, ridge=1.0)
        error = np.abs(features @ (head.weight - exact.weight) + head.bias - exact.bias).max()
        assert error < bound


def test_a_message_is_as_small_as_its_arrays() -> None:
    """256 features and 10 classes: 142 kB as float32, half as float16."""
    one = Statistics.empty(backbone=BACKBONE, window=0, classes=10, features=256)
    assert len(one.to_bytes()) == pytest.approx(142_860, abs=400)
    assert len(one.to_bytes("float16")) == pytest.approx(71_430, abs=400)


# Attacks


def forged(change: dict[str, object], body: bytes | None = None, dtype: Dtype = "float64") -> bytes:
    """A good message whose head has been altered, with its own arrays or others."""
    data = empty().add(*samples(0)).to_bytes(dtype)
    (length,) = struct.unpack_from("<I", data, 8)
    head = parse_object(data[12 : 12 + length], where="test")
    head.update(change)  # type: ignore[arg-type]  # whatever a test wants in it
    text = canonical(head)
    return data[:8] + struct.pack("<I", len(text)) + text + (data[12 + length :] if body is None else body)


def arrays(a: NDArray[np.float64], b: NDArray[np.float64]) -> bytes:
    """The body of a float64 message."""
    return a.astype("<f8").tobytes() + b.astype("<f8").tobytes()


GOOD = empty().add(*samples(0))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"n": -1}, "n; expected a whole number from 0"),
        ({"n": 0}, "not the sums of any samples"),
        ({"features": 10**9}, "features; expected a whole number from 1 to 2048"),
        ({"features": 6}, "head and arrays disagree; at statistics; expected 392 bytes; got 312"),
        ({"classes": 0}, "classes; expected a whole number from 1"),
        ({"classes": 65_536}, "head and arrays disagree"),
        ({"dtype": "object"}, "unknown element type"),
        ({"window": -1}, "window"),
        ({"window": 1.5}, "window"),
        ({"scale_a": 0}, "scale_a"),
        ({"scale_b": -1}, "scale_b"),
        ({"backbone": "sha1:00"}, "backbone"),
    ],
)
def test_attack_a_head_that_lies(change: dict[str, object], named: str) -> None:
    """Counts and scales are checked before anything is made of them."""
    with pytest.raises((MessageError, EvidenceError), match=named):
        Statistics.from_bytes(forged(change))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_attack_numbers_that_are_none(bad: float) -> None:
    """One NaN would poison the sum of a whole fleet."""
    for which in range(2):
        parts = [GOOD.a.copy(), GOOD.b.copy()]
        parts[which].flat[3] = bad
        with pytest.raises(EvidenceError, match="statistics hold NaN or infinity"):
            Statistics.from_bytes(forged({}, arrays(*parts)))


def test_attack_a_scale_that_overflows() -> None:
    """Finite numbers times a finite scale must be finite."""
    with pytest.raises(EvidenceError, match="statistics hold NaN or infinity"):
        Statistics.from_bytes(forged({"scale_a": 1e300}, arrays(GOOD.a * 1e20, GOOD.b)))


def test_attack_sums_that_no_samples_have() -> None:
    """A negative square, or a product larger than its squares allow, is refused."""
    negative = GOOD.a.copy()
    negative[0] = -1.0
    with pytest.raises(EvidenceError, match="squares that are not negative"):
        Statistics.from_bytes(forged({}, arrays(negative, GOOD.b)))
    large = GOOD.a.copy()
    large[1] = 1e9
    with pytest.raises(EvidenceError, match="Cauchy-Schwarz"):
        Statistics.from_bytes(forged({}, arrays(large, GOOD.b)))


def test_attack_statistics_of_another_backbone() -> None:
    """They neither pass where the backbone is known, nor add."""
    foreign = Statistics.empty(backbone=OTHER, window=0, classes=C, features=D)
    with pytest.raises(EvidenceError, match=f"of another backbone; at statistics; expected {BACKBONE}"):
        Statistics.from_bytes(foreign.to_bytes(), backbone=BACKBONE)
    with pytest.raises(EvidenceError, match="statistics of different kinds do not add"):
        _ = GOOD + foreign


def test_attack_a_message_too_long() -> None:
    """Four megabytes are the bound, there and here."""
    with pytest.raises(MessageError, match=f"expected at most {MAX_BYTES} bytes"):
        Statistics.from_bytes(b"\0" * (MAX_BYTES + 1))
    wide = Statistics.empty(backbone=BACKBONE, window=0, classes=2, features=1_500)
    with pytest.raises(EvidenceError, match="statistics are too large to send"):
        wide.to_bytes()
    assert len(wide.to_bytes("float16")) < MAX_BYTES


def test_attack_a_head_longer_than_the_message() -> None:
    """The head's length is checked against what is there."""
    data = bytearray(GOOD.to_bytes())
    data[8:12] = struct.pack("<I", 2**32 - 1)
    with pytest.raises(MessageError, match="the head is too long"):
        Statistics.from_bytes(bytes(data))


@given(st.binary(max_size=300))
def test_garbage_is_refused(data: bytes) -> None:
    """Bytes from anywhere are no message, with the right beginning or without."""
    for start in (b"", b"ESTSTAT1"):
        with pytest.raises(MessageError):
            Statistics.from_bytes(start + data)


@given(st.integers(0, 10_000), st.integers(0, 255), dtypes)
def test_a_damaged_message_gives_our_errors_only(position: int, value: int, dtype: Dtype) -> None:
    """One byte changed anywhere: read as something finite, or refused."""
    data = bytearray(GOOD.to_bytes(dtype))
    data[position % len(data)] = value
    try:
        back = Statistics.from_bytes(bytes(data))
    except (MessageError, EvidenceError):
        return
    assert np.isfinite(back.a).all()
    assert np.isfinite(back.b).all()


def test_every_cut_of_a_message_is_refused() -> None:
    """No prefix passes for the whole."""
    data = GOOD.to_bytes()
    for length in range(len(data)):
        with pytest.raises(MessageError):
            Statistics.from_bytes(data[:length])


# What else is refused


def test_samples_that_do_not_fit_are_refused() -> None:
    """Shapes, numbers and weights are checked before they are added."""
    features, targets = samples(0, 4)
    for args, named in (
        ((features[:, :2], targets), "samples of another shape"),
        ((features, targets[:3]), "samples of another shape"),
        ((features, targets, np.ones(3)), "samples of another shape"),
        ((features * np.nan, targets), "samples hold NaN or infinity"),
        ((features, targets, np.array([1.0, 0, 1, 1])), "a weight is not positive"),
    ):
        with pytest.raises(EvidenceError, match=named):
            empty().add(*args)


def test_counts_out_of_range_are_refused() -> None:
    """Features, classes and window have bounds."""
    for name, value in (("features", 0), ("features", 4_000), ("classes", 0), ("window", -1)):
        kinds = {"features": D, "classes": C, "window": 0} | {name: value}
        with pytest.raises(EvidenceError, match=f"{name} out of range"):
            Statistics.empty(backbone=BACKBONE, **kinds)


def test_sums_too_large_for_float32_are_not_sent() -> None:
    """Infinity is never written."""
    with pytest.raises(EvidenceError, match="sums too large for their element type"):
        GOOD.scaled(1e200).to_bytes()


def test_few_samples_can_be_kept_back() -> None:
    """A minimum n keeps a single sample from being read off the sums."""
    with pytest.raises(EvidenceError, match="too few samples; at statistics; expected at least 41; got 40"):
        GOOD.require(41)
    assert GOOD.require(40) is GOOD


@given(seeds, st.floats(0.01, 10))
def test_clipping_bounds_every_sample(seed: int, norm: float) -> None:
    """No row is longer than the norm; shorter ones are left alone, directions are kept."""
    features, _ = samples(seed)
    short = clipped(features, norm)
    lengths = np.linalg.norm(features, axis=1)
    assert (np.linalg.norm(short, axis=1) <= norm * (1 + 1e-12)).all()
    np.testing.assert_array_equal(short[lengths <= norm], features[lengths <= norm])
    np.testing.assert_allclose(short / np.linalg.norm(short, axis=1)[:, None], features / lengths[:, None])


def test_clipping_leaves_nothing_of_nothing() -> None:
    """A row of zeros stays; a norm that is not positive is refused."""
    assert not clipped(np.zeros((2, 3)), 1.0).any()
    with pytest.raises(EvidenceError, match="a clipping norm is out of range"):
        clipped(np.zeros((2, 3)), 0.0)
