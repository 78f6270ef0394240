"""Heads on trial: each sample is put to them before they learn from it, and to what serves (prequential; Dawid 1984)."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, final

import numpy as np

from edgestill.core.errors import MessageError
from edgestill.learn.contest import Contest

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from edgestill.core.jsonio import Fields, JsonObject
    from edgestill.device.sums import Sample
    from edgestill.learn.statistics import Head


@final
class Trial:
    """A contest of heads with what serves.

    Samples in a row that have one class are a run: they are probably alike, and so count as one toss.

    Args:
        heads: how many there are.
        recent: newest scores that are kept, to calibrate the one that wins.
        alike: samples of a run, at most.
    """

    def __init__(self, heads: int, *, recent: int, alike: int = 1) -> None:
        self.contest = Contest.among(heads)
        self._audits = Contest.among(heads)
        self._heads: Sequence[Head] = ()
        self._alike = alike
        self._class = -1
        self._run: list[tuple[tuple[bool, ...], bool]] = []
        self._recent: deque[tuple[list[NDArray[np.float32]], NDArray[np.float32]]] = deque(maxlen=recent)

    def renew(self, heads: Sequence[Head]) -> None:
        """From now on these heads are asked, in the places of the former ones."""
        self._heads = heads

    def ask(self, sample: Sample) -> None:
        """Puts a sample to the heads that were made before it."""
        if not self._heads:
            return
        scores = [(sample.features @ head.weight + head.bias).astype(np.float32) for head in self._heads]
        right = int(sample.target.argmax())
        outcome = tuple(int(one.argmax()) == right for one in scores)
        if right != self._class:
            self._end_run()
        self._class = right
        self._run.append((outcome, sample.named == right))
        if len(self._run) >= self._alike:
            self._end_run()
        if sample.audit:
            self._audits = self._audits.after(outcome, serving=sample.named == right)
        self._recent.append((scores, sample.target))

    def _end_run(self) -> None:
        if self._run:
            self.contest, self._run = self.contest.after_run(self._run), []

    def winner(self, level: float, *, least: int) -> int | None:
        """Number of the head that is shown to be better, and is not behind on audits; None as long as none is.

        Args:
            level: as of `Contest.winner`.
            least: samples asked about since the start of this process, which its temperature can be fitted on.
        """
        best = self.contest.winner(level)
        if best is None or len(self._recent) < least:
            return None
        fair = self._audits.scores[best]
        return None if fair.losses > fair.wins else best

    def answers(self, number: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """What one head said of the newest samples before it learned from them: scores `[N, C]`, targets `[N, C]`."""
        scores, targets = zip(*self._recent, strict=True)
        return np.stack([one[number] for one in scores]), np.stack(targets)

    def as_json(self) -> JsonObject:
        """How it stands, to be kept over restarts; heads are made again, scores gathered again, and a run that has not ended is left out."""
        return {"contest": self.contest.as_json(), "audits": self._audits.as_json()}

    def recall(self, fields: Fields) -> None:
        """Takes up what `as_json` gave.

        Raises:
            MessageError: it is something else, or of another number of heads.
        """
        contest, audits = (Contest.from_fields(fields.inner(name)) for name in ("contest", "audits"))
        for one in (contest, audits):
            if len(one.scores) != len(self.contest.scores):
                raise MessageError(
                    "a contest of others",
                    where="contest",
                    expected=f"{len(self.contest.scores)} heads",
                    got=len(one.scores),
                )
        self.contest, self._audits = contest, audits
