"""Sizes, durations and shares: hand-worked values, exactness, refusals."""

from __future__ import annotations

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.errors import UnitError
from edgestill.core.units import format_duration, format_size, parse_duration, parse_share, parse_size


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0 B", 0),
        ("1B", 1),
        ("120 kB", 120_000),
        ("120kB", 120_000),
        ("120 KB", 120_000),
        ("1.5 MB", 1_500_000),
        ("2 GB", 2_000_000_000),
        ("1 KiB", 1_024),
        ("1.5 MiB", 1_572_864),
        ("1 GiB", 1_073_741_824),
        ("  7 kB ", 7_000),
    ],
)
def test_sizes_as_people_write_them(text: str, size: int) -> None:
    """Decimal and binary units give the bytes worked out by hand."""
    assert parse_size(text) == size


@pytest.mark.parametrize(("text", "size"), [("1.001 kB", 1_001), ("4.35 kB", 4_350), ("1.1 MB", 1_100_000)])
def test_sizes_are_read_exactly(text: str, size: int) -> None:
    """A decimal fraction that binary floating point cannot hold is still read exactly."""
    assert parse_size(text) == size


@given(st.integers(min_value=0, max_value=10**12))
def test_every_whole_number_of_bytes_survives_any_decimal_unit(size: int) -> None:
    """Writing bytes as kB, MB or GB with all digits and reading them back loses nothing."""
    for unit, digits in (("kB", 3), ("MB", 6), ("GB", 9)):
        whole, part = divmod(size, 10**digits)
        assert parse_size(f"{whole}.{part:0{digits}d} {unit}") == size


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("120", "a quantity needs a unit"),
        ("120 parsecs", "a quantity has an unknown unit"),
        ("12 kb", "a quantity has an unknown unit"),
        ("", "cannot read a quantity"),
        ("kB", "cannot read a quantity"),
        ("-1 kB", "cannot read a quantity"),
        ("1e3 kB", "cannot read a quantity"),
        ("1,5 kB", "cannot read a quantity"),
        ("nan kB", "cannot read a quantity"),
        ("٣ kB", "cannot read a quantity"),  # an Arabic three is not an ASCII digit
        ("1234567890123456 B", "cannot read a quantity"),
        ("0.5 B", "a size must be whole bytes"),
        ("1.0001 kB", "a size must be whole bytes"),
    ],
)
def test_what_is_no_size_is_refused(text: str, problem: str) -> None:
    """A size without number, unit or whole bytes is refused with the reason and what was got."""
    with pytest.raises(UnitError) as caught:
        parse_size(text)
    assert caught.value.what == problem
    assert caught.value.got == repr(text)


def test_an_unknown_unit_is_answered_with_the_known_ones() -> None:
    """The refusal lists the units that there are."""
    with pytest.raises(UnitError, match=r"units: us, ms, s, min, h, d"):
        parse_duration("3 weeks")


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("1.5 ms", 0.0015),
        ("250us", 0.00025),
        ("3 s", 3.0),
        ("2 min", 120.0),
        ("1.5 h", 5400.0),
        ("1 d", 86400.0),
    ],
)
def test_durations_as_people_write_them(text: str, seconds: float) -> None:
    """A duration is the nearest floating-point number of seconds to what was written."""
    assert parse_duration(text) == seconds
    assert isinstance(parse_duration(text), float)


@pytest.mark.parametrize(
    ("text", "share"), [("20 %", 0.2), ("20%", 0.2), ("0.2", 0.2), ("0", 0.0), ("1", 1.0), ("100 %", 1.0)]
)
def test_shares_as_people_write_them(text: str, share: float) -> None:
    """Percentages and fractions name the same share."""
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["101 %", "1.5", "20 kB", "-0.1", "", "%", "nan"])
def test_what_is_no_share_is_refused(text: str) -> None:
    """Anything outside [0, 1] or with another unit is refused."""
    with pytest.raises(UnitError, match="share"):
        parse_share(text)


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1_000, "1 kB"),
        (24_100, "24.1 kB"),
        (99_949, "99.9 kB"),
        (99_951, "100 kB"),
        (123_456, "123 kB"),
        (999_999, "1000 kB"),
        (1_234_567, "1.23 MB"),
        (5_000_000_000, "5 GB"),
    ],
)
def test_sizes_for_people(size: int, text: str) -> None:
    """A size is shown with three digits and the largest unit that fits."""
    assert format_size(size) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.0, "0 us"),
        (0.0000005, "0.5 us"),
        (0.00153, "1.53 ms"),
        (0.9999, "1000 ms"),
        (1.0, "1 s"),
        (59.99, "60 s"),
        (90.0, "1.5 min"),
        (86_400.0, "24 h"),
        (3_600_000.0, "1000 h"),
        (9e7, "25000 h"),
    ],
)
def test_durations_for_people(seconds: float, text: str) -> None:
    """A duration is shown with three digits and the largest unit that fits."""
    assert format_duration(seconds) == text


@given(st.floats(min_value=0, max_value=1e13))
def test_no_figure_for_people_has_an_exponent(value: float) -> None:
    """However large or small, sizes and durations are shown without an exponent once they reach a unit."""
    assert "e+" not in format_size(value)
    assert "e+" not in format_duration(value)


@given(st.integers(min_value=0, max_value=10**14))
def test_a_shown_size_reads_back_within_its_three_digits(size: int) -> None:
    """Reading a shown size gives the size to within half of its last shown digit."""
    assert parse_size(format_size(size)) == pytest.approx(size, rel=0.006)


@given(
    st.integers(min_value=0, max_value=10**15 - 1),
    st.text("0123456789", min_size=1, max_size=9),
    st.sampled_from(["us", "ms", "s", "min", "h", "d"]),
)
def test_a_duration_is_the_nearest_float_to_what_was_written(whole: int, digits: str, unit: str) -> None:
    """Exact rational arithmetic gives the same number, for every unit and any digits."""
    seconds = {
        "us": (1, 10**6),
        "ms": (1, 1000),
        "s": (1, 1),
        "min": (60, 1),
        "h": (3600, 1),
        "d": (86400, 1),
    }
    exact = Fraction(f"{whole}.{digits}") * Fraction(*seconds[unit])
    assert parse_duration(f"{whole}.{digits} {unit}") == float(exact)
