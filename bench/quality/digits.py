"""Inheritance: does a student that begins as a part of its teacher learn better from 500 digits?

The 1,797 digits that scikit-learn carries, each pixel thrice as large (24 x 24 x 3). A third is for measuring and shown to
nobody. The reference LargeModel learns the rest; the reference SmallModel learns 500 of these, from weights chosen in
different ways.

- *The budget is equal and told*: a course. The one that counts has `SHORT` epochs, as many as when this was first measured,
  of SGD, the optimiser of the reference networks' description. Shorter courses, AdamW, and `LONG` epochs stand beside it: a
  head start is worth the more, the less time there is to catch up.
- *Every start has a learning rate of its own*, tuned for its optimiser and budget on validation digits (`validation`), which
  no network of the tuning was shown, its teacher included: see `bench/tune_quality.py` and its results. The exception is
  `described`, whose one learning rate is that of the networks' description and suits random weights least.
- *The control* is the inconsistent selection: each layer's inputs are chosen without regard to what the layer before it kept.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
import torch
from sklearn.datasets import load_digits

from edgestill.core.errors import TrainingError
from edgestill.demo.imagedata import fit
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource
from edgestill.lab.inherit import inherit_
from edgestill.lab.networks import ImageNet24
from edgestill.lab.recipe import Recipe, Selection
from edgestill.lab.score import scores
from edgestill.lab.training.train import Lesson, train_
from quality.record import Scores, gain_json
from quality.tuned import chosen

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from numpy.typing import NDArray

LARGE: Final = (64, 128, 512)
SMALL: Final = (32, 64, 32)
LIMITED: Final = 500
SHORT: Final = 8
LONG: Final = 40
TEACHER: Final = Recipe(epochs=10, batch=16, optimiser="sgd", lr=0.01, momentum=0.9)
STARTS: Final = {
    "scratch": "random initialisation",
    "inconsistent": "each layer by itself (control)",
    "first": "inherited: first",
    "uniform": "inherited: uniform",
    "random": "inherited: random",
    "magnitude": "inherited: magnitude",
}
MOMENTS: Final = ("before", "epoch1", "end")


@dataclass(frozen=True, slots=True)
class Course:
    """An optimiser and a number of epochs.

    Attributes:
        title: in tables.
        recipe: but for learning rate and seed.
        rates: the learning rates that are tried.
    """

    title: str
    recipe: Recipe
    rates: tuple[float, ...]


_SGD: Final = Recipe(batch=16, optimiser="sgd", momentum=0.9)
_HASTY: Final = (3e-3, 1e-2, 3e-2, 6e-2)
_DESCRIBED: Final = Recipe(batch=16, optimiser="sgd", schedule="constant", epochs=SHORT)
COURSES: Final = {
    "one": Course("1 epoch, SGD", replace(_SGD, epochs=1), (*_HASTY, 1e-1, 2e-1)),
    "two": Course("2 epochs, SGD", replace(_SGD, epochs=2), _HASTY),
    "four": Course("4 epochs, SGD", replace(_SGD, epochs=4), _HASTY),
    "sgd": Course(f"{SHORT} epochs, SGD", replace(_SGD, epochs=SHORT), (1e-3, 3e-3, 1e-2, 3e-2)),
    "adamw": Course(f"{SHORT} epochs, AdamW", Recipe(batch=16, epochs=SHORT), (1e-3, 3e-3, 1e-2)),
    "long": Course(f"{LONG} epochs, SGD", replace(_SGD, epochs=LONG), (1e-2, 3e-2)),
    "described": Course(f"{SHORT} epochs, SGD at 0.01 for all", _DESCRIBED, (1e-2,)),
}


def digits() -> tuple[Samples, Samples]:
    """What may be learned, and what is measured on."""
    x, y = load_digits(return_X_y=True)
    images = fit((x.reshape(-1, 8, 8) * 15).astype(np.uint8))
    whole = Samples.of(images, y)
    measured = np.isin(np.arange(len(y)), np.random.default_rng(0).permutation(len(y))[: len(y) // 3])
    return whole.where(~measured), whole.where(measured)


def validation(data: Samples) -> tuple[Samples, Samples]:
    """What may be learned, parted once more: for the networks of the tuning, and for choosing among them."""
    kept = np.isin(np.arange(len(data)), np.random.default_rng(1).permutation(len(data))[: len(data) // 4])
    return data.where(~kept), data.where(kept)


def network(widths: tuple[int, int, int], data: Samples, seed: int) -> ImageNet24:
    """A new one."""
    torch.manual_seed(seed)
    made = ImageNet24(*widths)
    made.standardise.fit_(data.inputs)
    return made


def inconsistent_(student: torch.nn.Module, teacher: torch.nn.Module, seed: int) -> None:
    """Fills each tensor with rows and columns of the teacher's, chosen anew for each layer and side."""
    random = torch.Generator().manual_seed(seed)
    ours, theirs = student.state_dict(), teacher.state_dict()
    for name, tensor in ours.items():
        part = theirs[name]
        for axis, size in enumerate(tensor.shape):
            if size < part.shape[axis]:
                kept = torch.randperm(part.shape[axis], generator=random)[:size]
                part = part.index_select(axis, kept.sort().values)
        tensor.copy_(part)


