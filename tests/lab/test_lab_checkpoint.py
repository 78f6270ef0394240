"""A run that is killed anywhere goes on and ends with the same weights, bit for bit; another run's state is refused."""

from __future__ import annotations

import io
import os
import signal
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from lab_worlds import motion_net, motions, points, same_weights, straight
from torch import nn

from edgestill.core.errors import DataError, PathError, TrainingError
from edgestill.lab.data.augment import MotionJitter
from edgestill.lab.data.source import ArraySource
from edgestill.lab.recipe import Recipe
from edgestill.lab.teacher.cache import CachedGuide
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.training.checkpoint import NAME, Checkpoints
from edgestill.lab.training.runtime import Runtime
from edgestill.lab.training.train import Lesson, train_

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.lab.training.checkpoint import State

RUN = {"recipe": "1", "data": "2"}
SAMPLES = motions(21, seed=3)
RECIPES = {
    "adamw, one-cycle, soft": Recipe(epochs=3, batch=6, lr=1e-2, soft_weight=0.5, views=2),
    "sgd, cosine, hint": Recipe(
        epochs=3,
        batch=6,
        lr=1e-2,
        optimiser="sgd",
        momentum=0.9,
        schedule="cosine",
        soft_weight=0.5,
        hint="0.conv3=0.conv3",
        hint_weight=0.1,
        clip=1.0,
    ),
}


def student() -> nn.Module:
    """A network with BatchNorm and dropout: running statistics and draws must survive too."""
    return nn.Sequential(motion_net(3, 3, 4, seed=7), nn.Dropout(0.3))


def kept_in(folder: Path) -> State:
    """What stands behind the digest of a checkpoint."""
    whole = (folder / NAME).read_bytes()
    found: State = torch.load(io.BytesIO(whole[whole.index(b"PK") :]), weights_only=True)
    return found


def lesson(recipe: Recipe) -> Lesson:
    """Augmented samples and a live teacher."""
    teacher = nn.Sequential(motion_net(4, 4, 6, seed=8))
    hint = None if recipe.hinted is None else recipe.hinted.teacher_layer
    return Lesson.of(SAMPLES, MotionJitter(), LiveGuide(teacher, hint=hint))


def killed_at(step: str, count: int, work: Callable[[], None]) -> bool:
    """Runs the work in a process that SIGKILLs itself at the count-th call of a system call; whether it came that far."""
    child = os.fork()
    if child == 0:
        left = count
        real = getattr(os, step)

        def dying(*args: object, **named: object) -> object:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **named)

        setattr(os, step, dying)
        try:
            work()
        except BaseException:  # noqa: BLE001  # a forked child must not run the test runner's own end
            os._exit(3)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.skipif(sys.platform == "win32", reason="needs fork and SIGKILL")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("name", RECIPES)
def test_a_run_killed_anywhere_ends_with_the_same_weights(tmp_path: Path, name: str) -> None:
    """Killed at every write, flush and rename of a checkpoint in turn, and resumed each time, it ends bit-identical."""
    recipe = RECIPES[name]
    wanted = train_(student(), lesson(recipe), recipe)
    runtime = Runtime(checkpoint=tmp_path / "state", checkpoint_every=1)

    def work() -> None:
        train_(student(), lesson(recipe), recipe, runtime=runtime)

    deaths = 0
    for at in range(60):
        call = ("fsync", "replace", "fdopen")[at % 3]
        if not killed_at(call, at % 4, work):
            break
        deaths += 1
    assert deaths > 5
    found = train_(student(), lesson(recipe), recipe, runtime=runtime)
    assert same_weights(found, wanted)


@pytest.mark.parametrize("every", [0, 1, 4])
def test_a_run_stopped_after_any_step_goes_on_with_the_same_weights(tmp_path: Path, every: int) -> None:
    """Stopped by an error in step after step, with checkpoints every epoch, step, or fourth step."""
    recipe = RECIPES["adamw, one-cycle, soft"]
    wanted = train_(student(), lesson(recipe), recipe)
    for stop in range(1, 12, 2):
        folder = tmp_path / f"{every}-{stop}"
        runtime = Runtime(checkpoint=folder, checkpoint_every=every)

        class Tripping(nn.Module):
            """Raises in its n-th forward pass."""

            def __init__(self, inner: nn.Module, at: int) -> None:
                super().__init__()
                self.inner, self.left = inner, at

            def forward(self, x: torch.Tensor) -> torch.Tensor:
                """Logits, or the end."""
                self.left -= 1
                if self.left == 0:
                    raise KeyboardInterrupt
                return self.inner(x)  # type: ignore[no-any-return]

        with pytest.raises(KeyboardInterrupt):
            train_(Tripping(student(), stop), lesson(recipe), recipe, runtime=runtime)
        network = Tripping(student(), 10_000)
        train_(network, lesson(recipe), recipe, runtime=runtime)
        assert same_weights(network.inner, wanted)


