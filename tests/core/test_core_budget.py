"""Budgets as people write them."""

from __future__ import annotations

import math
from typing import Any

import pytest

from edgestill.core.budget import Budget
from edgestill.core.errors import SettingError, UnitError


def test_a_budget_reads_as_people_write_it() -> None:
    """Every side of a budget in one line, spaces or not."""
    budget = Budget.parse("size = 120 kB, latency=1.5 ms,memory=64MiB, update=20 kB, escalation=20 %")
    assert budget == Budget(size=120_000, latency=0.0015, memory=67_108_864, update=20_000, escalation=0.2)


def test_sides_that_are_not_named_are_open() -> None:
    """A budget bounds only what it names."""
    assert Budget.parse("size=120kB") == Budget(size=120_000)
    assert Budget.parse("") == Budget()
    assert Budget().latency is None


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("size", "'size'"),
        ("size 120 kB", "'size 120 kB'"),
        ("weight=3", "'weight=3'"),
        ("size=1 kB,size=2 kB", "'size=2 kB'"),
        ("Size=1 kB", "'Size=1 kB'"),
        ("=1 kB", "'=1 kB'"),
    ],
)
def test_a_part_that_is_no_side_is_refused(text: str, part: str) -> None:
    """An unknown or repeated name, or a part without `=`, is refused with the names there are."""
    with pytest.raises(SettingError, match="size, latency, memory, update, escalation") as caught:
        Budget.parse(text)
    assert caught.value.where == part


@pytest.mark.parametrize(
    "text", ["size=", "size=120", "latency=3", "latency=1 kB", "escalation=120 %", "size=1 ms"]
)
def test_a_quantity_that_cannot_be_read_is_refused(text: str) -> None:
    """Each side wants its own kind of quantity, with its unit."""
    with pytest.raises(UnitError):
        Budget.parse(text)


def test_quantities_are_read_as_people_write_them() -> None:
    """Texts with units and plain numbers give the same budget."""
    written = Budget(size="120 kB", latency="1.5 ms", memory="8 MB", update="10 kB", escalation="20 %")
    assert written == Budget(size=120_000, latency=0.0015, memory=8_000_000, update=10_000, escalation=0.2)


def test_another_latency_leaves_the_other_sides() -> None:
    """Checked as any other."""
    budget = Budget(size="120 kB", latency="1 ms", escalation=0.2)
    assert budget.with_latency(0.002) == Budget(size="120 kB", latency="2 ms", escalation=0.2)
    with pytest.raises(SettingError):
        budget.with_latency(-1.0)


def test_a_quantity_without_a_unit_is_refused() -> None:
    """`Budget(size="120")` could mean anything, and says so."""
    with pytest.raises(UnitError, match="needs a unit"):
        Budget(size="120")


@pytest.mark.parametrize(
    ("given", "where", "expected"),
    [
        ({"size": -1}, "budget: size", "whole bytes, at least 0"),
        ({"size": 1.5}, "budget: size", "whole bytes, at least 0"),
        ({"size": True}, "budget: size", "whole bytes, at least 0"),
        ({"memory": -5}, "budget: memory", "whole bytes, at least 0"),
        ({"update": b"1 kB"}, "budget: update", "whole bytes, at least 0"),
        ({"latency": -0.1}, "budget: latency", "seconds, at least 0"),
        ({"latency": math.nan}, "budget: latency", "seconds, at least 0"),
        ({"escalation": 1.2}, "budget: escalation", "0 to 1"),
        ({"escalation": -0.2}, "budget: escalation", "0 to 1"),
    ],
)
def test_a_bound_that_nothing_can_keep_is_refused(given: dict[str, Any], where: str, expected: str) -> None:
    """Numbers are looked at as texts are: below 0, above 1 for a share, NaN, or no number at all."""
    with pytest.raises(SettingError, match="a budget's value is out of range") as caught:
        Budget(**given)
    (value,) = given.values()
    assert (caught.value.where, caught.value.expected, caught.value.got) == (where, expected, repr(value))


def test_a_quantity_that_cannot_be_read_names_its_side() -> None:
    """Of five, it says which, and what to write."""
    with pytest.raises(UnitError, match=r"at budget: memory; .*write a number and one of these units"):
        Budget.parse("size=1kB,memory=12")
