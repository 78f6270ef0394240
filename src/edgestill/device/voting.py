"""A device's turn at voting: the samples are brought, answered in idle hours, and gone; the ballot waits in the outbox.

    votes/state.json       the largest place seen, and which round was answered with which bundles
    votes/<sha256>.esp     the proxy set in hand

- A turn is what the hub has signed and the publisher lists (`device.courier`): nothing that lies on the disk is answered until a poll of this
  run has named it, and what a poll names no more is cleared away.
- The samples are fetched while no release is installed, and answered when the device is quiet (`device.quiet`), by a process of its own at the lowest
  priority (`device.voting_child`). A question in between ends it, and it begins anew in the next quiet minute.
- It votes once in a round with what it serves, and again when another bundle serves, `MOST_BUNDLES` times at most: the newest ballot counts.
- The ballot is in the outbox before it is written down that there is one. A kill in between costs the work, and a second ballot replaces the first.
- What a disk or a crowded machine hinders is tried again as long as the round is open, after an hour at the latest; a process that breaks so many times is given up.
- A device that has too few samples of its own looks again later; one that must not vote, or cannot, says so in its log and to nobody else.

`advance` does one thing and says how long to wait for the next; time and processes are arguments.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from edgestill.core import bundle as bundles
from edgestill.core.errors import (
    BundleError,
    DeadlineError,
    EdgestillError,
    EngineError,
    NotFoundError,
    PathError,
    RefusedError,
    SpentError,
    UnreachableError,
)
from edgestill.core.files import read_plain
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.proxyset import MAX_ARCHIVE_BYTES, SUFFIX, ProxySet
from edgestill.device.depot import STATE, Depot, work
from edgestill.device.slots import digest_of
from edgestill.device.voter import Broken, NotYet, Refused, Voted

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock
    from edgestill.device.jobs import Job
    from edgestill.device.outbox import Outbox
    from edgestill.device.quiet import Quiet
    from edgestill.device.voter import Answer

log = logging.getLogger(__name__)

LOOK: Final = 5.0
"""Seconds between two looks at whether the device is quiet."""
GLANCE: Final = 0.25
LATER: Final = 3600.0
"""Seconds after which a device with too few samples looks again."""
LONGEST_PAUSE: Final = 300.0
PAUSE: Final = 30.0
MOST_HINDERED: Final = 5
MOST_SECONDS: Final = 3600.0
"""That answering one set may take."""
MOST_BUNDLES: Final = 4
_MAX_STATE: Final = 16_384
_PASSING: Final = (UnreachableError, DeadlineError, RefusedError, SpentError, NotFoundError)


class Line(Protocol):
    """The way to the hub; `device.courier.Courier` is the real one."""

    def fetch_archive(self, job: Job, *, to: Path, goes_on: Callable[[], bool]) -> bool:
        """Brings the archive, whole and with its digest, or raises; False where it was let go, and what arrived is kept."""
        ...


class Process(Protocol):
    """What answers; `device.voter.Voter` is the real one."""

    def wait(self, seconds: float) -> bool:
        """Whether it answered or ended within so many seconds."""
        ...

    def stop(self) -> None:
        """Ends it."""
        ...

    @property
    def answer(self) -> Answer:
        """What it said, once it was stopped."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """What outlives the agent.

    Attributes:
        seen: the largest place that was taken: a turn that comes before it is a replay.
        answered: the place of the round that was answered last, or 0.
        bundles: with which it was, by the names of their archives: voted, or found that it does not vote.
    """

    seen: int = 0
    answered: int = 0
    bundles: tuple[str, ...] = ()

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads `state.json`; MessageError where it is none."""
        fields = Fields(parse_object(data, where=STATE, max_bytes=_MAX_STATE), STATE)
        named = fields.items("bundles", at_most=MOST_BUNDLES)
        return cls(
            seen=fields.integer("seen"),
            answered=fields.integer("answered"),
            bundles=tuple(str(one)[:200] for one in named),
        )

    def to_bytes(self) -> bytes:
        """The bytes of `state.json`."""
        told: JsonObject = {
            "seen": self.seen,
            "answered": self.answered,
            "bundles": [*self.bundles],
        }
        return canonical(told)

    def has_answered(self, place: int, bundle: str) -> bool:
        """Whether there is nothing more to say in this round with this bundle."""
        return self.answered == place and (bundle in self.bundles or len(self.bundles) >= MOST_BUNDLES)

    def with_answer(self, place: int, bundle: str) -> Record:
        """It has answered with this bundle now."""
        before = self.bundles if self.answered == place else ()
        return replace(self, answered=place, bundles=(*before, bundle))


