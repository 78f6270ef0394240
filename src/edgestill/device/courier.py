"""The device's side of its hub: polls, brings bundles, delivers reports. It decides nothing and believes nothing.

- An assignment counts when the hub's key (named by the publisher's root) signed it for this device, its counter does
  not go back, it has not expired, and the publisher, or a role that it delegates to, lists its target *now*: the lists are refreshed first.
- The ETag is kept only once all that has succeeded; so a refusal is looked at again.
- A patch is a hint: it may be missing, useless, hostile, or not to be had in time. What comes out must have the digest that was listed; if it
  does not, the whole file is fetched. What does not fit into the data budget of today waits once (`device.spending`). Mirrors nearby are asked for either before the hub, and their failures are none of the device's.
- What is to be timed, and what is to be voted on, comes beside the assignment, signed and counted by itself (`device.jobs`). It counts where the publisher
  itself lists it, whatever roles say; none of the three holds another up.
- A certificate is renewed when it is time (`device.papers`), before a poll. What goes wrong with that is tried again after a while, and
  holds no poll up: the old certificate, or the credential, still opens. Likewise a word about the fleet's authority (`device.word`).
- Reports are forgotten when the hub has accepted them. A batch that it refuses is sent one by one, and a single
  report that it refuses is dropped, so that one bad report cannot block the rest. So it is with sums and ballots.
"""

from __future__ import annotations

import errno
import logging
from typing import TYPE_CHECKING, Final, TypedDict, final

from edgestill.core.errors import (
    DeadlineError,
    EdgestillError,
    MessageError,
    NotFoundError,
    PatchError,
    PathError,
    RefusedError,
    SpentError,
    UnreachableError,
)
from edgestill.device.events import Assigned
from edgestill.device.jobs import Errand, Job
from edgestill.device.mirrors import apart
from edgestill.device.spending import require_soon
from edgestill.device.state import Target
from edgestill.link.download import download, part_of
from edgestill.link.exchange import TOO_LONG
from edgestill.trust import assignment as assignments
from edgestill.trust.client import target_path

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.core.protocols import Clock, Transport
    from edgestill.core.release import Measurement, Turn
    from edgestill.core.timing import TimingReport
    from edgestill.core.wire import Poll, Report
    from edgestill.device.home import Identity
    from edgestill.device.jobs import Jobs
    from edgestill.device.mirrors import Nearby
    from edgestill.device.outbox import Outbox
    from edgestill.device.papers import Papers
    from edgestill.device.word import Word
    from edgestill.link.control import ControlClient
    from edgestill.link.ledger import Ledger
    from edgestill.trust.assignment import AssignmentKeys
    from edgestill.trust.client import TrustedClient

log = logging.getLogger(__name__)

POLL_WAIT: Final = 20.0
TIMEOUT: Final = 20.0
MINIMUM_SPEED: Final = 512.0
MAX_PATCH_BYTES: Final = 64_000_000
RENEWAL_PAUSE: Final = 600.0
"""Seconds between two tries to get a certificate."""


class _Judged(TypedDict):
    keys: AssignmentKeys
    device: str
    seen: int
    now: float