def test_a_finished_run_is_not_run_again(tmp_path: Path) -> None:
    """The last state is kept, so that asking again gives the same student at once."""
    recipe, runtime = Recipe(epochs=2, batch=8, lr=1e-2), Runtime(checkpoint=tmp_path)
    wanted = train_(straight(), Lesson.of(points(24)), recipe, runtime=runtime)
    again = straight()
    train_(again, Lesson.of(points(24)), recipe, runtime=runtime)
    assert same_weights(again, wanted)
    assert again.seen == []


def test_a_loss_that_is_not_finite_keeps_the_last_good_state(tmp_path: Path) -> None:
    """The run stops, and its checkpoint holds finite weights from before."""
    recipe = Recipe(epochs=3, batch=8, lr=1e-2)
    data = points(24)

    class Bomb(nn.Module):
        """Answers NaN from the fifth forward pass on."""

        def __init__(self) -> None:
            super().__init__()
            self.inner, self.passes = straight(), 0

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Logits."""
            self.passes += 1
            logits: torch.Tensor = self.inner(x)
            return logits * float("nan") if self.passes >= 5 else logits

    with pytest.raises(TrainingError, match="batch 2 of epoch 2"):
        train_(Bomb(), Lesson.of(data), recipe, runtime=Runtime(checkpoint=tmp_path, checkpoint_every=1))
    state = kept_in(tmp_path)
    assert state["step"] == 4
    assert all(torch.isfinite(one).all() for one in state["learner"].values())


@pytest.mark.parametrize("change", ["recipe", "data", "student", "teacher"])
def test_another_runs_checkpoint_is_refused(tmp_path: Path, change: str) -> None:
    """A state of another recipe, data, student or teacher is an error, not a start."""
    recipe = Recipe(epochs=1, batch=8, soft_weight=0.5)
    runtime = Runtime(checkpoint=tmp_path)

    def train(recipe: Recipe, data_seed: int, student_seed: int, teacher_seed: int) -> None:
        guide = LiveGuide(straight(seed=teacher_seed))
        train_(
            straight(seed=student_seed),
            Lesson.of(points(24, seed=data_seed), guide=guide),
            recipe,
            runtime=runtime,
        )

    train(recipe, 0, 0, 9)
    with pytest.raises(DataError, match=rf"a checkpoint of another run; .*got another {change}") as caught:
        train(
            replace(recipe, lr=1e-4) if change == "recipe" else recipe,
            int(change == "data"),
            int(change == "student"),
            8 if change == "teacher" else 9,
        )
    assert caught.value.fix == "name another folder, or delete this one to begin again"


def test_a_step_into_nan_keeps_the_last_good_state(tmp_path: Path) -> None:
    """A finite loss whose gradient is not: nothing spoilt is kept or returned, and the error names the tensor."""

    class Cusp(nn.Module):
        """A square root, whose slope at 0 is infinite: 0 times infinity is no number."""

        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(4, 3, bias=False), nn.Linear(3, 3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            """Logits."""
            hidden = self.first(x)
            logits: torch.Tensor = self.head(hidden / (1 + hidden.square().sum(1, keepdim=True).sqrt()))
            return logits

    clean = points(24)
    spoilt = replace(clean, inputs=np.where(np.arange(24)[:, None] == 5, 0, clean.inputs))
    for recipe in (Recipe(epochs=1, batch=8), Recipe(epochs=1, batch=8, clip=1.0)):
        folder = tmp_path / str(recipe.clip)
        train_(Cusp(), Lesson.of(clean), recipe)
        with pytest.raises(
            TrainingError, match=r"a weight is not finite; at first\.weight, after step \d of 3"
        ):
            train_(Cusp(), Lesson.of(spoilt), recipe, runtime=Runtime(checkpoint=folder, checkpoint_every=1))
        if (folder / NAME).exists():
            assert all(torch.isfinite(one).all() for one in kept_in(folder)["learner"].values())
        with pytest.raises(TrainingError, match="not finite"):
            train_(Cusp(), Lesson.of(spoilt), recipe)


@pytest.mark.parametrize("change", ["dropout", "activation", "asking"])
def test_a_run_of_another_structure_or_way_of_asking_is_another_run(tmp_path: Path, change: str) -> None:
    """Equal weights in other layers, or answers to other views, are not what the checkpoint goes on from."""

    def network(*, dropout: float = 0.1, activation: type[nn.Module] = nn.ReLU) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(
            nn.Flatten(), nn.Linear(96, 4), activation(), nn.Dropout(dropout), nn.Linear(4, 3)
        )

    recipe = Recipe(epochs=2, batch=6, soft_weight=0.5, views=1)
    source = ArraySource.of(SAMPLES, MotionJitter())
    live = LiveGuide(motion_net(4, 4, 6, seed=8))
    kept = CachedGuide.open(tmp_path / "answers", teacher=live, source=source, seed=recipe.seed, views=1)
    runtime = Runtime(checkpoint=tmp_path / "state")
    train_(network(), Lesson(source=source, guide=live), recipe, runtime=runtime)
    other = {
        "dropout": network(dropout=0.9),
        "activation": network(activation=nn.Tanh),
        "asking": network(),
    }[change]
    with pytest.raises(DataError, match="a checkpoint of another run"):
        train_(
            other, Lesson(source=source, guide=kept if change == "asking" else live), recipe, runtime=runtime
        )


def test_no_flipped_bit_becomes_a_weight(tmp_path: Path) -> None:
    """Any one bit, in the head, in the numbers or between them, is found when the checkpoint is read."""
    checkpoints = Checkpoints(tmp_path, RUN)
    checkpoints.keep({"step": 3, "weights": {"w": torch.arange(64.0)}})
    whole = checkpoints.path.read_bytes()
    for at in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << at % 8
        checkpoints.path.write_bytes(flipped)
        with pytest.raises(DataError, match="a checkpoint that cannot be read"):
            checkpoints.last()


@pytest.mark.parametrize("damage", ["cut", "empty", "other bytes"])
def test_a_damaged_checkpoint_is_a_coded_error(tmp_path: Path, damage: str) -> None:
    """A file that no writer of ours leaves behind is refused with its path."""
    checkpoints = Checkpoints(tmp_path, RUN)
    checkpoints.keep({"step": 1})
    whole = checkpoints.path.read_bytes()
    checkpoints.path.write_bytes({"cut": whole[:-20], "empty": b"", "other bytes": b"x" * 500}[damage])
    with pytest.raises(DataError, match="a checkpoint that cannot be read"):
        checkpoints.last()


def test_a_checkpoint_that_would_run_code_is_refused(tmp_path: Path) -> None:
    """A pickle with a call in it is not executed."""
    flag = tmp_path / "ran"

    class Attack:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return Path.touch, (flag,)

    checkpoints = Checkpoints(tmp_path, RUN)
    checkpoints.keep({"evil": Attack()})
    with pytest.raises(DataError, match="a checkpoint that cannot be read"):
        checkpoints.last()
    assert not flag.exists()


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    """Nothing kept, nothing found."""
    assert Checkpoints(tmp_path / "nowhere", RUN).last() is None


def test_what_is_kept_comes_back_for_this_run_only(tmp_path: Path) -> None:
    """Tensors and values come back equal; another run's digest is refused."""
    Checkpoints(tmp_path, RUN).keep({"step": 3, "weights": {"w": torch.arange(4.0)}})
    state = Checkpoints(tmp_path, RUN).last()
    assert state is not None
    assert state["step"] == 3
    for other, differing in (({"recipe": "9"}, "another recipe"), ({"data": "9"}, "another data")):
        with pytest.raises(
            DataError, match=rf"another run; .*expected the same recipe, data; got {differing}"
        ):
            Checkpoints(tmp_path, RUN | other).last()


def test_a_folder_that_cannot_be_made_is_a_coded_error(tmp_path: Path) -> None:
    """A file stands where the folder should be."""
    (tmp_path / "file").write_text("")
    with pytest.raises(PathError, match="cannot make a folder for checkpoints"):
        Checkpoints(tmp_path / "file" / "deeper", RUN).keep({})
