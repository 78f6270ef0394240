"""Tests of `edgestill.learn.encodings`: sums as codes of eight bits."""

from __future__ import annotations

import functools
import operator
import struct
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError, MessageError
from edgestill.learn.encodings import square, triangle
from edgestill.learn.statistics import Statistics, dtype_of, solve

if TYPE_CHECKING:
    from numpy.typing import NDArray

BACKBONE = Digest.of(b"backbone")
D, C = 5, 3
CODES = D * (D - 1) // 2 + D * C
FLOATS = (D + 1) + D + C + 1 + C

seeds = st.integers(0, 2**32 - 1)


def sums(
    seed: int = 0, n: int = 40, *, features: int = D, classes: int = C, scale: float = 1.0
) -> Statistics:
    """Statistics of random samples, whose features differ in size and have a mean."""
    rng = np.random.default_rng(seed)
    phi = scale * (rng.normal(size=(n, features)) * np.logspace(-2, 2, features) + rng.normal(size=features))
    labels = np.eye(classes)[rng.integers(0, classes, n)]
    empty = Statistics.empty(backbone=BACKBONE, window=3, classes=classes, features=features)
    return empty.add(phi, labels)


def read(one: Statistics) -> Statistics:
    """What arrives of it."""
    return Statistics.from_bytes(one.to_bytes("int8"), backbone=BACKBONE)


def lengths(one: Statistics) -> NDArray[np.float64]:
    """Square roots of the centred squares `[D]`."""
    matrix = one.matrix
    centred = matrix[:-1, :-1] - np.outer(matrix[:-1, -1], matrix[:-1, -1]) / one.weight
    found: NDArray[np.float64] = np.sqrt(np.maximum(centred.diagonal(), 0))
    return found


@given(seeds, st.integers(1, 60), st.floats(1e-6, 1e6))
def test_codes_are_off_by_half_a_step_at_most(seed: int, n: int, scale: float) -> None:
    """Of a correlation 1/254 of the largest; of B likewise; the constant's row, means and squares as float32 has them."""
    one = sums(seed, n, scale=scale)
    back = read(one)
    sides = lengths(one)
    step = np.outer(sides, sides) / 254 + 1e-5 * np.sqrt(np.outer(*[one.matrix.diagonal()[:-1]] * 2))
    assert (np.abs(back.matrix - one.matrix)[:-1, :-1] <= step).all()
    np.testing.assert_allclose(back.matrix[-1], one.matrix[-1], rtol=1e-6)
    np.testing.assert_allclose(back.b[-1], one.b[-1], rtol=1e-6)
    np.testing.assert_allclose(back.matrix.diagonal(), one.matrix.diagonal(), rtol=1e-5)
    steepest = np.sqrt(one.weight) * sides[:, None] / 254
    assert (np.abs(back.b - one.b)[:-1] <= steepest + 1e-5 * np.abs(one.matrix[:-1, -1:])).all()
    assert (back.n, back.window, back.features, back.classes) == (n, 3, D, C)


def test_what_is_read_is_plausible_by_itself() -> None:
    """Cauchy and Schwarz hold of any codes, so that honest rounding is never refused."""
    for seed in range(50):
        back = read(sums(seed, 2 + seed))
        assert Statistics.from_bytes(back.to_bytes("float64")).n == back.n


def test_a_message_of_codes_is_small() -> None:
    """256 features and 10 classes: 37 kB, where float32 takes 143."""
    one = Statistics.empty(backbone=BACKBONE, window=0, classes=10, features=256)
    assert len(one.to_bytes("int8")) == pytest.approx(37_440, abs=400)
    assert dtype_of(one.to_bytes("int8")) == "int8"


def test_nothing_is_nothing() -> None:
    """Sums over no samples come back as zeros."""
    back = read(Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=D))
    assert not back.a.any()
    assert not back.b.any()


def test_a_feature_that_never_changes_is_kept() -> None:
    """Its centred square is 0, its mean is exact: no division by nothing."""
    phi = np.random.default_rng(0).normal(size=(20, D))
    phi[:, 2] = 4.0
    phi[:, 3] = 0.0
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=D)
    one = empty.add(phi, np.eye(C)[np.arange(20) % C])
    back = read(one)
    np.testing.assert_allclose(back.matrix[2], one.matrix[2], atol=0.2)
    assert back.matrix[2, -1] == 80
    assert not back.matrix[3].any()


@given(seeds)
def test_coding_again_moves_nothing_further(seed: int) -> None:
    """What was rounded once stays where it is, up to the last bits of its squares."""
    once = read(sums(seed))
    twice = read(once)
    sides = lengths(once)
    assert (np.abs(once.matrix - twice.matrix)[:-1, :-1] <= 1e-4 * np.outer(sides, sides) + 1e-9).all()


