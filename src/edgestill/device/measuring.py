"""A timing job on a device: it is brought, timed in idle hours, told, and gone.

    timing/state.json      the largest place seen, the last job that came to its end, and what is yet to be told
    timing/<sha256>.est    the archive of the job in hand

- A job is what the hub has signed and the publisher lists (`device.courier`): nothing that lies on the disk is timed until a poll of
  this run has named it, and what a poll names no more is cleared away.
- Its download is let go between two pieces where the job is withdrawn or expires, a release comes, or the agent ends.
- It waits until the device is quiet (`device.quiet`), and is let go when it no longer is; rounds that are done count on. It runs in a
  process of its own, bounded and at the lowest priority (`device.timing_child`), one model at a time. After a restart it begins anew.
- A model that takes its process down, or too long, is named, and ends the job: it would do the same again. One that the engine
  refuses is left out.
- What is to be told is written down, with the job's end, before the archive goes; it is told until the hub has taken it or will never
  take it. The same step has the same id.

`advance` does one thing and says how long to wait for the next; time and processes are arguments.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from statistics import median, quantiles
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from edgestill.core import bundle
from edgestill.core.errors import (
    BundleError,
    DeadlineError,
    EdgestillError,
    NotFoundError,
    PathError,
    RefusedError,
    SpentError,
    UnreachableError,
)
from edgestill.core.family import MAX_ARCHIVE_BYTES, SUFFIX, Family
from edgestill.core.files import read_plain
from edgestill.core.jsonio import Fields, JsonObject, canonical, parse_object
from edgestill.core.timing import MAX_BYTES, ModelTime, TimingReport
from edgestill.device.depot import STATE, Depot, work
from edgestill.device.slots import digest_of
from edgestill.device.stopwatch import Broken, LeftOut, Round, Stopwatch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.protocols import Clock
    from edgestill.core.timing import TimingState
    from edgestill.device.jobs import Job
    from edgestill.device.quiet import Quiet

log = logging.getLogger(__name__)

ROUNDS: Final = 5
LOOK: Final = 5.0
"""Seconds between two looks at whether the device is quiet."""
LONGEST_PAUSE: Final = 300.0
TELL_PAUSE: Final = 30.0
MOST_HINDERED: Final = 5
MOST_SECONDS: Final = 3600.0
"""Of timing, over all rounds of a job."""
_MAX_STATE: Final = 2 * MAX_BYTES
_PASSING: Final = (UnreachableError, DeadlineError, RefusedError, SpentError, NotFoundError)
_FINAL: Final = ("HTTP 400", "HTTP 404", "HTTP 409", "HTTP 413", "HTTP 422")


class Line(Protocol):
    """The way to the hub; `device.courier.Courier` is the real one."""

    def fetch_archive(self, job: Job, *, to: Path, goes_on: Callable[[], bool]) -> bool:
        """Brings the archive, whole and with its digest, or raises; False where it was let go, and what arrived is kept."""
        ...

    def tell_timing(self, report: TimingReport) -> None:
        """Hands over a report, or raises."""
        ...


class Watch(Protocol):
    """What times; `device.stopwatch.Stopwatch` is the real one."""

    def round_of(self, at: int, *, goes_on: Callable[[], bool]) -> Round | LeftOut | Broken | None:
        """Times a model once; see `Stopwatch.round_of`."""
        ...

    def end(self) -> None:
        """Ends it."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What outlives the agent.

    Attributes:
        seen: the largest place that was taken: a job that comes before it is a replay.
        ended: the place of the last job that came to its end, or 0.
        untold: reports that the hub has yet to take, the oldest first.
    """

    seen: int = 0
    ended: int = 0
    untold: tuple[TimingReport, ...] = ()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `state.json`; MessageError where it is none."""
        fields = Fields(parse_object(data, where=STATE, max_bytes=_MAX_STATE), STATE)
        untold = fields.objects("untold", at_most=4)
        return cls(
            seen=fields.integer("seen"),
            ended=fields.integer("ended"),
            untold=tuple(TimingReport.from_bytes(canonical(one.unknown(()))) for one in untold),
        )

    def to_bytes(self) -> bytes:
        """The bytes of `state.json`."""
        untold = [parse_object(one.to_bytes(), where=STATE, max_bytes=MAX_BYTES) for one in self.untold]
        told: JsonObject = {"seen": self.seen, "ended": self.ended, "untold": [*untold]}
        return canonical(told)


