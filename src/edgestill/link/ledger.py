"""The data budget of a device on its disk: one count for all its processes, which no restart forgets.

    budget.json        day, bytes counted, and what waits for a day with more of them
    budget.json.lock   held while the file is read and replaced

- What may be spent next is counted *ahead*, in the file, before it is spent; what was not spent is given back. A kill in between costs what
  was ahead, and forgets nothing.
- To spare flash, small things are counted ahead together: a 64th of a day's budget at once, at most `MOST_AHEAD` bytes; also those that are sent when the
  budget is used up.
- With a budget, what cannot be counted is not spent: a disk that refuses, or a file that is damaged, leaves nothing for today. Without one, counting is
  a courtesy and hinders nobody.
"""

from __future__ import annotations

import fcntl
import logging
import os
import threading
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Final, Self, final

from edgestill.core.bundle import replace as write_whole
from edgestill.core.errors import EdgestillError, PathError, SpentError
from edgestill.core.files import read_plain
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.core.units import format_size
from edgestill.link.allowance import MAX_DAY, SECONDS_PER_DAY, Allowance, Held, taken_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from edgestill.core.protocols import Clock

log: Final = logging.getLogger(__name__)

MOST_AHEAD: Final = 65_536
SHARES: Final = 64
"""Of a day's budget: one of them is counted ahead."""
_MOST_SHARES: Final = 2
"""That are kept ahead, where more was held and not spent."""
MAX_BYTES: Final = 16_384
_KEPT_AHEAD: Final = 3600.0
"""Seconds of running after which they are written, though nothing is spent."""


