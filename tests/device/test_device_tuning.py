"""Training on a device: what is learned serves only after it was judged, and no power cut costs more than some steps."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from tuning_worlds import CLASSES, ROUNDS, Spell, bundle_in, filled, packed, seen, tuning_of

from edgestill.core import bundle as bundles
from edgestill.core.digest import Digest
from edgestill.core.errors import TrainingError
from edgestill.core.manifest import MODEL, STEPS, TRAIN
from edgestill.device import tuning
from edgestill.infer.engine import OnnxEngine
from edgestill.learn.codes import written_into
from edgestill.learn.stepfile import StepFile

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.device.tuning import Tuning
    from edgestill.learn.tuned import Tuned


def right(model: bytes, *, turned: int) -> float:
    """Of inputs that nobody saw."""
    inputs, labels = seen(600, turned=turned, seed=77)
    return float((OnnxEngine(model).run({"input": inputs})["logits"].argmax(1) == labels).mean())


def steps() -> StepFile:
    """Of the bundle."""
    return StepFile.from_bytes(packed().blobs[STEPS])


def model_with(found: Tuned) -> bytes:
    """The model as it serves then."""
    return written_into(packed().blobs[MODEL], steps().tensors, found.weights)[0]


def until_let_through(one: Tuning, *, rounds: int = 20) -> Tuned | None:
    """Trains for so many rounds, or until weights may serve."""
    return one.work(Spell(rounds * ROUNDS.steps))


def test_a_device_learns_a_world_that_the_lab_did_not_know(tmp_path: Path) -> None:
    """Where every class looks like another one did, the model that was trained here is right again, in int8."""
    with filled(tmp_path, turned=1) as replay:
        found = until_let_through(tuning_of(tmp_path, replay))
    assert found is not None
    assert right(packed().blobs[MODEL], turned=1) < 0.2
    assert right(model_with(found), turned=1) > 0.9
    assert found.agreement_before < 0.2
    assert found.agreement_after > 0.9
    assert found.bundle == packed().manifest.digest
    assert found.n > ROUNDS.least


def test_what_was_let_through_is_a_file_that_the_next_start_finds(tmp_path: Path) -> None:
    """And the bundle itself is as it came."""
    before = packed().manifest.digest
    with filled(tmp_path, turned=1) as replay:
        found = until_let_through(tuning_of(tmp_path, replay))
        again = tuning_of(tmp_path, replay).tuned()
    assert found is not None
    assert again is not None
    assert found.to_bytes() == again.to_bytes()
    bundle_in(tmp_path).verify()
    assert bundle_in(tmp_path).manifest.digest == before


def test_in_the_labs_own_world_nothing_is_let_through(tmp_path: Path) -> None:
    """What serves is as good as it gets, whatever is tried."""
    with filled(tmp_path, turned=0) as replay:
        one = tuning_of(tmp_path, replay)
        assert until_let_through(one, rounds=6) is None
        assert one.progress.asked == 6
        assert one.tuned() is None


def test_labels_without_meaning_teach_nothing_that_serves(tmp_path: Path) -> None:
    """Of a world where two of three labels are drawn by lot in the lab's own world."""
    with filled(tmp_path, turned=0, wrong=1.0) as replay:
        assert until_let_through(tuning_of(tmp_path, replay), rounds=6) is None


def test_a_device_with_few_samples_does_not_begin(tmp_path: Path) -> None:
    """Neither without samples to train on, nor without any that were held back."""
    with filled(tmp_path, turned=1, minutes=4, each=2) as replay:
        one = tuning_of(tmp_path, replay)
        assert one.work(Spell(1000)) is None
        assert one.done == 0
    with filled(tmp_path, turned=1) as replay:
        assert tuning_of(tmp_path, replay, rounds=replace(ROUNDS, held=10_000)).work(Spell(1000)) is None


def test_a_spell_ends_when_it_must_and_goes_on_where_it_stopped(tmp_path: Path) -> None:
    """Steps of several processes add up, and none is lost at an ordered end."""
    with filled(tmp_path, turned=1) as replay:
        for spell in range(1, 5):
            one = tuning_of(tmp_path, replay)
            assert one.done == (spell - 1) * 17
            one.work(Spell(17))
            assert one.done == spell * 17


def test_a_power_cut_costs_no_more_than_the_steps_since_the_state_was_kept(tmp_path: Path) -> None:
    """The process dies within a step, and the next one goes on from the newest state."""
    with filled(tmp_path, turned=1) as replay:
        one = tuning_of(tmp_path, replay)

        def cut() -> bool:
            if one.done >= 60:
                raise KeyboardInterrupt
            return True

        with pytest.raises(KeyboardInterrupt):
            one.work(cut)
        assert tuning_of(tmp_path, replay).done == 60


