"""Profiles: taken on a machine, carried to another, and not trusted before they are looked at."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from search_worlds import HERE, drafts, profile

from edgestill.core.clock import SystemClock
from edgestill.core.errors import DataError, EdgestillError, MessageError
from edgestill.lab.searching.draft import Shape
from edgestill.lab.searching.profile import Profile, taken_here
from edgestill.lab.searching.shape import UNIFORM


def test_a_profile_is_the_same_after_a_journey() -> None:
    """Every model and every figure; and it predicts the same."""
    back = Profile.from_bytes(profile().to_bytes())
    assert (back.hardware_class, back.threads, back.models) == (
        profile().hardware_class,
        profile().threads,
        profile().models,
    )
    draft = drafts().of(Shape(direction=UNIFORM, scale=0.4, precision="int8"))
    assert back.seconds(draft) == profile().seconds(draft)


def test_this_machine_is_profiled_in_both_precisions() -> None:
    """On one thread, and the sentence says of what and how far it can be trusted."""
    told = []
    found = taken_here(drafts(), SystemClock(), progress=lambda done, of: told.append((done, of)))
    assert found.hardware_class == HERE.name
    assert set(found.tables) == {"int8", "floats"}
    assert all(0 < one.p50 <= one.p95 < 1 for one in found.models)
    assert told[-1] == (len(found.models), len(found.models))
    assert f"latencies of {HERE}, 1 thread (int8: 14 models, error " in found.sentence
    draft = drafts().of(Shape(direction=UNIFORM, scale=0.35, precision="floats"))
    assert 0 < found.seconds(draft) < 0.1


def test_a_precision_that_nobody_timed_is_not_guessed() -> None:
    """It is an error that names those that were."""
    only = Profile(HERE.name, 1, [one for one in profile().models if one.precision == "int8"])
    draft = drafts().of(Shape(direction=UNIFORM, scale=0.4, precision="floats"))
    with pytest.raises(DataError, match="no latencies of this precision; at profile; expected int8"):
        only.seconds(draft)
    with pytest.raises(DataError, match="too few models were timed"):
        Profile(HERE.name, 1, profile().models[:3])


def changed(*path: str | int, to: Any) -> bytes:
    """The profile with one value changed."""
    told = json.loads(profile().to_bytes())
    place: Any = told
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = to
    return json.dumps(told).encode()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        changed("version", to=2),
        changed("threads", to=0),
        changed("threads", to=True),
        changed("hardware_class", to="a/b"),
        changed("models", to=None),
        changed("models", to=[]),
        changed("models", 0, "precision", to="int4"),
        changed("models", 0, "p95", to=-1),
        changed("models", 0, "p95", to=0),
        changed("models", 0, "p50", to=1e9),
        changed("models", 0, "work", to=3),
        changed("models", 0, "work", 0, "products", to=-1),
        changed("models", 0, "work", 0, "products", to=1.5),
        changed("models", 0, "work", 0, "products", to=2**80),
        changed("models", 0, "work", 0, to={"kind": "Conv"}),
        changed("models", 0, "work", 0, "kind", to="x" * 100),
    ],
)
def test_what_is_no_profile_is_refused(data: bytes) -> None:
    """With a code and a sentence, whatever is wrong."""
    with pytest.raises((MessageError, DataError)):
        Profile.from_bytes(data)


@given(st.binary(max_size=300))
def test_noise_is_refused(data: bytes) -> None:
    """Only our errors come of it."""
    try:
        Profile.from_bytes(data)
    except EdgestillError:
        return
    pytest.fail("noise was taken for a profile")