def begin(start: str, teacher: ImageNet24, limited: Samples, seed: int) -> ImageNet24:
    """A student with its first weights."""
    student = network(SMALL, limited, 1000 + seed)
    if start == "inconsistent":
        inconsistent_(student, teacher, seed)
    if start in get_args(Selection):
        example = torch.from_numpy(limited.inputs[:1])
        inherit_(student, teacher, example, selection=start, seed=seed)  # type: ignore[arg-type]  # narrowed by the line above
    return student


def learn(
    student: ImageNet24, limited: Samples, test: ArraySource, recipe: Recipe
) -> list[NDArray[np.float64]]:
    """Scores before training, after one epoch, and at the end."""
    found = [scores(student, test)]

    def see(done: int, _all: int, _loss: float) -> None:
        student.eval()
        if done == 1:
            found.append(scores(student, test))
        if done == recipe.epochs:
            found.append(scores(student, test))
        student.train()

    train_(student, Lesson.of(limited), recipe, progress=see)
    return found


def some(data: Samples, seed: int, count: int = LIMITED) -> Samples:
    """That many of them."""
    drawn = np.random.default_rng(seed).permutation(len(data))[:count]
    return data.where(np.isin(np.arange(len(data)), drawn))


def teach(data: Samples, seed: int, *, quick: bool = False) -> ImageNet24:
    """The teacher."""
    teacher = network(LARGE, data, seed)
    train_(teacher, Lesson.of(data), replace(TEACHER, seed=seed, epochs=1 if quick else TEACHER.epochs))
    return teacher


Found = dict[str, dict[str, list["NDArray[np.float64]"]]]


def run(seed: int, *, quick: bool) -> tuple[NDArray[np.float64], Found]:
    """One seed: the teacher's scores, and by course and start those of the students at each of `MOMENTS`."""
    data, measured = digits()
    test, teacher = ArraySource.of(measured), teach(data, seed, quick=quick)
    limited, found = some(data, seed), {}
    for name, course in COURSES.items():
        own = replace(course.recipe, seed=seed, epochs=2 if quick else course.recipe.epochs)
        found[name] = {
            start: learn(
                begin(start, teacher, limited, seed), limited, test, replace(own, lr=rate_of(name, start))
            )
            for start in STARTS
        }
    return scores(teacher, test), found


def rate_of(course: str, start: str) -> float:
    """The learning rate that was chosen."""
    return float(chosen("digits")[course][start]["lr"])


def summed(seeds: list[tuple[NDArray[np.float64], Found]]) -> dict[str, object]:
    """All seeds as JSON."""
    told = {}
    for name in COURSES:
        table = {
            start: {
                moment: Scores(title, [found[name][start][at] for _teacher, found in seeds])
                for at, moment in enumerate(MOMENTS)
            }
            for start, title in STARTS.items()
        }
        told[name] = _told(name, table)
    return {
        "samples": LIMITED,
        "measured_on": len(seeds[0][0]),
        "teacher": Scores("teacher", [teacher for teacher, _found in seeds]).as_json(),
        "courses": told,
    }


def _told(name: str, table: dict[str, dict[str, Scores]]) -> dict[str, object]:
    course = COURSES[name]
    return {
        "title": course.title,
        "recipes": {start: replace(course.recipe, lr=rate_of(name, start)).as_json() for start in table},
        "starts": {
            start: {moment: one.as_json() for moment, one in row.items()} for start, row in table.items()
        },
        "gains": {
            start: {moment: gain_json(row[moment], table["scratch"][moment]) for moment in MOMENTS}
            for start, row in table.items()
            if start != "scratch"
        },
    }


def tried(
    seeds: range, known: Sequence[tuple[str, str, float]]
) -> Iterator[tuple[str, str, float, list[float]]]:
    """Course, start, learning rate, and the accuracy of each seed in per cent, on validation digits; but for those known."""
    learned, kept = validation(digits()[0])
    judge = ArraySource.of(kept)
    teachers = {seed: teach(learned, seed) for seed in seeds}
    for name, start, rate in asked():
        if (name, start, rate) in known:
            continue
        recipe = replace(COURSES[name].recipe, lr=rate)
        each = []
        for seed, teacher in teachers.items():
            limited = some(learned, seed)
            student = begin(start, teacher, limited, seed)
            each.append(_tried(student, limited, judge, replace(recipe, seed=seed)))
        yield name, start, rate, each


def asked() -> list[tuple[str, str, float]]:
    """Every course, start and learning rate that is tried."""
    return [
        (name, start, rate) for name, course in COURSES.items() for start in STARTS for rate in course.rates
    ]


def _tried(student: ImageNet24, limited: Samples, judge: ArraySource, recipe: Recipe) -> float:
    """Accuracy in per cent; none where training diverged."""
    try:
        train_(student, Lesson.of(limited), recipe)
    except TrainingError:
        return 0.0
    return 100 * float(scores(student, judge).mean())
