"""The same input is asked about once, and not for ever."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from infer_models import Told, rows

from edgestill.core.errors import MessageError, SettingError, UnreachableError
from edgestill.infer.remembering import MEMORY, Remembering
from edgestill.testing.clock import FakeClock

if TYPE_CHECKING:
    from edgestill.core.answer import Answer

TABLE = [[0.9, 0.1], [0.2, 0.8], [0.4, 0.6], [0.7, 0.3]]


def remembering(
    teacher: Told, clock: FakeClock | None = None, *, most: int = 256, seconds: float = 3600.0
) -> Remembering:
    """Of this teacher."""
    return Remembering(teacher, clock=clock or FakeClock(), most=most, seconds=seconds)


def test_an_input_is_asked_about_once() -> None:
    """The second time nobody is asked, and the answer says so."""
    teacher = Told(TABLE)
    model = remembering(teacher)
    first, second = model.predict(rows(1)), model.predict(rows(1))
    assert teacher.asked == [[1]]
    np.testing.assert_array_equal(first.probabilities, second.probabilities)
    assert second.tiers == (MEMORY,)


def test_a_deputys_answer_is_not_remembered() -> None:
    """The teacher may be back the next moment."""
    teacher = Told(TABLE, deputised=True)
    model = remembering(teacher)
    for _ in range(2):
        answer = model.predict(rows(1))
        assert answer.teacher is not None
        assert np.isnan(answer.teacher).all()
    teacher.deputised = False
    assert model.predict(rows(1)).teacher is not None
    assert model.predict(rows(1)).tiers == (MEMORY,)
    assert teacher.asked == [[1]] * 3


def test_of_a_batch_each_different_input_is_sent_once() -> None:
    """And every place gets its own answer, in the order of the batch."""
    teacher = Told(TABLE)
    model = remembering(teacher)
    model.predict(rows(3))
    answer = model.predict(rows(2, 0, 2, 3, 0))
    assert teacher.asked == [[3], [2, 0]]
    np.testing.assert_allclose(answer.probabilities, [TABLE[at] for at in (2, 0, 2, 3, 0)], atol=1e-6)


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), max_size=8), st.integers(1, 5))
def test_answers_are_those_of_the_model(batches: list[list[int]], most: int) -> None:
    """A law: whatever is remembered, every answer is the model's, and no batch asks about an input twice."""
    teacher = Told(TABLE)
    model = remembering(teacher, most=most)
    for batch in batches:
        answer = model.predict(rows(*batch))
        np.testing.assert_allclose(answer.probabilities, [TABLE[at] for at in batch], atol=1e-6)
    assert all(len(set(asked)) == len(asked) for asked in teacher.asked)


def test_answers_are_forgotten_in_time() -> None:
    """The model behind may have changed: after an hour it is asked again."""
    teacher, clock = Told(TABLE), FakeClock()
    model = remembering(teacher, clock, seconds=3600.0)
    model.predict(rows(1))
    clock.advance(3599.0)
    model.predict(rows(1))
    clock.advance(1.0)
    model.predict(rows(1))
    assert teacher.asked == [[1], [1]]


def test_what_was_used_longest_ago_is_forgotten_first() -> None:
    """With room for two answers the third takes the place of the one nobody asked for since."""
    teacher = Told(TABLE)
    model = remembering(teacher, most=2)
    for at in (0, 1, 0, 2, 0, 1):
        model.predict(rows(at))
    assert teacher.asked == [[0], [1], [2], [1]]


def test_a_failure_is_not_remembered() -> None:
    """After the teacher was gone it is asked again, and what was known before is still known."""
    teacher = Told(TABLE)
    model = remembering(teacher)
    model.predict(rows(0))
    teacher.error = UnreachableError("gone", where="far", expected="an answer", got="none")
    with pytest.raises(UnreachableError):
        model.predict(rows(0, 1))
    assert model.predict(rows(0)).tiers == (MEMORY,)
    teacher.error = None
    np.testing.assert_allclose(model.predict(rows(1)).probabilities, [TABLE[1]], atol=1e-6)


@pytest.mark.parametrize("table", [[[0.9, 0.9]], [[-0.5, 1.5]], [[float("nan"), 1.0]], [[float("inf"), 0.0]]])
def test_attack_garbage_is_not_remembered(table: list[list[float]]) -> None:
    """An answer that is no set of probabilities is a coded error, and the model is asked again."""
    teacher = Told(table)
    model = remembering(teacher)
    for _ in range(2):
        with pytest.raises(MessageError, match="no set of probabilities"):
            model.predict(rows(0))
    assert teacher.asked == [[0], [0]]


def test_attack_too_few_rows_are_no_answer() -> None:
    """A model that answers one input of two is a coded error."""

    class Short:
        def predict(self, batch: np.ndarray, *, deadline: float | None = None) -> Answer:
            return Told(TABLE).predict(batch[:1])

    with pytest.raises(MessageError, match="another question"):
        Remembering(Short(), clock=FakeClock()).predict(rows(0, 1))


def test_attack_the_same_bytes_of_another_type_are_another_input() -> None:
    """Neither another type nor another shape of the same bytes gets the answer of the first."""
    asked = []

    class Counting:
        def predict(self, batch: np.ndarray, *, deadline: float | None = None) -> object:
            asked.append((batch.dtype, batch.shape))
            return Told(TABLE).predict(rows(0))

    model = Remembering(Counting(), clock=FakeClock())  # type: ignore[arg-type]  # a `Predict` but for its annotation
    data = np.zeros((1, 8), np.uint8)
    for batch in (data, data.view(np.int8), data.reshape(1, 2, 4), data.view(np.float32), data.copy()):
        model.predict(batch)
    assert len(asked) == 4


def test_an_answer_that_its_asker_changes_stays_as_it_was() -> None:
    """What is remembered is nobody's to change."""
    model = remembering(Told(TABLE))
    model.predict(rows(1)).probabilities[:] = 0
    np.testing.assert_allclose(model.predict(rows(1)).probabilities, [TABLE[1]], atol=1e-6)


def test_threads_remember_together() -> None:
    """Many askers of few inputs get right answers, and hardly ever ask."""
    teacher = Told(TABLE)
    model = remembering(teacher)
    wrong: list[int] = []

    def work() -> None:
        for at in range(200):
            answer = model.predict(rows(at % 4, (at + 1) % 4))
            if answer.probabilities.argmax(1).tolist() != [
                int(np.argmax(TABLE[(at + k) % 4])) for k in (0, 1)
            ]:
                wrong.append(at)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert len(teacher.asked) <= 16


@pytest.mark.parametrize(("most", "seconds"), [(0, 1.0), (1, 0.0), (1, float("inf"))])
def test_a_memory_that_is_none_is_refused(most: int, seconds: float) -> None:
    """Of nothing, for no time, or for ever."""
    with pytest.raises(SettingError):
        remembering(Told(TABLE), most=most, seconds=seconds)