@dataclass(frozen=True, slots=True)
class Account:
    """What the file says.

    Attributes:
        allowance: of the day.
        waiting: what did not fit when it was tried last; empty where nothing waits.
        needs: bytes that it needs.
        since: how many budgets had been given when it began to wait.
    """

    allowance: Allowance
    waiting: str = ""
    needs: int = 0
    since: int = 0

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads the file; MessageError where it is something else."""
        fields = Fields(parse_object(data, where="budget", max_bytes=MAX_BYTES), "budget")
        return cls(
            allowance=Allowance.from_fields(fields.inner("allowance")),
            waiting=fields.text("waiting", at_most=300),
            needs=fields.integer("needs"),
            since=fields.integer("since") if fields.has("since") else 0,
        )

    def to_bytes(self) -> bytes:
        """The bytes of the file."""
        return canonical(asdict(self))


@final
class Ledger:
    """A budget that threads and processes of one device share.

    Args:
        path: of the file; its folder exists.
        bytes_per_day: as the device's owner chose it; None allows any number.
        clock: tells the day.
        keeps_time: whether this one counts the seconds for which the device has run; one of all its processes does, or they would count double.
    """

    def __init__(
        self, path: Path, *, bytes_per_day: int | None, clock: Clock, keeps_time: bool = True
    ) -> None:
        self._path = path
        self._bytes_per_day = bytes_per_day
        self._clock = clock
        self._keeps_time = keeps_time
        self._lock = threading.Lock()
        self._ahead = self._owed = 0
        self._is_beyond = False
        self._given = self._day = -1
        self._since = clock.monotonic()

    @property
    def bytes_per_day(self) -> int | None:
        """Of a whole day; None for any number."""
        return self._bytes_per_day

    def left(self) -> int | None:
        """Bytes that may still be spent today; None for any number."""
        if self._bytes_per_day is None:
            return None
        with self._lock:
            return self._left(self._turn(lambda account: account).allowance)

    def require(self, count: int) -> None:
        """SpentError where `count` bytes do not fit; counts nothing."""
        with self._lock:
            self._fit(count)

    def ahead(self, count: int) -> None:
        """Counts `count` bytes that may be spent next, as far as they fit; they are in the file when this returns.

        Raises:
            SpentError: there is a budget, and they cannot be counted.
        """
        with self._lock:
            self._count(count)

    def reserve(self, count: int) -> Held:
        """Counts `count` bytes for this caller alone, whoever else asks at the same time; they are in the file when this returns.

        Raises:
            SpentError: they do not fit, and nothing is counted; or they cannot be counted.
        """
        with self._lock:
            if self._owed or self._ahead < count or self._is_beyond or self._is_another_day():
                self._fit(count)
                self._count(count + self._share())
            if self._ahead < count and self._bytes_per_day is not None:  # another process was faster
                left = self._ahead
                self._settle()
                raise self._used_up(count, left)
            self._ahead -= min(count, self._ahead)
            return Held(count, self._given)

    def release(self, held: Held) -> None:
        """Gives back what was held and not spent: to who asks next, and from a few shares on to everybody."""
        with self._lock:
            self._ahead += taken_of(held, held.count, self._given)
            if self._ahead > _MOST_SHARES * self._share():
                self._settle()

    def charge(self, count: int, held: Held | None = None) -> None:
        """Counts `count` bytes that have come or gone, of those held and ahead first. It never refuses: they are spent."""
        with self._lock:
            if not self._is_another_day():
                count -= taken_of(held, count, self._given)
            known = 0 if self._is_another_day() else min(count, self._ahead)
            self._ahead -= known
            self._owed += count - known
            if self._owed:
                with suppress(SpentError):  # what could not be written is counted with what comes next
                    self._count(self._share(), beyond=True)

    def settle(self) -> None:
        """Gives back what was counted ahead and not spent."""
        with self._lock:
            self._settle()

    def wait_for(self, what: str, needs: int) -> None:
        """Says what does not fit today, for whoever looks; an empty text says that nothing waits any more."""

        def change(account: Account) -> Account:
            what_waits = what[:300]
            since = account.since if what_waits == account.waiting else account.allowance.given
            return replace(account, waiting=what_waits, needs=needs if what else 0, since=since)

        with self._lock, suppress(SpentError):
            self._turn(change)

    def has_waited(self, what: str) -> bool:
        """Whether this began to wait in an earlier day's budget: then waiting for another one need not help."""
        account = self.account()
        return bool(what) and account.waiting == what[:300] and account.since < account.allowance.given

    def account(self) -> Account:
        """What the file says, as of now; nothing is written."""
        known = self._read() or self._spent()
        return replace(known, allowance=known.allowance.on(self._clock.now()))

    def _fit(self, count: int) -> None:
        """SpentError where `count` bytes do not fit."""
        if self._bytes_per_day is None:
            return
        left = self._left(self._turn(lambda account: account).allowance)
        if count > left:
            raise self._used_up(count, left)

    def _settle(self) -> None:
        with suppress(SpentError):
            self._turn(self._given_back)
            self._ahead = 0

    def _used_up(self, count: int, left: int) -> SpentError:
        return SpentError(
            "the data budget of today is used up",
            where=self._path.name,
            expected=f"at most {format_size(left)} of {format_size(self._bytes_per_day or 0)}",
            got=format_size(count),
            fix="wait for tomorrow (UTC), or raise bytes_per_day",
        )

    def _count(self, ahead: int, *, beyond: bool = False) -> None:
        """Counts what was spent beyond what was ahead, and more ahead where that is not enough.

        Args:
            ahead: bytes.
            beyond: whether they are for what is sent all the same: then they are counted together also where the budget is used up.
        """
        if not self._owed and self._ahead >= ahead and not self._is_another_day():
            return
        held = more = free = 0

        def change(account: Account) -> Account:
            nonlocal held, more, free
            known = account.allowance
            spent, held = known.spent + self._owed, self._ahead
            free = ahead if known.bytes_per_day is None else max(known.bytes_per_day - spent, 0)
            more = max(ahead - held, 0)
            if not (beyond and free == 0):
                more = min(more, free)
            return replace(account, allowance=replace(known, spent=spent + more))

        self._turn(change)
        self._ahead, self._owed = held + more, 0
        self._is_beyond = beyond and more > free

    def _left(self, allowance: Allowance) -> int:
        today = allowance.on(self._clock.now())
        return max((today.bytes_per_day or 0) - today.spent + self._ahead - self._owed, 0)

    def _share(self) -> int:
        return MOST_AHEAD if self._bytes_per_day is None else min(MOST_AHEAD, self._bytes_per_day // SHARES)

    def _is_another_day(self) -> bool:
        return int(self._clock.now() // SECONDS_PER_DAY) > self._day

    def _given_back(self, account: Account) -> Account:
        known = account.allowance
        return replace(account, allowance=replace(known, spent=max(known.spent - self._ahead, 0)))

    def _turn(self, change: Callable[[Account], Account]) -> Account:
        """Reads the file, lets the day pass and a change happen, and writes it; alone among all processes.

        Raises:
            SpentError: there is a budget, and the file cannot be used.
        """
        try:
            with self._alone():
                before = self._read()
                ran = self._clock.monotonic() - self._since if self._keeps_time else 0.0
                found = self._spent() if before is None else before
                known = replace(found, allowance=found.allowance.after(ran).on(self._clock.now()))
                if known.allowance.given != self._given:  # what was ahead was of another day's budget
                    self._ahead = 0
                after = change(known)
                if _is_worth_writing(before, after):
                    write_whole(self._path, after.to_bytes())
                    self._since += ran
                self._given, self._day = known.allowance.given, known.allowance.day
                return after
        except (OSError, PathError) as error:
            if self._bytes_per_day is not None:
                raise SpentError(
                    "the data budget cannot be counted",
                    where=self._path,
                    expected="a disk with room: what is not counted is not spent",
                    got=error,
                    fix="check its owner, and the room on the disk",
                ) from error
            log.warning("what is sent and received is not counted: %s", error)
            return change(Account(Allowance()))

    @contextmanager
    def _alone(self) -> Iterator[None]:
        lock = self._path.with_name(f"{self._path.name}.lock")
        handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            yield
        finally:
            os.close(handle)

    def _read(self) -> Account | None:
        """What the file says; None where it is damaged. PathError where it cannot be read."""
        if not self._path.exists():
            return Account(Allowance(bytes_per_day=self._bytes_per_day))
        data = read_plain(self._path, what="the data budget", at_most=MAX_BYTES)
        try:
            known = Account.from_bytes(data)
        except EdgestillError as error:
            log.warning("the count of the data budget is damaged, and today counts as spent: %s", error)
            return None
        return replace(known, allowance=replace(known.allowance, bytes_per_day=self._bytes_per_day))

    def _spent(self) -> Account:
        """What takes the place of a count that is lost."""
        day = min(max(int(self._clock.now() // SECONDS_PER_DAY), 0), MAX_DAY)
        limit = self._bytes_per_day
        return Account(Allowance(bytes_per_day=limit, day=day, spent=limit or 0))


def _is_worth_writing(before: Account | None, after: Account) -> bool:
    """A change of anything but the seconds that have passed; those at times, for flash wears out."""
    if before is None:
        return True
    same = replace(after, allowance=replace(after.allowance, ran=before.allowance.ran)) == before
    return not same or after.allowance.ran - before.allowance.ran >= _KEPT_AHEAD
