"""The questions that wait for a model, and which of them are answered together next: pure, but for being changed in place.

- Questions of one kind (datatype, shape of an input) are joined, in the order they came, up to `most_rows` rows. One that is
  larger by itself runs alone.
- The oldest question is never passed over: it is always part of the next batch.
- Requests and rows that are not answered yet are bounded. What comes over the bound is refused at once, because who asks
  has a student that answers meanwhile.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, final

from edgestill.core.errors import DeadlineError, SettingError

if TYPE_CHECKING:
    from collections.abc import Hashable
    from concurrent.futures import Future

    import numpy as np
    from numpy.typing import NDArray

    from edgestill.infer.serving.served import Rows


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """How much a served model takes on.

    Attributes:
        most_rows: that are answered together; 1 joins nothing.
        linger: seconds that a question waits for others to join it; 0 joins only what waits already.
        threads: that run the model.
        most_asked: inputs in one question.
        most_bytes: of the inputs of one question that came as payloads, decoded.
        most_waiting: questions that are not answered yet.
        most_waiting_rows: inputs in all of these; a single question is taken however large it is.
        longest: seconds that a question may ask for as its deadline.
    """

    most_rows: int = 64
    linger: float = 0.0
    threads: int = 1
    most_asked: int = 1024
    most_bytes: int = 2**25
    most_waiting: int = 64
    most_waiting_rows: int = 8192
    longest: float = 600.0

    def __post_init__(self) -> None:
        counts = ("most_rows", "threads", "most_asked", "most_bytes", "most_waiting", "most_waiting_rows")
        wrong = [name for name in counts if getattr(self, name) < 1]
        wrong += ["linger"] * (not 0 <= self.linger <= 1) + ["longest"] * (not 0 < self.longest <= 3600)
        if wrong:
            raise SettingError(
                "a capacity is out of range",
                where=wrong[0],
                expected="at least 1; linger from 0 to 1 s, longest up to 3600 s",
                got=getattr(self, wrong[0]),
                fix="leave it out for the default",
            )


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """One question.

    Attributes:
        batch: `[N, ...]`.
        deadline: monotonic time after which nobody wants the answer; None waits.
        kind: what it has in common with those that it may be joined to.
        came: monotonic time.
        future: of its rows.
    """

    batch: NDArray[np.generic]
    deadline: float | None
    kind: Hashable
    came: float
    future: Future[Rows]


@final
@dataclass(slots=True, kw_only=True)
class Waiting:
    """The questions that wait.

    Attributes:
        name: of the model, for refusals.
        capacity: the bounds.
        requests: not answered yet, be they waiting or under way.
        rows: inputs in these.
    """

    name: str
    capacity: Capacity
    requests: int = 0
    rows: int = 0
    _jobs: deque[Job] = field(default_factory=deque)

    def add(self, job: Job) -> None:
        """Takes a question in.

        Raises:
            DeadlineError: there are too many.
        """
        count, bounds = len(job.batch), self.capacity
        full = self.requests >= bounds.most_waiting
        if full or (self.requests and self.rows + count > bounds.most_waiting_rows):
            raise DeadlineError(
                f"the {self.name} is busy",
                expected="fewer requests at once",
                fix="ask again later",
                where=self.name,
                got="too many",
            )
        self.requests += 1
        self.rows += count
        self._jobs.append(job)

    def seconds_to_go(self, now: float) -> float | None:
        """Until the next batch is due: 0 where it is, None where nothing waits."""
        if not self._jobs:
            return None
        if sum(len(job.batch) for job in self._joinable()) >= self.capacity.most_rows:
            return 0.0
        return max(0.0, self._jobs[0].came + self.capacity.linger - now)

    def take(self) -> list[Job]:
        """The questions that are answered together next; none where nothing waits."""
        taken: list[Job] = []
        rows = 0
        for job in self._joinable():
            if taken and rows + len(job.batch) > self.capacity.most_rows:
                break
            taken.append(job)
            rows += len(job.batch)
        if len(taken) == len(self._jobs):
            self._jobs.clear()
        else:
            gone = set(map(id, taken))
            self._jobs = deque(job for job in self._jobs if id(job) not in gone)
        return taken

    def release(self, jobs: list[Job]) -> None:
        """These are answered, and leave room for others."""
        self.requests -= len(jobs)
        self.rows -= sum(len(job.batch) for job in jobs)

    def _joinable(self) -> list[Job]:
        """Of the oldest one's kind, in order."""
        return [job for job in self._jobs if job.kind == self._jobs[0].kind]