def test_attack_a_state_that_was_altered_or_is_of_another_bundle_is_passed_over(tmp_path: Path) -> None:
    """Training begins at what serves, and nothing of the file is believed."""
    with filled(tmp_path, turned=1) as replay:
        tuning_of(tmp_path, replay).work(Spell(40))
        (state,) = (tmp_path / "learned").glob("*.training")
        data = bytearray(state.read_bytes())
        data[len(data) // 2] ^= 1
        state.write_bytes(data)
        assert tuning_of(tmp_path, replay).done == 0
        state.write_bytes(b"")
        assert tuning_of(tmp_path, replay).done == 0


def test_attack_weights_that_were_altered_are_not_taken_for_what_serves(tmp_path: Path) -> None:
    """The shipped model serves then."""
    with filled(tmp_path, turned=1) as replay:
        assert until_let_through(tuning_of(tmp_path, replay)) is not None
        (file,) = (tmp_path / "learned").glob("*.tuned")
        file.write_bytes(file.read_bytes()[:-1] + b"x")
        assert tuning_of(tmp_path, replay).tuned() is None


@pytest.mark.parametrize("at", range(8))
def test_a_kill_at_any_write_leaves_files_that_are_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    """Whichever write is the last one, the next process finds the state before or after it, and ends where it would have."""

    class Killed(BaseException):
        """As a power cut: nothing after it runs."""

    real, written = bundles.replace, [0]

    def dying(*arguments: object, **more: object) -> None:
        written[0] += 1
        if written[0] == at + 1:
            raise Killed
        real(*arguments, **more)  # type: ignore[arg-type]  # as it was called

    with filled(tmp_path, turned=1) as replay:
        with monkeypatch.context() as patched:
            patched.setattr(bundles, "replace", dying)
            with pytest.raises(Killed):
                until_let_through(tuning_of(tmp_path, replay))
        after = tuning_of(tmp_path, replay)
        assert after.done % ROUNDS.keep == 0
        found = after.tuned() or until_let_through(after)
        assert found is not None
        assert right(model_with(found), turned=1) > 0.9


def test_training_that_leads_nowhere_begins_anew(tmp_path: Path) -> None:
    """After so many rounds in a row that were not let through; the next ones try smaller steps."""
    with filled(tmp_path, turned=0) as replay:
        one = tuning_of(tmp_path, replay)
        until_let_through(one, rounds=ROUNDS.patience)
        assert one.progress.restarts == 1
        assert one.done == 0
        assert tuning_of(tmp_path, replay).progress == one.progress


def test_a_device_that_finds_nothing_better_goes_on_without_an_error(tmp_path: Path) -> None:
    """However often training begins anew: its rate stays one at which something can be learned."""
    quick = replace(ROUNDS, steps=2, keep=2, patience=1)
    with filled(tmp_path, turned=0) as replay:
        one = tuning_of(tmp_path, replay, rounds=quick)
        assert one.work(Spell(2 * 120)) is None
        assert one.progress.restarts > 100
        assert one.progress.halvings == 0
        assert one._rate >= one._steps.rate / 8  # what it trains with


def test_a_question_is_counted_before_it_is_asked(tmp_path: Path) -> None:
    """A kill while held-back samples are asked does not ask them again at the same level."""

    class Killed(BaseException):
        """As a power cut."""

    with filled(tmp_path, turned=1) as replay:
        one = tuning_of(tmp_path, replay)

        def dying(*_: object, **__: object) -> None:
            raise Killed

        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(tuning, "judged", dying)
            with pytest.raises(Killed):
                one.work(Spell(ROUNDS.steps))
        assert tuning_of(tmp_path, replay).progress.asked == 1


def test_attack_a_damaged_count_of_questions_is_no_fresh_level(tmp_path: Path) -> None:
    """It counts as many questions, so that nothing is let through by asking for ever anew."""
    with filled(tmp_path, turned=0) as replay:
        tuning_of(tmp_path, replay).work(Spell(ROUNDS.steps))
        (file,) = (tmp_path / "learned").glob("*.tuning")
        file.write_bytes(file.read_bytes()[:-1])
        assert tuning_of(tmp_path, replay).progress.asked >= 1000


def test_a_loss_beyond_all_bounds_does_not_spoil_the_record(tmp_path: Path) -> None:
    """What is written can be read."""
    with filled(tmp_path, turned=0) as replay:
        one = tuning_of(tmp_path, replay)
        one._keep_progress(replace(one.progress, asked=7, loss=1e300))  # as a round would
        assert tuning_of(tmp_path, replay).progress.asked == 7


def test_a_rate_that_is_too_large_is_halved_until_it_is_not(tmp_path: Path) -> None:
    """A step to infinity costs the training since it began, and no more."""
    with filled(tmp_path, turned=1) as replay:
        one = tuning_of(tmp_path, replay)
        one._steps = replace(one._steps, rate=1e30)  # as a lab that erred would have written it
        with pytest.raises(TrainingError, match="leads nowhere"):
            one.work(Spell(10_000))
        assert one.progress.halvings == 20
        assert one.tuned() is None


def test_levels_shrink_with_every_question(tmp_path: Path) -> None:
    """How often was asked outlives a restart, so that asking again and again proves nothing."""
    with filled(tmp_path, turned=0) as replay:
        tuning_of(tmp_path, replay).work(Spell(2 * ROUNDS.steps))
        one = tuning_of(tmp_path, replay)
        assert one.progress.asked == 2
        one.work(Spell(ROUNDS.steps))
        assert tuning_of(tmp_path, replay).progress.asked == 3


def test_a_sealed_buffer_teaches_as_an_open_one(tmp_path: Path) -> None:
    """Samples that are encrypted on the disk."""
    with filled(tmp_path, turned=1, key=bytes(range(32))) as replay:
        found = until_let_through(tuning_of(tmp_path, replay))
    assert found is not None
    assert right(model_with(found), turned=1) > 0.9


def test_the_step_is_named_by_its_digest(tmp_path: Path) -> None:
    """So that weights of one step are no weights of another."""
    with filled(tmp_path, turned=1) as replay:
        found = until_let_through(tuning_of(tmp_path, replay))
    assert found is not None
    assert found.step == Digest.of(packed().blobs[TRAIN])
    assert steps().classes == CLASSES