@final
class Courier:
    """Speaks with one hub for one device.

    Args:
        identity: of the device.
        control: the hub's control plane.
        trusted: the publisher's list.
        transport: for downloads.
        clock: of this machine.
        wait: seconds for which the hub may hold back a poll's answer.
        nearby: mirrors; None asks the hub only.
        papers: of the device; None asks for no certificates.
        ledger: the device's data budget; None is none. What `control` carries is counted by its transport.
        word: about the fleet's authority; None hears none.
        jobs: takes what is to be timed; None times nothing.
        turns: takes what is to be voted on; None does not vote.
    """

    def __init__(
        self,
        identity: Identity,
        *,
        control: ControlClient,
        trusted: TrustedClient,
        transport: Transport,
        clock: Clock,
        wait: float = POLL_WAIT,
        nearby: Nearby | None = None,
        papers: Papers | None = None,
        ledger: Ledger | None = None,
        word: Word | None = None,
        jobs: Jobs | None = None,
        turns: Jobs | None = None,
    ) -> None:
        self._identity = identity
        self._control = control
        self._trusted = trusted
        self._transport = transport
        self._clock = clock
        self._wait = wait
        self._nearby = nearby
        self._papers = papers
        self._renew_at = clock.monotonic()
        self._ledger = ledger
        self._word = word
        self._said = ""
        self._timing = None if jobs is None else Errand(jobs, self._job, clock=clock, what="a timing job")
        self._voting = (
            None if turns is None else Errand(turns, self._turn, clock=clock, what="a turn at voting")
        )
        self._errands = tuple(one for one in (self._timing, self._voting) if one is not None)
        self._etag: str | None = None
        self._interval = identity.interval

    def poll(self, *, seen: int) -> tuple[Assigned | None, float]:
        """What is assigned, if that changed, and the seconds until the next poll.

        Raises:
            EdgestillError: no answer, or one that must not be trusted.
        """
        self._renew()
        poll, new_etag = self._polled(self._etag)
        self._hear(poll)
        if poll is None:
            for one in self._errands:
                one.hear_again(refresh=self._trusted.refresh)
            return None, self._interval
        self._interval = poll.interval
        assigned, refresh = None, self._trusted.refresh
        try:
            if poll.assignment is not None:
                refresh()
                refresh = _do_nothing
                assigned = self._assigned(poll.assignment, seen)
        finally:  # an assignment that is refused hides neither a job nor its end
            for errand, envelope in ((self._timing, poll.measure), (self._voting, poll.vote)):
                if errand is not None:
                    errand.hear(envelope, refresh=refresh)
        self._etag = new_etag or None
        return assigned, poll.interval

    def _assigned(self, envelope: JsonObject, seen: int) -> Assigned:
        found = assignments.verify(
            envelope,
            keys=self._trusted.assignment_keys,
            device=self._identity.device,
            seen=seen,
            now=self._trusted.now(),
        )
        listing = self._trusted.listing(found.target)
        target = Target(name=found.target, digest=listing.info.digest, size=listing.info.size)
        return Assigned(found.place, target, listing.role)

    def _polled(self, etag: str | None) -> tuple[Poll | None, str]:
        believes = "" if self._papers is None else self._papers.believes()
        told = "" if believes == self._said else believes  # once: an idle device's polls stay short
        try:
            polled = self._control.poll(etag=etag, wait=self._wait if etag else 0.0, believes=told)
        except UnreachableError as error:
            if self._word is not None and self._word.after(error):
                self._renew_at = self._clock.monotonic()
            raise
        self._said = believes
        return polled

    def _hear(self, poll: Poll | None) -> None:
        """Fetches what the hub says of the fleet's authority, if it says something new."""
        if self._word is None:
            return
        if poll is not None:
            self._word.told(poll.authorities)
        if self._word.hear(self._transport):
            self._renew_at = self._clock.monotonic()

    def _job(self, envelope: JsonObject, seen: int) -> Job:
        return self._listed(assignments.verify_measurement(envelope, **self._judged_by(seen)))

    def _turn(self, envelope: JsonObject, seen: int) -> Job:
        return self._listed(assignments.verify_turn(envelope, **self._judged_by(seen)))

    def _judged_by(self, seen: int) -> _Judged:
        return {
            "keys": self._trusted.assignment_keys,
            "device": self._identity.device,
            "seen": seen,
            "now": self._trusted.now(),
        }

    def _listed(self, found: Measurement | Turn) -> Job:
        info = self._trusted.target(found.target)  # a role's word is not enough
        return Job(
            place=found.place,
            target=found.target,
            digest=info.digest,
            size=info.size,
            expires=found.expires,
        )

    def _renew(self) -> None:
        """Gets the next certificate, if it is time."""
        if self._papers is None or self._clock.monotonic() < self._renew_at:
            return
        try:
            if not self._papers.is_due(self._trusted.now()):
                return
            self._renew_at = self._clock.monotonic() + RENEWAL_PAUSE
            self._papers.accept(self._control.certify(self._papers.request()))
        except NotFoundError:
            log.debug("this hub gives no certificates")
        except EdgestillError as error:
            log.warning("no new certificate: %s", error)
        else:
            log.info("has a new certificate")

    def forget(self) -> None:
        """Lets the next poll name the assignment again, even if it has not changed."""
        self._etag = None

    def fetch(self, target: Target, *, to: Path, base: tuple[Target, Path] | None) -> None:
        """Brings an archive; see `device.installer.Fetch`.

        Raises:
            UnreachableError, DeadlineError, RefusedError, NotFoundError: from the network.
            TrustError, MessageError: bytes that are not the target.
            PathError: it cannot be written.
            SpentError: it does not fit into the data budget of today; the ledger says that it waits.
        """
        try:
            self._fetch_with_room(target, to=to, base=base)
        except SpentError:
            if self._ledger is not None:
                self._ledger.wait_for(target.release, target.size)
            raise
        if self._ledger is not None:
            self._ledger.wait_for("", 0)
        for unfinished in (to, apart(to)):  # what another way had begun
            part_of(unfinished).unlink(missing_ok=True)

    def _fetch_with_room(self, target: Target, *, to: Path, base: tuple[Target, Path] | None) -> None:
        """Where the disk is full, what is to be timed or voted on gives way once: it can be fetched again."""
        try:
            self._fetch(target, to=to, base=base)
        except PathError as error:
            if not _is_full(error) or not self._has_given_way():
                raise
            self._fetch(target, to=to, base=base)

    def _has_given_way(self) -> bool:
        gave = [one.give_way() for one in self._errands]
        return True in gave

    def _fetch(self, target: Target, *, to: Path, base: tuple[Target, Path] | None) -> None:
        waits: SpentError | None = None
        try:
            if base is not None and self._patch(target, to=to, base=base):
                return
        except SpentError as error:
            waits = error
        if self._nearby is not None and self._nearby.archive(target, to=to):
            return
        if waits is not None and not self._has_waited(target):
            raise waits
        self._download(target, to)

    def _has_waited(self, target: Target) -> bool:
        return self._ledger is not None and self._ledger.has_waited(target.release)

    def fetch_archive(self, job: Job, *, to: Path, goes_on: Callable[[], bool]) -> bool:
        """Brings what is to be timed or voted on; see `device.measuring.Line`. It waits for a day with room for all of it. Errors as `fetch`."""
        return self._bring(job.target, job.digest, job.size, to, has_waited=False, goes_on=goes_on)

    def tell_timing(self, report: TimingReport) -> None:
        """Says how a timing job stands; see `device.measuring.Line`. Errors as `link.control.ControlClient.timing`."""
        if not self._control.timing(report):
            log.info("the hub knows that already, or does not wait for it any more")

    def _download(self, target: Target, to: Path) -> None:
        self._bring(target.name, target.digest, target.size, to, has_waited=self._has_waited(target))

    def _bring(
        self,
        name: str,
        digest: Digest,
        size: int,
        to: Path,
        *,
        has_waited: bool,
        goes_on: Callable[[], bool] | None = None,
    ) -> bool:
        return download(
            self._transport,
            f"{self._identity.hub}/{target_path(name, digest)}",
            to=to,
            size=size,
            digest=digest,
            clock=self._clock,
            timeout=TIMEOUT,
            minimum_speed=MINIMUM_SPEED,
            allowance=self._ledger,
            has_waited=has_waited,
            goes_on=goes_on,
        )

    def deliver(self, outbox: Outbox) -> bool:
        """Hands over a batch of what waits; False where something still waits.

        Raises:
            EdgestillError: the hub was not reached, and nothing is lost.
            SpentError: what waits is evidence, and does not fit into the data budget of today.
        """
        reports = outbox.waiting()
        if reports:
            self._report(reports, outbox)
            return False
        statistics = outbox.statistics()
        if statistics is not None:
            self._hand_over(
                "statistics",
                len(statistics.body),
                lambda: self._control.statistics(
                    statistics.id, statistics.body, sequence=statistics.sequence
                ),
            )
            outbox.statistics_delivered(statistics.id)
            return False
        ballot = outbox.ballot()
        if ballot is None:
            return True
        self._hand_over(
            "votes",
            len(ballot.body),
            lambda: self._control.vote(ballot.round, ballot.id, ballot.body, sequence=ballot.sequence),
        )
        outbox.ballot_delivered(ballot.id)
        return False

    def _hand_over(self, what: str, size: int, send: Callable[[], bool]) -> None:
        """Sends evidence, or finds that it can never be sent; errors as `deliver`."""
        if self._ledger is not None:
            if 0 < (self._ledger.bytes_per_day or 0) < size:
                log.warning("%s of %d bytes fit into no day's data budget, and are dropped", what, size)
                return
            require_soon(self._ledger, size)
        try:
            send()
        except RefusedError as error:
            if not _is_final(error):
                raise
            log.warning("the hub refuses %s: %s", what, error)
        except NotFoundError as error:
            log.warning("this hub takes no %s, or no such: %s", what, error)

    def _patch(self, target: Target, *, to: Path, base: tuple[Target, Path]) -> bool:
        """Whether a patch led to the target."""
        known, path = base
        name, at_most = f"patches/{known.digest.hex}/{target.digest.hex}", min(target.size, MAX_PATCH_BYTES)
        if self._nearby is not None:
            for url, hint in self._nearby.hints(name, at_most):
                try:
                    _patch(path, hint, to=to, target=target)
                except PatchError as error:
                    self._nearby.leave_alone(url, error)
                except PathError:  # the disk is none of theirs
                    return False
                else:
                    return True
        left = None if self._ledger is None else self._ledger.left()
        fits = at_most if left is None else min(at_most, left)
        try:
            hint = self._control.artefact(name, fits)
            _patch(path, hint, to=to, target=target)
        except NotFoundError:
            return False
        except (PatchError, PathError, MessageError, RefusedError, UnreachableError, DeadlineError) as error:
            if fits < at_most and error.what == TOO_LONG:
                raise _waits(name, error) from error
            # where nothing can be reached, the download says so too; where only patches cannot, it must not wait for them
            log.info("a patch was of no use: %s", error)
            return False
        return True

    def _report(self, reports: list[Report], outbox: Outbox) -> None:
        try:
            self._control.report(reports)
        except RefusedError as error:
            if not _is_final(error):
                raise
            for report in reports:
                self._report_alone(report)
                outbox.delivered([report.id])
            return
        outbox.delivered(report.id for report in reports)

    def _report_alone(self, report: Report) -> None:
        try:
            self._control.report([report])
        except RefusedError as error:
            if not _is_final(error):
                raise
            log.warning("the hub refuses report %s: %s", report.id, error)