def test_rounding_hardly_moves_the_head_of_uncorrelated_features() -> None:
    """Ten devices' codes: scores differ by less than 0.01 (root mean square), where targets are 0 or 1."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(C, 16))
    labels = rng.integers(0, C, 2_000)
    phi = centres[labels] + rng.normal(size=(2_000, 16))
    empty = Statistics.empty(backbone=BACKBONE, window=0, classes=C, features=16)
    parts = [empty.add(phi[part], np.eye(C)[labels[part]]) for part in np.split(np.arange(2_000), 10)]
    exact, coded = empty, empty
    for one in parts:
        exact, coded = exact + one, coded + read(one)
    first, second = solve(exact, ridge=1.0), solve(coded, ridge=1.0)
    away = phi @ (first.weight - second.weight) + first.bias - second.bias
    assert np.sqrt((away**2).mean()) < 0.01


@given(seeds)
def test_triangles_and_squares_are_the_same_numbers(seed: int) -> None:
    """There and back."""
    upper = np.random.default_rng(seed).normal(size=15)
    whole = square(upper, 5)
    assert np.array_equal(whole, whole.T)
    assert np.array_equal(triangle(whole), upper)


# Attacks


def forged(body: bytes) -> bytes:
    """A good head with other arrays."""
    data = sums().to_bytes("int8")
    (length,) = struct.unpack_from("<I", data, 8)
    return data[: 12 + length] + body


def body(change: dict[int, float] | None = None, code: int = 0) -> bytes:
    """Arrays of a message with some of its floats changed, and all codes the same."""
    data = sums().to_bytes("int8")
    (length,) = struct.unpack_from("<I", data, 8)
    floats = np.frombuffer(data[12 + length :], "<f4", FLOATS).copy()
    for place, value in (change or {}).items():
        floats[place] = value
    return floats.tobytes() + bytes([code % 256]) * CODES


@pytest.mark.parametrize("code", [-128, -127, 0, 127])
def test_attack_codes_that_nobody_writes(code: int) -> None:
    """-128 is cut to what a correlation may be; all others are correlations."""
    back = Statistics.from_bytes(forged(body(code=code)))
    matrix = back.matrix
    bound = np.sqrt(np.outer(matrix.diagonal(), matrix.diagonal()))
    assert (np.abs(matrix) <= bound * (1 + 1e-9)).all()


@pytest.mark.parametrize("place", [D, D + 1, FLOATS - 1, FLOATS - C - 1])
def test_attack_weights_squares_and_scales_that_are_negative(place: int) -> None:
    """Refused before anything is made of them."""
    with pytest.raises(EvidenceError, match="not the sums of any samples"):
        Statistics.from_bytes(forged(body({place: -1.0})))


def test_attack_correlations_above_one() -> None:
    """A scale of correlations above 1 is none."""
    with pytest.raises(EvidenceError, match="correlations of at most 1"):
        Statistics.from_bytes(forged(body({FLOATS - C - 1: 2.0})))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", range(FLOATS))
def test_attack_floats_that_are_none(place: int, bad: float) -> None:
    """Wherever NaN or infinity stands among the floats, it is refused."""
    with pytest.raises(EvidenceError):
        Statistics.from_bytes(forged(body({place: bad}, code=1)))


def test_attack_the_largest_sums_over_the_smallest_weight() -> None:
    """Whatever float32 holds, its products are finite here: what is too large for a fleet, the hub refuses."""
    back = Statistics.from_bytes(forged(body({0: 3e38, D: 1e-45})))
    assert 1e100 < np.abs(back.a).max() < np.inf


@pytest.mark.parametrize("extra", [-1, 1, 100])
def test_attack_codes_too_few_or_many(extra: int) -> None:
    """The head says how many bytes there must be."""
    data = body()
    with pytest.raises(MessageError, match="head and arrays disagree"):
        Statistics.from_bytes(forged(data[:extra] if extra < 0 else data + b"\0" * extra))


@given(st.integers(0, 10_000), st.integers(0, 255))
def test_damaged_codes_give_our_errors_only(position: int, value: int) -> None:
    """One byte changed anywhere: read as something finite, or refused."""
    data = bytearray(sums().to_bytes("int8"))
    data[position % len(data)] = value
    try:
        back = Statistics.from_bytes(bytes(data))
    except (MessageError, EvidenceError):
        return
    assert np.isfinite(back.a).all()
    assert np.isfinite(back.b).all()


@given(st.binary(max_size=CODES + 4 * FLOATS + 8))
def test_garbage_behind_a_good_head_is_refused_or_finite(data: bytes) -> None:
    """Whatever the arrays are."""
    try:
        back = Statistics.from_bytes(forged(data))
    except (MessageError, EvidenceError):
        return
    assert np.isfinite(back.a).all()


def test_sums_with_noise_do_not_become_codes() -> None:
    """Noise can make squares negative, which codes have no place for."""
    with pytest.raises(EvidenceError, match="sums with noise do not fit into codes"):
        replace(sums(), noise=(1.0, 0.0)).to_bytes("int8")


def test_sums_too_large_for_codes_are_not_sent() -> None:
    """Their squares are float32."""
    with pytest.raises(EvidenceError, match="sums too large for their element type"):
        sums().scaled(1e100).to_bytes("int8")


@given(st.permutations(range(6)), st.integers(0, 10_000))
def test_the_sum_of_coded_messages_has_no_order(order: list[int], seed: int) -> None:
    """Whichever arrives first; and as devices vanish, the sum is that of those that are there."""
    messages = [sums(seed + place).to_bytes("int8") for place in range(6)]
    first = functools.reduce(operator.add, map(Statistics.from_bytes, messages))
    other = functools.reduce(operator.add, (Statistics.from_bytes(messages[place]) for place in order))
    np.testing.assert_allclose(first.a, other.a, rtol=1e-9, atol=1e-9 * np.abs(first.a).max())
    np.testing.assert_allclose(first.b, other.b, rtol=1e-9, atol=1e-9 * np.abs(first.b).max())
    assert (first.n, first.window) == (other.n, other.window)
