"""Teacher and student see the same view, and a cached answer is only used for what it was an answer to."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from lab_worlds import Straight, motion_net, motions, points, same_weights, straight
from torch import Tensor

from edgestill.core.errors import DataError, NotFiniteError
from edgestill.lab.augment import MotionJitter
from edgestill.lab.recipe import Recipe
from edgestill.lab.train import Lesson, train_
from edgestill.lab.views import SoftLabels, answers, view, weights_digest

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.lab.samples import Samples
    from edgestill.lab.views import Augment


def noisy(inputs: Tensor, random: torch.Generator) -> Tensor:
    """Adds noise."""
    return inputs + 0.1 * torch.randn(inputs.shape, generator=random)


def noisier(inputs: Tensor, random: torch.Generator) -> Tensor:
    """Adds more."""
    return inputs + 0.2 * torch.randn(inputs.shape, generator=random)


SAMPLES = points(30)


def make(
    folder: Path,
    teacher: Straight,
    samples: Samples = SAMPLES,
    augment: Augment | None = noisy,
    seed: int = 3,
) -> SoftLabels:
    """A cache of two views."""
    return SoftLabels.make(folder, teacher=teacher, samples=samples, augment=augment, views=2, seed=seed)


def rows(batches: list[Tensor]) -> set[tuple[float, ...]]:
    """All samples of some batches, whatever their order."""
    return {tuple(row.tolist()) for batch in batches for row in batch}


def test_teacher_and_student_see_the_same_view(tmp_path: Path) -> None:
    """Epoch by epoch the student is shown exactly the numbers the teacher answered to, round and round the views."""
    teacher, student = straight(), straight(seed=1, hidden=2)
    soft = make(tmp_path, teacher)
    shown = teacher.seen[-2:]
    assert rows(shown[:1]).isdisjoint(rows(shown[1:]))
    train_(
        student,
        Lesson(samples=SAMPLES, soft=soft, augment=noisy),
        Recipe(epochs=3, batch=10, soft_weight=1.0, seed=77),
    )
    for epoch, index in enumerate((0, 1, 0)):
        assert rows(student.seen[3 * epoch : 3 * epoch + 3]) == rows(shown[index : index + 1])


def test_each_epoch_is_given_its_views_answers(tmp_path: Path) -> None:
    """Seed and logits of a view belong together, kept to half precision."""
    teacher = straight()
    soft = make(tmp_path, teacher)
    for epoch in range(4):
        seed, logits = soft.of(epoch)
        assert seed == 3 + epoch % 2
        found = answers(teacher, view(torch.from_numpy(SAMPLES.inputs), noisy, seed))
        torch.testing.assert_close(logits, found, rtol=1e-3, atol=1e-3)
        assert logits.dtype == torch.float32
    assert isinstance(soft.logits, np.memmap)
    assert soft.logits.dtype == np.float16


def test_a_second_run_costs_no_teacher_forward_over_the_data(tmp_path: Path) -> None:
    """The same cache is opened again with the same answers, and the teacher is not asked."""
    teacher = straight()
    first = make(tmp_path, teacher)
    teacher.seen.clear()
    again = make(tmp_path, teacher)
    assert teacher.seen == []
    assert np.array_equal(first.logits, again.logits)
    assert first.seeds == again.seeds


def test_the_cache_of_something_else_is_refused(tmp_path: Path) -> None:
    """Another teacher, other data, another augmentation, none, or another seed: each is told what to do."""
    make(tmp_path, straight())
    changed = replace(SAMPLES, labels=SAMPLES.labels[::-1].copy())
    attempts: tuple[Callable[[], SoftLabels], ...] = (
        lambda: make(tmp_path, straight(seed=1)),
        lambda: make(tmp_path, straight(), samples=changed),
        lambda: make(tmp_path, straight(), augment=noisier),
        lambda: make(tmp_path, straight(), augment=None),
        lambda: make(tmp_path, straight(), seed=4),
    )
    for attempt in attempts:
        with pytest.raises(DataError, match=r"\[data-unusable\] soft labels of another teacher") as caught:
            attempt()
        assert caught.value.fix == "choose another folder, or delete this one"


def test_a_damaged_cache_is_refused(tmp_path: Path) -> None:
    """A cache that is cut short, of another shape, or gone is not trained on."""
    make(tmp_path, straight())
    body = tmp_path / "soft.npy"
    whole = body.read_bytes()
    body.write_bytes(whole[:-20])
    with pytest.raises(DataError, match="soft labels that cannot be read"):
        make(tmp_path, straight())
    np.save(body, np.zeros((2, 29, 3), dtype=np.float16))
    with pytest.raises(DataError, match=r"of another shape; .* expected float16 \[2, 30, C\]"):
        make(tmp_path, straight())
    body.unlink()
    with pytest.raises(DataError, match=r"soft labels that cannot be read.*delete this folder"):
        make(tmp_path, straight())


def test_a_cache_that_was_not_finished_is_filled_again(tmp_path: Path) -> None:
    """The key is written last: answers without it, left by a killed run, are not believed."""
    (tmp_path / "soft.npy").write_bytes(b"half a file")
    assert make(tmp_path, straight()).logits.shape == (2, 30, 3)


def test_without_an_augmentation_there_is_one_view(tmp_path: Path) -> None:
    """More views of unchanged data would all be the same."""
    assert make(tmp_path, straight(), augment=None).seeds == (3,)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e6])
def test_answers_that_cannot_be_kept_are_refused(tmp_path: Path, value: float) -> None:
    """A teacher's NaN, infinity, or logit beyond float16 must not become a student's target."""
    teacher = straight()
    with torch.no_grad():
        teacher.head.bias[0] = value
    with pytest.raises(NotFiniteError, match=r"\[not-finite\] the teacher's answers cannot be kept"):
        make(tmp_path, teacher)
    assert not (tmp_path / "soft.json").exists()


def test_a_training_teacher_is_asked_in_evaluation_mode_and_put_back(tmp_path: Path) -> None:
    """BatchNorm statistics do not drift (a peer's did), and the modes of all layers are as before."""
    teacher, before = motion_net(3, 3, 3).train(), motion_net(3, 3, 3)
    teacher.norm2.eval()
    samples = motions(12)
    SoftLabels.make(tmp_path, teacher=teacher, samples=samples, augment=MotionJitter(), views=2, seed=0)
    assert same_weights(teacher, before)
    assert (teacher.training, teacher.norm1.training, teacher.norm2.training) == (True, True, False)
    counting = straight().train()
    answers(counting, torch.zeros(2, 4))
    assert counting.modes == [False]
    assert counting.training


def test_a_teacher_that_fails_is_put_back_too() -> None:
    """An error on the way does not leave the teacher in evaluation mode."""
    teacher = straight().train()
    with pytest.raises(RuntimeError):
        answers(teacher, torch.zeros(2, 9))
    assert teacher.training


def test_answers_carry_no_gradient_and_come_in_batches() -> None:
    """A large set is asked in parts and comes back whole, without a graph behind it."""
    teacher = straight()
    inputs = torch.randn(600, 4)
    found = answers(teacher, inputs)
    assert [len(batch) for batch in teacher.seen] == [256, 256, 88]
    assert not found.requires_grad
    torch.testing.assert_close(found, teacher(inputs).detach())


def test_the_digest_of_weights_counts_every_weight_and_buffer() -> None:
    """The same weights in another memory order have the same digest; one other number another."""
    one, other = motion_net(3, 3, 3), motion_net(3, 3, 3)
    assert weights_digest(one) == weights_digest(other)
    other.get_buffer("norm1.running_mean")[0] += 1e-6
    assert weights_digest(one) != weights_digest(other)
