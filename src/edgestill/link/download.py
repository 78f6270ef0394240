"""Ranged, resumable downloads of files whose size and digest are known beforehand.

- What arrived is kept in `NAME.part`, synced, and continued by a range request; the digest of the whole decides. A
  continued file with another digest is thrown away and fetched once more from zero.
- `NAME` holds the whole, checked file or does not change, whenever the process is killed.
- Endless data: nothing beyond the known size is written, and a peer that states or sends more is refused.
- Slow retrieval: every stretch of `timeout` seconds must bring `minimum_speed` on average, so a download ends within
  `timeout + size / minimum_speed` seconds whatever the peer does.
- One that shall not go on is let go between two pieces, and what arrived is kept.
- A download that does not fit into what is left of today's data budget is not begun. One that fits into no day's budget, or has waited for another day
  and still does not fit (polls come first each day), goes on each day until that is used up; what is there is kept for tomorrow.

Sources: RFC 9110, section 14 (range requests); the names of the attacks are those of the TUF specification, section 1.5.
`If-Range` is not sent: its validators are the peer's word, the digest is the publisher's.
"""

from __future__ import annotations

import hashlib
import os
import re
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import TYPE_CHECKING, BinaryIO, Final, final

from edgestill.core.bundle import sync_folder
from edgestill.core.errors import (
    DeadlineError,
    PathError,
    RefusedError,
    SettingError,
    SpentError,
    TrustError,
    UnreachableError,
)
from edgestill.core.protocols import Request
from edgestill.core.units import format_size
from edgestill.link.exchange import ABSENT, check_head, read_problem, refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from hashlib import _Hash
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.core.protocols import Clock, Response, Transport
    from edgestill.link.allowance import Budget

CHUNK: Final = 1_048_576

_CONTENT_RANGE: Final = re.compile(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18}|\*)")


def download(
    transport: Transport,
    url: str,
    *,
    to: Path,
    size: int,
    digest: Digest,
    clock: Clock,
    timeout: float,
    minimum_speed: float,
    allowance: Budget | None = None,
    has_waited: bool = False,
    goes_on: Callable[[], bool] | None = None,
) -> bool:
    """Fetches a file, or the rest of it; returns at once where it is there.

    Args:
        transport: carries the requests.
        url: where it is; the same path may be asked of any mirror.
        to: where it shall be; `to` and `.part` belong to one download at a time.
        size: bytes, from somebody who is trusted.
        digest: of the whole, from somebody who is trusted.
        clock: for the speed.
        timeout: seconds of each stretch over which the speed is measured, connecting included.
        minimum_speed: bytes per second, above 0.
        allowance: counts the bytes that arrive; None counts nothing, as for places nearby.
        has_waited: whether it was put off on an earlier day: then it takes what there is, whether all of it fits or not.
        goes_on: asked before each piece whether to go on; None always does.

    Returns:
        Whether it is there; False where it did not go on.

    Raises:
        NotFoundError: there is none (404).
        UnreachableError: the connection broke. What arrived is kept, as it is by the next two.
        DeadlineError: too slow.
        SpentError: what is missing does not fit into the data budget of today.
        AccessError, RefusedError: the peer said no, or answered another question.
        TrustError: the bytes are not the file that was listed. They are thrown away.
        PathError: it cannot be written.
        SettingError: a speed or a timeout that bounds nothing.
    """
    if not minimum_speed > 0 or not timeout > 0:
        raise SettingError(
            "a download without a bound",
            expected="minimum_speed and timeout above 0",
            got=minimum_speed,
            where="download",
            fix="choose positive ones",
        )
    task = _Task(
        transport,
        Request("GET", url),
        to,
        size,
        digest,
        _Pace(clock, timeout, minimum_speed),
        allowance,
        has_waited,
        goes_on,
    )
    try:
        if not _is_whole(to, size, digest):
            task.run()
    except _LetGoError:
        return False
    except OSError as error:
        raise PathError(
            "cannot write a download",
            where=to,
            got=error.strerror or error,
            fix="check the disk",
            expected="a folder with room",
        ) from error
    return True


