"""The same training by edgestill: through `train_`, as a user calls it."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgestill.lab.data.source import ArraySource
from edgestill.lab.recipe import Recipe
from edgestill.lab.teacher.cache import CachedGuide
from edgestill.lab.teacher.guide import LiveGuide
from edgestill.lab.teacher.onnxguide import OnnxGuide
from edgestill.lab.training.train import Lesson, train_
from speed.networks import CLASSES
from speed.pair import BATCH, LEARNING_RATE, MOMENTUM, SEED, SOFT_WEIGHT, TAU
from speed.rounds import Moment, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterator

    from edgestill.lab.teacher.guide import Guide
    from speed.pair import Pair


@dataclass(frozen=True, slots=True)
class Cache:
    """A filled cache, and what it cost.

    Attributes:
        guide: answers from it.
        seconds: to fill it, digests and the teacher's forward passes included.
        bytes: on disk.
    """

    guide: CachedGuide
    seconds: Moment
    bytes: int


@contextmanager
def filled(pair: Pair) -> Iterator[Cache]:
    """A cache of the pair's teacher, until the block ends."""
    with TemporaryDirectory() as folder:
        start = Moment.now()
        guide = CachedGuide.open(
            Path(folder), teacher=LiveGuide(pair.teacher()), source=_source(pair), seed=SEED, views=1
        )
        seconds = Moment.now() - start
        size = sum(file.stat().st_size for file in Path(folder).rglob("*") if file.is_file())
        yield Cache(guide, seconds, size)


def cached(pair: Pair, epochs: int, *, guide: Guide) -> Outcome:
    """The teacher's answers from the cache."""
    return _train(pair, epochs, guide)


def live(pair: Pair, epochs: int) -> Outcome:
    """The teacher asked in each step."""
    return _train(pair, epochs, LiveGuide(pair.teacher()))


def exported(pair: Pair, epochs: int, *, guide: Guide) -> Outcome:
    """The teacher as int8 ONNX, asked in each step."""
    return _train(pair, epochs, guide)


def int8_teacher(pair: Pair) -> OnnxGuide:
    """Whatever it then says: a teacher that learned nothing has no clear answers to agree with."""
    return OnnxGuide.export(pair.teacher(), pair.inputs[:BATCH], least=0.0)


def student_only(pair: Pair, epochs: int) -> Outcome:
    """No teacher: the same loop with hard labels alone."""
    return _train(pair, epochs, None)


def _source(pair: Pair) -> ArraySource:
    return ArraySource(pair.inputs, pair.labels, "classes", CLASSES)


def _train(pair: Pair, epochs: int, guide: Guide | None) -> Outcome:
    recipe = Recipe(
        epochs=epochs,
        batch=BATCH,
        optimiser="sgd",
        lr=LEARNING_RATE,
        momentum=MOMENTUM,
        schedule="constant",
        tau=TAU,
        soft_weight=0.0 if guide is None else SOFT_WEIGHT,
        seed=SEED,
    )
    ends: list[Moment] = []
    student = train_(
        pair.student(),
        Lesson(source=_source(pair), guide=guide),
        recipe,
        progress=lambda _done, _epochs, _loss: ends.append(Moment.now()),
    )
    # the first epoch's beginning is not told, set-up would count in: it is left out
    return Outcome([after - before for before, after in pairwise(ends)], student)
