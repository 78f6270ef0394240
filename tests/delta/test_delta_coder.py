"""Numbers as a code: what was written is read, close to as few bits as there can be, and any bytes are harmless."""

from __future__ import annotations

import contextlib
import math
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from edgestill.core.errors import PatchError
from edgestill.delta.coder import BLOCK, MOST_BITS, Odds, Reader, Writer

_unhurried = settings(deadline=None)

_LARGEST = 2 ** (MOST_BITS - 1)
_NUMBER = st.one_of(st.just(0), st.integers(-2, 2), st.integers(-_LARGEST, _LARGEST))
_SEQUENCES = st.lists(st.lists(_NUMBER, max_size=3 * BLOCK), max_size=4)


def coded(*sequences: list[int]) -> bytes:
    """All under the same odds."""
    writer, odds = Writer(), Odds()
    for one in sequences:
        writer.numbers(one, odds)
    return writer.to_bytes()


def read(code: bytes, *counts: int) -> list[list[int]]:
    """Likewise."""
    reader, odds = Reader(code), Odds()
    found = [reader.numbers(count, odds) for count in counts]
    reader.end()
    return found


def spread(share: float, count: int, seed: int = 0) -> list[int]:
    """So many numbers, of which such a share is 1 or -1."""
    draw = random.Random(seed)
    return [draw.choice((-1, 1)) if draw.random() < share else 0 for _ in range(count)]


def bits(share: float) -> float:
    """The least that one of them can cost."""
    if share in {0.0, 1.0}:
        return share
    return share - share * math.log2(share) - (1 - share) * math.log2(1 - share)


@_unhurried
@given(sequences=_SEQUENCES)
@example(sequences=[])
@example(sequences=[[]])
@example(sequences=[[_LARGEST, -_LARGEST, 0, 1, -1]])
@example(sequences=[[0] * BLOCK + [1], [0] * (BLOCK - 1) + [-1]])
def test_what_was_written_is_read(sequences: list[list[int]]) -> None:
    """Any numbers of any size, in sequences of any length."""
    assert read(coded(*sequences), *map(len, sequences)) == sequences


@pytest.mark.parametrize("seed", range(5))
def test_carries_run_on(seed: int) -> None:
    """Long sequences come to where a carry changes bytes that are written already, several of them at once."""
    draw = random.Random(seed)
    numbers = [round(draw.gauss(0, 3)) for _ in range(20_000)]
    assert read(coded(numbers), len(numbers)) == [numbers]


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.05, 0.2, 0.5, 1.0])
def test_the_code_is_close_to_as_short_as_can_be(share: float) -> None:
    """Of numbers drawn independently: at most 8 % and 20 bytes over their entropy, from sparse to dense."""
    numbers = spread(share, 50_000)
    least = sum(1 for one in numbers if one) / len(numbers)
    assert len(coded(numbers)) <= 1.08 * bits(least) * len(numbers) / 8 + 20


@pytest.mark.parametrize("bits", [2, 8, 16, 32])
def test_numbers_of_so_many_bits(bits: int) -> None:
    """From the smallest to the largest, and any code yields none beyond."""
    most = 2 ** (bits - 1)
    numbers = [most, -most, most - 1, 1 - most, 1, -1, 0] * 9
    writer = Writer()
    writer.numbers(numbers, Odds(), bits)
    assert Reader(writer.to_bytes()).numbers(len(numbers), Odds(), bits) == numbers
    for seed in range(200):
        code = bytes([0]) + random.Random(seed).randbytes(60) + b"x"
        assert all(abs(one) < 2 * most for one in Reader(code).numbers(50, Odds(), bits))


def test_where_little_changes_is_learned() -> None:
    """A tensor whose channels change by different shares costs less than one that is as mixed."""
    rows = [spread(0.5 if row % 4 == 0 else 0.01, 500, seed=row) for row in range(40)]
    mixed = [one for row in rows for one in row]
    random.Random(0).shuffle(mixed)
    assert len(coded([one for row in rows for one in row])) < 0.85 * len(coded(mixed))


def test_nothing_costs_nothing() -> None:
    """A million numbers that are all zero take a few bytes."""
    assert len(coded([0] * 1_000_000)) < 250


@_unhurried
@given(code=st.binary(max_size=60), count=st.integers(0, 200))
def test_attack_any_bytes_are_numbers_in_bounds_or_refused(code: bytes, count: int) -> None:
    """Whatever it is, reading ends, and yields as many numbers as were asked for."""
    with contextlib.suppress(PatchError):
        (found,) = read(code, count)
        assert len(found) == count
        assert all(abs(one) < 2 * _LARGEST for one in found)


@pytest.mark.parametrize("extra", [b"\0", b"x\0", b"\0\0\0\0\0x", b"longer than any rest"])
def test_attack_bytes_behind_the_code(extra: bytes) -> None:
    """What hangs on is refused, but for what stands in the place of the last four bytes, of which zeros are left out."""
    numbers = spread(0.2, 1_000)
    with pytest.raises(PatchError, match="a damaged patch; at payload: differences"):
        read(coded(numbers) + extra, len(numbers))


def test_attack_a_code_out_of_range() -> None:
    """One that is larger than the first range would make the numbers within grow without bound."""
    with pytest.raises(PatchError, match=r"expected a code below 2\^30"):
        Reader(b"\xff" * 40)
