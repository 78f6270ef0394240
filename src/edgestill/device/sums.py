"""The samples a device has learned from: the newest one by one, the older ones only as sums over windows of time.

- Nothing of a sample is kept for long: its features and target go into a sum as soon as it is one of `young` no more.
- Forgetting drops whole windows, so the order of samples never matters.
- When the world has changed, all sums go, and those of the newest samples that are older than the change.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, final

import numpy as np

from edgestill.core.errors import EdgestillError
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from edgestill.learn.encodings import Dtype


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Sample:
    """An input for which a label is known.

    Attributes:
        features: `[D]`.
        target: `[C]`: the teacher's probabilities, or a label as one-hot.
        weight: inputs it stands for, positive.
        named: class that what served had named.
        audit: whether the coin asked, not the policy.
        seen: number of the input, counted from 1.
        window: of time, that it belongs to.
    """

    features: NDArray[np.floating]
    target: NDArray[np.float32]
    weight: float
    named: int
    audit: bool
    seen: int
    window: int


@final
class Sums:
    """Samples of one backbone.

    Args:
        like: statistics of the backbone, the width and the classes that samples must have.
        young: newest samples that are kept one by one.
        windows: that are remembered.
    """

    def __init__(self, like: Statistics, *, young: int, windows: int) -> None:
        self._like = like
        self._most = young
        self._remembered = windows
        self._young: list[Sample] = []
        self._windows: dict[int, Statistics] = {}
        self._n = 0

    def add(self, sample: Sample) -> None:
        """One sample more."""
        self._young.append(sample)
        if len(self._young) > self._most:
            aged, self._young = self._young[: -self._most // 2], self._young[-self._most // 2 :]
            self._windows = self._with(aged)
            self._n += len(aged)

    def older_than(self, gap: int) -> int:
        """How many samples there are without the newest `gap`."""
        return self._n + max(0, len(self._young) - gap)

    def total(self, *, gap: int = 0) -> Statistics:
        """The sum of all but the newest `gap`, or of fewer where the others are sums already."""
        total = self._empty(max(self._windows, default=0))
        for one in self._with(self._young[: max(0, len(self._young) - gap)]).values():
            total = total + one
        return total

    def of(self, window: int) -> Statistics:
        """The sum of one window."""
        return self._with(self._young).get(window) or self._empty(window)

    def before(self, window: int, *, after: int) -> Statistics | None:
        """The sum of the oldest window between the two, both left out; None where there is none."""
        sums = self._with(self._young)
        over = [one for one in sums if after < one < window]
        return sums[min(over)] if over else None

    def forget(self, now: int) -> None:
        """Drops the windows that are too old at the window `now`."""
        oldest = now - self._remembered
        self._windows = {window: one for window, one in self._windows.items() if window > oldest}
        self._young = [one for one in self._young if one.window > oldest]
        self._n = sum(one.n for one in self._windows.values())

    def forget_after(self, now: int) -> None:
        """Drops the windows that are later than the window `now`."""
        self._windows = {window: one for window, one in self._windows.items() if window <= now}
        self._young = [one for one in self._young if one.window <= now]
        self._n = sum(one.n for one in self._windows.values())

    def begin_anew(self, keep: Callable[[list[Sample]], list[Sample]]) -> None:
        """Drops everything but what `keep` chooses of the newest samples."""
        self._windows, self._young, self._n = {}, keep(self._young), 0

    def to_files(self, dtype: Dtype = "float32") -> list[bytes]:
        """One message a window; EvidenceError where one is too large for the element type."""
        return [one.to_bytes(dtype) for one in self._with(self._young).values()]

    def recall(self, files: Sequence[bytes]) -> None:
        """Takes up what `to_files` gave; what belongs to another backbone, or is damaged, is left."""
        for data in files:
            try:
                one = Statistics.from_bytes(data, backbone=self._like.backbone)
                self._windows[one.window] = one + self._empty(one.window)  # refuses another width
            except EdgestillError:
                continue
        self._n = sum(one.n for one in self._windows.values())

    def _with(self, samples: Sequence[Sample]) -> dict[int, Statistics]:
        """The windows with these samples added."""
        sums = dict(self._windows)
        for window in sorted({one.window for one in samples}):
            mine = [one for one in samples if one.window == window]
            sums[window] = (sums.get(window) or self._empty(window)).add(
                np.stack([one.features for one in mine]),
                np.stack([one.target for one in mine]),
                np.array([one.weight for one in mine]),
            )
        return sums

    def _empty(self, window: int) -> Statistics:
        like = self._like
        return Statistics.empty(
            backbone=like.backbone, window=window, classes=like.classes, features=like.features
        )