class _LetGoError(Exception):
    """It shall not go on."""


def part_of(to: Path) -> Path:
    """Where what has arrived of a file lies."""
    return to.with_name(f"{to.name}.part")


@dataclass(slots=True)
class _Pace:
    """Notices a peer that is too slow.

    Attributes:
        clock: monotonic time is read from it.
        stretch: seconds.
        minimum: bytes per second.
        start: of the present stretch.
        count: bytes of the present stretch.
    """

    clock: Clock
    stretch: float
    minimum: float
    start: float = 0.0
    count: int = 0

    def begin(self) -> None:
        self.start, self.count = self.clock.monotonic(), 0

    def limit(self, size: int) -> float:
        """Seconds after which `size` bytes are too late in any case."""
        return self.stretch + size / self.minimum

    def add(self, count: int, where: str) -> None:
        self.count += count
        elapsed = self.clock.monotonic() - self.start
        if elapsed < self.stretch:
            return
        if self.count < self.minimum * elapsed:
            raise DeadlineError(
                "a download that is too slow",
                where=where,
                expected=f"{format_size(self.minimum)}/s over {self.stretch:g} s",
                got=f"{format_size(self.count / elapsed)}/s",
                fix="it continues where it stopped when it is tried again",
            )
        self.begin()


@final
@dataclass(slots=True)
class _Task:
    transport: Transport
    request: Request
    to: Path
    size: int
    digest: Digest
    pace: _Pace
    allowance: Budget | None
    has_waited: bool = False
    goes_on: Callable[[], bool] | None = None
    hash: _Hash = field(default_factory=hashlib.sha256)
    have: int = 0

    @property
    def part(self) -> Path:
        return part_of(self.to)

    def run(self) -> None:
        continued = self._attempt()
        if continued and not self._is_right():
            self._discard()
            self._attempt()
        if not self._is_right():
            self._discard()
            raise TrustError(
                "a download with another digest",
                where=self.request.url,
                expected=self.digest,
                got=f"sha256:{self.hash.hexdigest()}",
                fix="fetch it from another mirror, or publish it again",
            )
        self.part.replace(self.to)
        sync_folder(self.to.parent)

    def _is_right(self) -> bool:
        return self.hash.hexdigest() == self.digest.hex

    def _discard(self) -> None:
        self.part.unlink(missing_ok=True)

    def _attempt(self) -> bool:
        """Brings `.part` to its full size; whether any of it was there before."""
        self.part.touch()
        with self.part.open("r+b") as file:
            self._take_up(file)
            continued = self.have > 0
            try:
                if self.have < self.size:
                    self._fetch(file)
            finally:
                file.flush()
                os.fsync(file.fileno())
        return continued

    def _take_up(self, file: BinaryIO) -> None:
        """Hashes what is there, and leaves the file at its end; what cannot be a beginning is dropped."""
        self._restart(file)
        if os.fstat(file.fileno()).st_size > self.size:
            file.truncate()
        while chunk := file.read(CHUNK):
            self.hash.update(chunk)
            self.have += len(chunk)

    def _restart(self, file: BinaryIO) -> None:
        file.seek(0)
        self.hash, self.have = hashlib.sha256(), 0

    def _let_go_if_told(self) -> None:
        if self.goes_on is not None and self.have < self.size and not self.goes_on():
            raise _LetGoError

    def _fetch(self, file: BinaryIO) -> None:
        self._let_go_if_told()
        self._refuse_what_does_not_fit()
        headers = {"range": f"bytes={self.have}-"} if self.have else {}
        self.pace.begin()
        response = self.transport.send(
            Request("GET", self.request.url, headers), timeout=self.pace.limit(self.size - self.have)
        )
        try:
            self._check(response, file)
            self._read(response, file)
        finally:
            response.close()
            if self.allowance is not None:
                self.allowance.settle()
        if self.have < self.size:
            raise UnreachableError(
                "a download that ended too early",
                where=self.request.url,
                expected=f"{self.size} bytes",
                got=self.have,
            )

    def _check(self, response: Response, file: BinaryIO) -> None:
        check_head(response, self.request)
        if response.status == HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE and self.have:
            self._discard()
        if response.status >= HTTPStatus.BAD_REQUEST:
            raise refusal(response.status, read_problem(response), self.request, documented=ABSENT)
        if response.status == HTTPStatus.PARTIAL_CONTENT and self.have:
            self._check_range(response.headers.get("content-range", ""))
        elif response.status == HTTPStatus.OK:
            self._restart(file)  # the whole file: the peer knows no ranges
            file.truncate()
        else:
            raise RefusedError(
                "an answer to another question",
                where=self.request.url,
                got=f"HTTP {response.status}",
                expected="the bytes that were asked for",
            )
        stated = response.headers.get("content-length", "")
        if stated.isdecimal() and stated.lstrip("0") != str(self.size - self.have).lstrip("0"):
            self._discard()
            raise self._wrong_length(stated[:40])

    def _check_range(self, given: str) -> None:
        found = _CONTENT_RANGE.fullmatch(given)
        wanted = (str(self.have), str(self.size - 1))
        if found is None or found.groups()[:2] != wanted or found[3] not in {"*", str(self.size)}:
            self._discard()
            raise RefusedError(
                "an answer with another range",
                where=self.request.url,
                expected=f"bytes {'-'.join(wanted)}/{self.size}",
                got=given[:100],
                fix="it starts from zero when it is tried again",
            )

    def _read(self, response: Response, file: BinaryIO) -> None:
        chunks = iter(response.chunks())
        while (chunk := self._next(chunks)) is not None:
            if self.have + len(chunk) > self.size:
                self._discard()
                raise self._wrong_length("more")
            file.write(chunk)
            self.hash.update(chunk)
            self.have += len(chunk)
            if self.have < self.size:
                self._refuse_if_spent()
                self.pace.add(len(chunk), self.request.url)

    def _next(self, chunks: Iterator[bytes]) -> bytes | None:
        """The next piece, counted before it is asked for as far as can be known."""
        self._let_go_if_told()
        if self.allowance is not None:
            self.allowance.ahead(min(self.size - self.have, CHUNK))
        chunk = next(chunks, None)
        if self.allowance is not None and chunk is not None:
            self.allowance.charge(len(chunk))
        return chunk

    def _refuse_what_does_not_fit(self) -> None:
        """What could be had whole on another day waits for it, once; what never could, or still does not fit then, takes what there is."""
        if self.allowance is None or (left := self.allowance.left()) is None:
            return
        rest, day = self.size - self.have, self.allowance.bytes_per_day or 0
        if left < rest <= day and not self.has_waited:
            raise SpentError(
                "a download that does not fit into the data budget of today",
                where=self.request.url,
                expected=f"at most {format_size(left)} of {format_size(day)}",
                got=format_size(rest),
                fix="it is begun tomorrow (UTC); or raise bytes_per_day",
            )
        self._refuse_if_spent()

    def _refuse_if_spent(self) -> None:
        if self.allowance is not None and self.allowance.left() == 0:
            raise SpentError(
                "the data budget of today is used up",
                where=self.request.url,
                got=f"{self.have} of {self.size} bytes",
                fix="it continues tomorrow (UTC); or raise bytes_per_day",
                expected="bytes left in bytes_per_day",
            )

    def _wrong_length(self, got: str) -> TrustError:
        return TrustError(
            "a download of another length",
            where=self.request.url,
            expected=f"{self.size - self.have} bytes",
            got=got,
            fix="fetch it from another mirror, or publish it again",
        )


def _is_whole(path: Path, size: int, digest: Digest) -> bool:
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size != size:
                return False
            return hashlib.file_digest(file, "sha256").hexdigest() == digest.hex
    except FileNotFoundError:
        return False