def _do_nothing() -> None:
    """The lists were brought a moment ago."""


def _is_final(refusal: RefusedError) -> bool:
    """Whether the hub has looked at the content and will never take it (HTTP 400, 413, 422; see `hub.problems`).

    Whatever else refuses (a busy hub, a captive portal, a proxy before a hub that is away) may be gone tomorrow.
    """
    return str(refusal.got).startswith(("HTTP 400", "HTTP 413", "HTTP 422"))


def _waits(name: str, error: EdgestillError) -> SpentError:
    """A patch that is longer than what is left of today; the whole file would be longer still, but can be had in pieces."""
    return SpentError(
        "a patch that does not fit into the data budget of today",
        where=name,
        expected=error.expected,
        got=error.got,
        fix="tomorrow (UTC) it is fetched, or the whole file in pieces; or raise bytes_per_day",
    )


def _patch(base: Path, hint: bytes, *, to: Path, target: Target) -> None:
    """As `device.patching.patch`, which is loaded when there is a patch: what it unpacks with is of no use to an idle device."""
    from edgestill.device.patching import patch

    patch(base, hint, to=to, target=target)


def _is_full(error: PathError) -> bool:
    """Whether there was no room."""
    cause = error.__cause__
    return isinstance(cause, OSError) and cause.errno in {errno.ENOSPC, errno.EDQUOT}
