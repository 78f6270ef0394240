"""Inheritance: does a student that begins as a part of its teacher learn better from 500 digits?

The 1,797 digits that scikit-learn carries, each pixel thrice as large (24 x 24 x 3). A third is for measuring and shown to
nobody. The reference LargeModel learns the rest; the reference SmallModel learns 500 of these for 8 epochs, from weights
chosen in different ways. The recipe favours none of them: of those in `TRIED`, the best with SGD and the best with AdamW *for
random initialisation*, on validation digits (the part of the rest that a trial's student was not shown); see
`python -m quality.digits`. Both are measured; the figures are of SGD, the optimiser of the reference networks' description.

The control is the inconsistent selection: each layer's inputs are chosen without regard to what the layer before it kept.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from typing import TYPE_CHECKING, Final, get_args

import numpy as np
import torch
from sklearn.datasets import load_digits

from edgestill.demo.imagedata import fit
from edgestill.lab.data.samples import Samples
from edgestill.lab.data.source import ArraySource
from edgestill.lab.inherit import inherit_
from edgestill.lab.networks import ImageNet24
from edgestill.lab.recipe import Recipe, Selection
from edgestill.lab.score import scores
from edgestill.lab.training.train import Lesson, train_
from quality.record import Scores, gain_json

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGE: Final = (64, 128, 512)
SMALL: Final = (32, 64, 32)
LIMITED: Final = 500
TEACHER: Final = Recipe(epochs=10, batch=16, optimiser="sgd", lr=0.01, momentum=0.9)
STUDENT: Final = Recipe(epochs=8, batch=16, optimiser="sgd", lr=0.01, momentum=0.9)
RECIPES: Final = {"sgd": STUDENT, "adamw": Recipe(epochs=8, batch=16, optimiser="adamw", lr=3e-3)}
TRIED: Final = (
    *(replace(STUDENT, lr=lr) for lr in (0.003, 0.01, 0.03)),
    *(replace(STUDENT, lr=lr, momentum=0.0, schedule="constant") for lr in (0.01, 0.03, 0.1)),
    *(replace(STUDENT, lr=lr, optimiser="adamw") for lr in (1e-3, 3e-3)),
)
STARTS: Final = {
    "scratch": "random initialisation",
    "inconsistent": "each layer by itself (control)",
    "first": "inherited: first",
    "uniform": "inherited: uniform",
    "random": "inherited: random",
    "magnitude": "inherited: magnitude",
}
MOMENTS: Final = ("before", "epoch1", "end")


def digits() -> tuple[Samples, Samples]:
    """What may be learned, and what is measured on."""
    x, y = load_digits(return_X_y=True)
    images = fit((x.reshape(-1, 8, 8) * 15).astype(np.uint8))
    whole = Samples.of(images, y)
    measured = np.isin(np.arange(len(y)), np.random.default_rng(0).permutation(len(y))[: len(y) // 3])
    return whole.where(~measured), whole.where(measured)


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
        if done in {1, recipe.epochs}:
            student.eval()
            found.append(scores(student, test))
            student.train()

    train_(student, Lesson.of(limited), recipe, progress=see)
    return found


def some(data: Samples, seed: int, count: int = LIMITED) -> Samples:
    """That many of them."""
    chosen = np.random.default_rng(seed).permutation(len(data))[:count]
    return data.where(np.isin(np.arange(len(data)), chosen))


Found = dict[str, dict[str, list["NDArray[np.float64]"]]]


def run(seed: int, *, quick: bool) -> tuple[NDArray[np.float64], Found]:
    """One seed: the teacher's scores, and by recipe and start those of the students at each of `MOMENTS`."""
    data, measured = digits()
    test = ArraySource.of(measured)
    teacher = network(LARGE, data, seed)
    train_(teacher, Lesson.of(data), replace(TEACHER, seed=seed, epochs=1 if quick else TEACHER.epochs))
    limited, found = some(data, seed), {}
    for name, recipe in RECIPES.items():
        own = replace(recipe, seed=seed, epochs=2 if quick else recipe.epochs)
        found[name] = {
            start: learn(begin(start, teacher, limited, seed), limited, test, own) for start in STARTS
        }
    return scores(teacher, test), found


def summed(seeds: list[tuple[NDArray[np.float64], Found]]) -> dict[str, object]:
    """All seeds as JSON."""
    told = {}
    for name in RECIPES:
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
        "recipes": told,
    }


def _told(name: str, table: dict[str, dict[str, Scores]]) -> dict[str, object]:
    return {
        "recipe": RECIPES[name].as_json(),
        "starts": {
            start: {moment: one.as_json() for moment, one in row.items()} for start, row in table.items()
        },
        "gains": {
            start: {moment: gain_json(row[moment], table["scratch"][moment]) for moment in MOMENTS}
            for start, row in table.items()
            if start != "scratch"
        },
    }


def tune() -> None:
    """Prints how each recipe of `TRIED` does from random initialisation, on validation digits."""
    data, _measured = digits()
    for recipe in TRIED:
        each = []
        for seed in range(3):
            limited = some(data, seed)
            rest = data.where(~np.isin(data.groups, limited.groups))
            student = train_(
                network(SMALL, limited, 1000 + seed), Lesson.of(limited), replace(recipe, seed=seed)
            )
            each.append(100 * float(scores(student, ArraySource.of(rest)).mean()))
        about = {name: recipe.as_json()[name] for name in ("optimiser", "lr", "momentum", "schedule")}
        print(json.dumps({"validation": round(float(np.mean(each)), 2)} | about), flush=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description="Chooses the students' recipe.").parse_args()
    torch.set_num_threads(1)
    tune()