@dataclass(slots=True)
class _Progress:
    """How far a job is, in this run of the agent."""

    models: int
    rounds: dict[int, list[Round]]
    left_out: dict[int, str]
    turn: int = 0
    spent: float = 0.0

    def next_place(self) -> int | None:
        """The model whose turn it is; None where all rounds are done."""
        while self.turn < ROUNDS * self.models:
            if (at := self.turn % self.models) not in self.left_out:
                return at
            self.turn += 1
        return None


@final
class Measuring:
    """The jobs of one device.

    Args:
        folder: for the record and the archive; made by `open`.
        hardware_class: of this device.
        line: to the hub.
        quiet: whether it has nothing better to do.
        clock: of this machine.
        start: starts what times an archive.
        most_bytes: of an archive that this device would fetch; None for any.
    """

    def __init__(
        self,
        folder: Path,
        *,
        hardware_class: str,
        line: Line,
        quiet: Quiet,
        clock: Clock,
        start: Callable[[Path], Watch] = Stopwatch.start,
        most_bytes: int | None = None,
    ) -> None:
        most = MAX_ARCHIVE_BYTES if most_bytes is None else min(most_bytes, MAX_ARCHIVE_BYTES)
        self._depot = Depot(folder, suffix=SUFFIX, most_bytes=most)
        self._hardware_class = hardware_class
        self._line = line
        self._quiet = quiet
        self._clock = clock
        self._start = start
        self._record = Record()
        self._lock = threading.Lock()
        self._waking = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._offered: Job | None = None
        self._has_word = False
        self._job: Job | None = None
        self._progress: _Progress | None = None
        self._watch: Watch | None = None
        self._hindered = 0
        self._failures = 0
        self._tell_at = clock.monotonic()

    def open(self) -> Self:
        """Makes the folder and reads the record; a damaged one is begun anew, and what can be replayed then is what has not expired yet.

        Raises:
            PathError: the folder cannot be made, or the record cannot be read.
        """
        self._depot.prepare("timing jobs")
        if (path := self._depot.state).exists():
            data = read_plain(path, what="the record of timing jobs", at_most=_MAX_STATE)
            try:
                self._record = Record.from_bytes(data)
            except EdgestillError as error:
                log.warning("%s", error)
        return self

    def begin(self) -> Self:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="timing", daemon=True)
        self._thread.start()
        return self

    def stop(self, seconds: float) -> None:
        """Ends the thread, and what times."""
        self._ending.set()
        self._waking.set()
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def seen(self) -> int:
        """The largest place that was ever taken."""
        with self._lock:
            offered = 0 if self._offered is None else self._offered.place
            return max(self._record.seen, offered)

    def offer(self, job: Job | None) -> None:
        """A poll of the hub names this job, or none; from another thread."""
        with self._lock:
            self._offered, self._has_word = job, True
        self._waking.set()

    # the work, in one thread

    def advance(self) -> float | None:
        """Does the next thing.

        Returns:
            Seconds until there may be something to do again; None where that takes another word of the hub.
        """
        if not self._has_word:
            return self._deliver()
        self._take_up()
        told = self._deliver()
        job = self._job
        if job is None or job.place <= self._record.ended:
            self._clear()
            return told
        if self._clock.now() >= job.expires:
            self._let_go()
            return LONGEST_PAUSE
        return self._go_on(job)

    def _take_up(self) -> None:
        """Adopts what was offered; a place that is new is written down before anything comes of it."""
        with self._lock:
            offered = self._offered
        if offered is not None and offered.place > self._record.seen:
            self._write(replace(self._record, seen=offered.place))
        known = self._job
        if (known and (known.place, known.digest)) != (offered and (offered.place, offered.digest)):
            self._let_go()
            self._progress, self._hindered, self._failures = None, 0, 0
        self._job = offered

    def _go_on(self, job: Job) -> float:
        archive = self._depot.archive(job.digest)
        try:
            if self._watch is None and not archive.exists():  # or a release needed its room
                return self._bring(job)
            if self._progress is None:
                self._progress = self._looked_at(job, archive)
                return 0.0
            return self._time(job, archive, self._progress)
        except _PASSING as error:
            log.info("a timing job waits: %s", error)
            return self._pause()
        except (PathError, OSError) as error:
            return self._hinder(job, str(error))
        except EdgestillError as error:
            return self._refuse(job, str(error))

    def _bring(self, job: Job) -> float:
        if self._quiet.is_installing:
            return LOOK
        archive = self._depot.make_room(job)
        try:
            if not self._line.fetch_archive(job, to=archive, goes_on=lambda: self._may_fetch(job)):
                return LOOK
        except _PASSING:
            raise
        except (
            EdgestillError
        ) as error:  # other bytes than were listed: a mirror's fault, perhaps, or of a moment
            return self._hinder(job, str(error))
        self._failures = 0
        return 0.0

    def _looked_at(self, job: Job, archive: Path) -> _Progress:
        """Checks an archive once more where it lies: it may be of an earlier run of the agent.

        Raises:
            BundleError: it is not the one that was listed, or not for this device.
        """
        if digest_of(archive) != job.digest:
            archive.unlink()
            raise PathError(
                "the archive is not the one that was listed",
                where=archive,
                expected=job.digest,
                got="other bytes",
                fix="nothing: it is fetched again",
            )
        head = Family.open(archive).head
        if (head.target, head.hardware_class) != (job.target, self._hardware_class):
            raise BundleError(
                "models under another name, or for another hardware class",
                where=archive,
                expected=f"{job.target}, for {self._hardware_class}",
                got=f"{head.target}, for {head.hardware_class}",
                fix="publish them under their own name, and assign them to devices of their class",
            )
        self._note(job, "downloaded")
        return _Progress(len(head.models), {}, {})

    def _time(self, job: Job, archive: Path, progress: _Progress) -> float:
        """One round of one model, if the device is quiet."""
        at = progress.next_place()
        if at is None:
            self._finish(job, progress)
            return 0.0
        if self._watch is None:
            if not self._quiet.may_begin:
                return LOOK
            self._watch, self._quiet.is_timing = self._start(archive), True
        began = self._clock.monotonic()
        found = self._watch.round_of(at, goes_on=lambda: self._may_go_on(job))
        progress.spent += self._clock.monotonic() - began
        match found:
            case None:
                self._let_go()
                return LOOK
            case Broken(reason):
                return self._refuse(job, f"{at}.onnx cannot be timed here: {reason}")
            case LeftOut(reason):
                progress.left_out[at] = reason
            case Round():
                progress.rounds.setdefault(at, []).append(found)
        progress.turn += 1
        if progress.spent > MOST_SECONDS:
            return self._refuse(job, f"its models took longer than {MOST_SECONDS:g} s")
        return 0.0

    def _may_go_on(self, job: Job) -> bool:
        """Whether nothing has come in between: a question, an installation, another word of the hub, the end."""
        return self._is_wanted(job) and self._quiet.is_quiet

    def _may_fetch(self, job: Job) -> bool:
        """Whether it is worth fetching still; questions do not matter to that."""
        return self._is_wanted(job) and self._clock.now() < job.expires

    def _is_wanted(self, job: Job) -> bool:
        with self._lock:
            same = self._offered is not None and self._offered.place == job.place
        return same and not self._quiet.is_installing and not self._ending.is_set()

    # how it ends

    def _finish(self, job: Job, progress: _Progress) -> None:
        left_out = "; ".join(
            f"{at}.onnx was left out: {why}" for at, why in sorted(progress.left_out.items())
        )
        rounds = {at: one for at, one in progress.rounds.items() if at not in progress.left_out}
        if rounds:
            models = tuple(_time_of(at, one) for at, one in sorted(rounds.items()))
            self._end(job, "measured", left_out, models)
        else:
            self._end(job, "refused", f"no model runs here: {left_out}")

    def _refuse(self, job: Job, reason: str) -> float:
        log.warning("a timing job is refused: %s", reason)
        self._end(job, "refused", reason)
        return 0.0

    def _end(self, job: Job, state: TimingState, reason: str, models: tuple[ModelTime, ...] = ()) -> None:
        """Writes the end down, and then clears away."""
        self._let_go()
        self._note(job, state, reason, models, ended=job.place)
        self._progress = None
        self._clear()

    def _hinder(self, job: Job, reason: str) -> float:
        self._let_go()
        self._progress = None
        self._hindered += 1
        log.warning("a timing job is hindered: %s", reason)
        return self._refuse(job, reason) if self._hindered > MOST_HINDERED else self._pause()

    def _pause(self) -> float:
        self._failures += 1
        return min(2.0**self._failures, LONGEST_PAUSE)

    # what is told

    def _note(
        self,
        job: Job,
        state: TimingState,
        reason: str = "",
        models: tuple[ModelTime, ...] = (),
        *,
        ended: int | None = None,
    ) -> None:
        report = TimingReport(
            counter=job.counter, archive=job.digest, state=state, reason=reason, models=models
        )
        before = self._record
        waits = tuple(one for one in before.untold if one.id != report.id)[-2:]
        end = before.ended if ended is None else max(ended, before.ended)
        self._write(replace(before, ended=end, untold=(*waits, report)))

    def _deliver(self) -> float | None:
        """Tells what waits; seconds until the next try where the hub was not reached."""
        if (left := self._tell_at - self._clock.monotonic()) > 0 and self._record.untold:
            return left
        while self._record.untold:
            report = self._record.untold[0]
            try:
                self._line.tell_timing(report)
            except (RefusedError, NotFoundError) as error:
                if not str(error.got).startswith(_FINAL):
                    return self._later(error)
                log.warning("the hub refuses a report of a timing job: %s", error)
            except EdgestillError as error:
                return self._later(error)
            self._write(replace(self._record, untold=self._record.untold[1:]))
        return None

    def _later(self, error: EdgestillError) -> float:
        log.info("what came of a timing job cannot be told now: %s", error)
        self._tell_at = self._clock.monotonic() + TELL_PAUSE
        return TELL_PAUSE

    # the disk, and the process

    def _write(self, record: Record) -> None:
        if record != self._record:
            bundle.replace(self._depot.state, record.to_bytes())
            with self._lock:
                self._record = record

    def _clear(self) -> None:
        self._let_go()
        self._depot.clear()

    def _let_go(self) -> None:
        """Ends the process that times, if there is one."""
        if self._watch is not None:
            self._watch.end()
        self._watch, self._quiet.is_timing = None, False

    def _run(self) -> None:
        work(self.advance, waking=self._waking, ending=self._ending, failed=_told_of)
        self._let_go()


def _told_of(error: Exception) -> float:
    """Seconds after which the work that failed so is tried again."""
    if isinstance(error, EdgestillError | OSError):
        log.warning("%s", error)
        return TELL_PAUSE
    log.error("a bug", exc_info=error)
    return LONGEST_PAUSE


def _time_of(at: int, rounds: list[Round]) -> ModelTime:
    """The median round of a model, and the quartiles of its 95th percentile (`infer.timing` reports the same)."""
    low, p95, high = quantiles([one.p95 for one in rounds], n=4, method="inclusive")
    return ModelTime(at=at, p50=median(one.p50 for one in rounds), p95=p95, low=low, high=high)
