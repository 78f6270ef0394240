"""Dynamic batching: questions that come at the same time are answered by one run of the model, each with its own rows.

- Threads are taken only while there is work. A question that finds one free is begun at once; what comes meanwhile is joined
  to the next run (`infer.serving.waiting`).
- A question whose deadline has passed is not run any more.
- Where the engine fails on several questions they are run one by one: the one that it fails on fails alone.
- `close` answers what was taken in, and takes nothing in any more.
"""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, final

import numpy as np

from edgestill.core.errors import DeadlineError, EngineError
from edgestill.infer.serving.waiting import Job, Waiting

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from edgestill.core.protocols import Clock
    from edgestill.infer.serving.served import Rows, Served
    from edgestill.infer.serving.waiting import Capacity

log: Final = logging.getLogger(__name__)


@final
class Batcher:
    """Runs a model for many askers.

    Args:
        served: the model.
        capacity: how much it takes on.
        clock: for deadlines, and for how long a question waits for others.
    """

    def __init__(self, served: Served, *, capacity: Capacity, clock: Clock) -> None:
        self._served = served
        self._clock = clock
        self._most_threads = capacity.threads
        self._threads = ThreadPoolExecutor(capacity.threads, thread_name_prefix=f"serve-{served.name}")
        self._waiting = Waiting(name=served.name, capacity=capacity)
        self._changed = threading.Condition()
        self._at_work = 0
        self._closed = False

    @property
    def pending(self) -> int:
        """Questions that are not answered yet."""
        with self._changed:
            return self._waiting.requests

    def submit(self, batch: NDArray[np.generic], *, deadline: float | None = None) -> Future[Rows]:
        """Asks about a batch `[N, ...]`, N at least 1, that the model can take; the future holds its N rows, or an error.

        Raises:
            DeadlineError: too many wait, or the model is about to end.
        """
        apart = deadline if self._served.heeds_deadlines else None
        job = Job(
            batch=batch,
            deadline=deadline,
            kind=(batch.dtype, batch.shape[1:], apart),
            came=self._clock.monotonic(),
            future=Future(),
        )
        with self._changed:
            if self._closed:
                raise DeadlineError(
                    f"the {self._served.name} is about to end",
                    where=self._served.name,
                    expected="a model that serves",
                    got="one that ends",
                    fix="ask again later",
                )
            self._waiting.add(job)
            self._changed.notify_all()
            if self._at_work < self._most_threads:
                self._at_work += 1
                self._threads.submit(self._work)
        return job.future

    def close(self) -> None:
        """Ends once what was taken in is answered; safe to call twice."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._threads.shutdown()
        self._served.close()

    def _work(self) -> None:
        while jobs := self._next():
            self._answer(jobs)

    def _next(self) -> list[Job]:
        """What is run next, after it has waited for others; none where nothing waits, and the thread is free."""
        with self._changed:
            while True:
                seconds = self._waiting.seconds_to_go(self._clock.monotonic())
                if seconds is None:
                    self._at_work -= 1
                    return []
                if seconds <= 0 or self._closed:
                    return self._waiting.take()
                self._changed.wait(seconds)

    def _answer(self, jobs: list[Job]) -> None:
        wanted = [job for job in jobs if job.future.set_running_or_notify_cancel()]
        late = [job for job in wanted if self._is_late(job)]
        self._release([job for job in jobs if job not in wanted or job in late])
        for job in late:
            job.future.set_exception(
                DeadlineError(
                    "the question waited too long",
                    where=self._served.name,
                    expected="an answer before the deadline",
                    got="a deadline that has passed",
                )
            )
        self._run([job for job in wanted if job not in late])

    def _is_late(self, job: Job) -> bool:
        return job.deadline is not None and job.deadline <= self._clock.monotonic()

    def _run(self, jobs: list[Job]) -> None:
        if not jobs:
            return
        batch = jobs[0].batch if len(jobs) == 1 else np.concatenate([job.batch for job in jobs])
        try:
            rows = self._served.run(batch, jobs[0].deadline if self._served.heeds_deadlines else None)
        except Exception as error:  # noqa: BLE001  # whatever it is, who asked must be told, and the thread must live
            self._failed(jobs, error)
            return
        self._release(jobs)
        start = 0
        for job in jobs:
            job.future.set_result(rows.cut(start, start + len(job.batch)))
            start += len(job.batch)

    def _failed(self, jobs: list[Job], error: Exception) -> None:
        if isinstance(error, EngineError) and len(jobs) > 1:
            log.warning(
                "%s fails on %d questions at once; they are asked one by one", self._served.name, len(jobs)
            )
            for job in jobs:
                self._run([job])
            return
        self._release(jobs)
        for job in jobs:
            job.future.set_exception(error)

    def _release(self, jobs: list[Job]) -> None:
        with self._changed:
            self._waiting.release(jobs)