@final
class Voting:
    """The turns of one device.

    Args:
        folder: for the record and the samples; made by `open`.
        line: to the hub.
        outbox: keeps the ballot until the hub has it.
        quiet: whether the device has nothing better to do.
        clock: of this machine.
        serving: the archive of the bundle that serves and is confirmed; None while there is none.
        start: starts what answers: archive of the bundle, archive of the samples, and its digest.
        most_bytes: of an archive that this device would fetch; None for any.
    """

    def __init__(
        self,
        folder: Path,
        *,
        line: Line,
        outbox: Outbox,
        quiet: Quiet,
        clock: Clock,
        serving: Callable[[], Path | None],
        start: Callable[[Path, Path, Digest], Process],
        most_bytes: int | None = None,
    ) -> None:
        most = MAX_ARCHIVE_BYTES if most_bytes is None else min(most_bytes, MAX_ARCHIVE_BYTES)
        self._depot = Depot(folder, suffix=SUFFIX, most_bytes=most)
        self._line = line
        self._outbox = outbox
        self._quiet = quiet
        self._clock = clock
        self._serving = serving
        self._start = start
        self._record = Record()
        self._lock = threading.Lock()
        self._waking = threading.Event()
        self._ending = threading.Event()
        self._thread: threading.Thread | None = None
        self._offered: Job | None = None
        self._has_word = False
        self._job: Job | None = None
        self._is_checked = False
        self._look_at = clock.monotonic()
        self._hindered = 0
        self._failures = 0

    def open(self) -> Self:
        """Makes the folder and reads the record; a damaged one is begun anew, and what can be replayed then is what has not expired yet.

        Raises:
            PathError: the folder cannot be made, or the record cannot be read.
        """
        self._depot.prepare("voting rounds")
        if (path := self._depot.state).exists():
            data = read_plain(path, what="the record of voting rounds", at_most=_MAX_STATE)
            try:
                self._record = Record.from_bytes(data)
            except EdgestillError as error:
                log.warning("%s", error)
        return self

    def begin(self) -> Self:
        """Starts the thread."""
        self._thread = threading.Thread(target=self._run, name="voting", daemon=True)
        self._thread.start()
        return self

    def stop(self, seconds: float) -> None:
        """Ends the thread, and what answers."""
        self._ending.set()
        self._waking.set()
        if self._thread is not None:
            self._thread.join(seconds)

    @property
    def seen(self) -> int:
        """The largest place that was ever taken."""
        with self._lock:
            return max(self._record.seen, 0 if self._offered is None else self._offered.place)

    def offer(self, job: Job | None) -> None:
        """A poll of the hub names this turn, or none; from another thread."""
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
            return None
        self._take_up()
        job = self._job
        if job is None:
            self._depot.clear()
            return None
        if self._clock.now() >= job.expires:
            return LONGEST_PAUSE
        serving = self._serving()
        if serving is None:
            return LOOK
        if self._record.has_answered(job.place, serving.name):
            self._depot.clear()
            return LONGEST_PAUSE
        if (left := self._look_at - self._clock.monotonic()) > 0:
            return left
        return self._go_on(job, serving)

    def _take_up(self) -> None:
        """Adopts what was offered; a place that is new is written down before anything comes of it."""
        with self._lock:
            offered = self._offered
        if offered is not None and offered.place > self._record.seen:
            self._write(replace(self._record, seen=offered.place))
        known = self._job
        if (known and (known.place, known.digest)) != (offered and (offered.place, offered.digest)):
            self._is_checked, self._hindered, self._failures = False, 0, 0
            self._look_at = self._clock.monotonic()
        self._job = offered

    def _go_on(self, job: Job, serving: Path) -> float:
        archive = self._depot.archive(job.digest)
        try:
            if not archive.exists():  # or a release needed its room
                return self._bring(job, serving)
            if not self._is_checked:
                self._check(job, archive)
                return 0.0
            return self._answer(job, serving, archive)
        except _PASSING as error:
            log.info("a vote waits: %s", error)
            return self._pause()
        except (PathError, EngineError, OSError) as error:  # a disk, or a machine without room for a process
            log.warning("a vote is hindered: %s", error)
            return self._wait(self._longer(LATER))
        except EdgestillError as error:
            return self._refuse(job, serving, str(error))

    def _bring(self, job: Job, serving: Path) -> float:
        if self._quiet.is_installing:
            return LOOK
        archive = self._depot.make_room(job)
        self._is_checked = False
        try:
            if not self._line.fetch_archive(job, to=archive, goes_on=lambda: self._is_wanted(job)):
                return LOOK
        except (*_PASSING, PathError):
            raise
        except (
            EdgestillError
        ) as error:  # other bytes than were listed: a mirror's fault, perhaps, or of a moment
            return self._hinder(job, serving, f"samples that cannot be brought: {error}")
        self._failures = 0
        return 0.0

    def _check(self, job: Job, archive: Path) -> None:
        """Looks at an archive once more where it lies: it may be of an earlier run of the agent.

        Raises:
            PathError: it is not the one that was listed. BundleError: it is of another name.
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
        head = ProxySet.open(archive).head
        if head.target != job.target:
            raise BundleError(
                "samples under another name",
                where=archive,
                expected=job.target,
                got=head.target,
                fix="publish them under their own name",
            )
        self._is_checked = True

    def _answer(self, job: Job, serving: Path, archive: Path) -> float:
        """Lets the process answer, if the device is quiet and stays so."""
        if not self._quiet.may_begin:
            return LOOK
        found = self._answered(job, serving, archive)
        match found:
            case None:
                return LOOK
            case Voted(ballot, votes):
                self._outbox.put_ballot(job.counter, ballot, at=self._clock.now())
                self._write(self._record.with_answer(job.place, serving.name))
                log.info("votes on %d samples of %s", votes, job.target)
                return 0.0
            case NotYet(reason):
                log.info("does not vote on %s yet: %s", job.target, reason)
                return self._wait(LATER)
            case Refused(reason):
                return self._refuse(job, serving, reason)
            case Broken(reason):
                return self._hinder(job, serving, reason)

    def _answered(self, job: Job, serving: Path, archive: Path) -> Answer | None:
        """What the process said; None where something came in between."""
        self._quiet.is_voting = True
        try:
            process, began = self._start(serving, archive, job.digest), self._clock.monotonic()
            late = disturbed = False
            try:
                while not (process.wait(GLANCE) or late or disturbed):
                    late = self._clock.monotonic() - began > MOST_SECONDS
                    disturbed = not (self._is_wanted(job) and self._quiet.is_quiet)
            finally:
                process.stop()
        finally:
            self._quiet.is_voting = False
        if disturbed:
            return None
        return Refused(f"it took longer than {MOST_SECONDS:g} s") if late else process.answer

    def _is_wanted(self, job: Job) -> bool:
        with self._lock:
            same = self._offered is not None and self._offered.place == job.place
        in_time = self._clock.now() < job.expires
        return same and in_time and not self._quiet.is_installing and not self._ending.is_set()

    # how it ends

    def _refuse(self, job: Job, serving: Path, reason: str) -> float:
        log.warning("does not vote on %s: %s", job.target, reason)
        self._write(self._record.with_answer(job.place, serving.name))
        return 0.0

    def _hinder(self, job: Job, serving: Path, reason: str) -> float:
        self._hindered += 1
        log.warning("a vote is hindered: %s", reason)
        return self._refuse(job, serving, reason) if self._hindered > MOST_HINDERED else self._pause()

    def _pause(self) -> float:
        return self._wait(self._longer(LONGEST_PAUSE))

    def _longer(self, most: float) -> float:
        """A pause that doubles with each failure."""
        self._failures += 1
        return min(2.0 ** min(self._failures, 30), most)

    def _wait(self, seconds: float) -> float:
        """Polls that name the same turn do not wake it before."""
        self._look_at = self._clock.monotonic() + seconds
        return seconds

    def _write(self, record: Record) -> None:
        if record != self._record:
            bundles.replace(self._depot.state, record.to_bytes())
            with self._lock:
                self._record = record

    def _run(self) -> None:
        work(self.advance, waking=self._waking, ending=self._ending, failed=_told_of)


def _told_of(error: Exception) -> float:
    """Seconds after which the work that failed so is tried again."""
    if isinstance(error, EdgestillError | OSError):
        log.warning("%s", error)
        return PAUSE
    log.error("a bug", exc_info=error)
    return LONGEST_PAUSE
