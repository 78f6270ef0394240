"""What a device says of a timing job: read as written, bounded, the same step under the same id."""

from __future__ import annotations

import contextlib
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgestill.core.digest import Digest
from edgestill.core.errors import EdgestillError, MessageError
from edgestill.core.family import MAX_MODELS
from edgestill.core.release import MAX_COUNTER
from edgestill.core.timing import (
    LONGEST,
    MAX_BYTES,
    MAX_REASON,
    SHORTEST,
    ModelTime,
    TimingReport,
    TimingState,
)

ARCHIVE = Digest.of(b"archive")
SECONDS = st.floats(SHORTEST, LONGEST)


@st.composite
def model_times(draw: st.DrawFn, at: int) -> ModelTime:
    """Of one model."""
    p50, low, p95, high = sorted(draw(st.tuples(SECONDS, SECONDS, SECONDS, SECONDS)))
    return ModelTime(at=at, p50=p50, low=low, p95=p95, high=high)


@st.composite
def reports(draw: st.DrawFn) -> TimingReport:
    """Of any state."""
    states: list[TimingState] = ["downloaded", "measured", "refused"]
    state = draw(st.sampled_from(states))
    places = sorted(draw(st.sets(st.integers(0, MAX_MODELS - 1), min_size=1, max_size=5)))
    return TimingReport(
        counter=draw(st.integers(1, MAX_COUNTER)),
        archive=Digest.of(draw(st.binary(max_size=4))),
        state=state,
        reason=draw(st.text("abc: ", max_size=MAX_REASON)),
        models=tuple(draw(model_times(at)) for at in places) if state == "measured" else (),
    )


@given(one=reports())
def test_a_report_is_read_as_it_was_written(one: TimingReport) -> None:
    """And keeps its id."""
    found = TimingReport.from_bytes(one.to_bytes())
    assert found == one
    assert found.id == one.id


@given(data=st.binary(max_size=300))
def test_attack_anything_at_all_is_a_report_or_an_error_of_ours(data: bytes) -> None:
    """Attack: bytes of a stranger."""
    with contextlib.suppress(EdgestillError):
        TimingReport.from_bytes(data)


def test_the_largest_report_fits() -> None:
    """All models that there may be, with the longest reason; and it is some ten kilobytes."""
    models = tuple(ModelTime(at=at, p50=1 / 3, low=1 / 3, p95=1 / 3, high=1 / 3) for at in range(MAX_MODELS))
    data = TimingReport(
        counter=MAX_COUNTER, archive=ARCHIVE, state="measured", reason="\u20ac" * 1000, models=models
    ).to_bytes()
    assert len(data) < MAX_BYTES / 2
    assert len(TimingReport.from_bytes(data).reason) == MAX_REASON


def test_the_id_is_of_the_step() -> None:
    """Another job, archive or step has another; another wording has not."""
    one = TimingReport(counter=1, archive=ARCHIVE, state="refused", reason="a")
    others = [
        TimingReport(counter=2, archive=ARCHIVE, state="refused"),
        TimingReport(counter=1, archive=Digest.of(b"x"), state="refused"),
        TimingReport(counter=1, archive=ARCHIVE, state="downloaded"),
    ]
    assert TimingReport(counter=1, archive=ARCHIVE, state="refused", reason="b").id == one.id
    assert len({one.id, *(other.id for other in others)}) == 4


@pytest.mark.parametrize("places", [[1, 0], [0, 0], [MAX_MODELS]])
def test_attack_models_that_are_named_twice_or_out_of_order_are_refused(places: list[int]) -> None:
    """Attack: whoever adds up times must not add one twice."""
    models = [{"at": at, "p50": 1, "p95": 1, "low": 1, "high": 1} for at in places]
    told = {"counter": 1, "archive": str(ARCHIVE), "state": "measured", "models": models}
    with pytest.raises(MessageError):
        TimingReport.from_bytes(json.dumps(told).encode())


def test_attack_a_reason_moves_no_cursor() -> None:
    """Attack: control characters become spaces, on both ends."""
    one = TimingReport(counter=1, archive=ARCHIVE, state="refused", reason="a\x1b[2Jb")
    assert TimingReport.from_bytes(one.to_bytes()).reason == "a [2Jb"
