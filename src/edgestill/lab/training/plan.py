"""Which samples a run meets, in which order and view: a function of seed, epoch and rank, with no state to keep.

The batch is the whole one: with several processes each takes its part of it, so that a recipe means the same training on
one device and on eight.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from edgestill.lab.data.seeds import view_seeds
from edgestill.lab.data.source import Ask


@dataclass(frozen=True, slots=True)
class Share:
    """One process's part of one batch.

    Attributes:
        ask: what it asks for.
        weight: of its mean loss, such that the mean over processes is the mean over the whole batch.
        samples: of the whole batch.
    """

    ask: Ask
    weight: float
    samples: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """The order of one run.

    Attributes:
        samples: in the data.
        batch: samples a step, over all processes.
        seed: of the order and of the views.
        views: how many there are; 0 where every epoch has its own.
        augmented: whether there are views at all.
        rank: of this process.
        world: number of processes.
    """

    samples: int
    batch: int
    seed: int
    views: int = 0
    augmented: bool = False
    rank: int = 0
    world: int = 1

    @property
    def steps(self) -> int:
        """Batches an epoch."""
        return -(-self.samples // self.batch)

    def epoch(self, epoch: int) -> list[Share]:
        """The parts of this process, batch by batch."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.samples)
        view = epoch % self.views if self.views else epoch
        whole = [order[at : at + self.batch] for at in range(0, self.samples, self.batch)]
        return [self._share(one, view) for one in whole]

    def _share(self, whole: np.ndarray[tuple[int], np.dtype[np.int64]], view: int) -> Share:
        own = whole[self.rank :: self.world]
        weight = len(own) * self.world / len(whole)
        if len(own) == 0:  # every process must take every step; this one's counts nothing
            own = whole[:1]
        seeds = view_seeds(self.seed, view, own) if self.augmented else None
        return Share(Ask(own, seeds, view), weight, len(whole))

    def draw(self, step: int) -> int:
        """The seed of whatever the network itself draws in this step, such as dropout."""
        words = np.random.SeedSequence([self.seed, step, self.rank]).generate_state(2, np.uint32)
        return int(words[0]) << 32 | int(words[1])
