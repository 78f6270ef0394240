"""Filling a cache: what is missing, whether there is room for it, and who asks the teacher.

The teacher is asked in batches along the shards, and the source is told all of them at once, so that its workers fetch
ahead across shards and views. Each shard is written when its last batch is answered; a fill that stops loses at most
one shard.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, final, overload

import numpy as np

from edgestill.core.errors import PathError
from edgestill.core.units import format_size
from edgestill.lab.data.seeds import view_seeds
from edgestill.lab.data.source import Ask
from edgestill.lab.teacher.records import PART

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from edgestill.lab.data.source import Source
    from edgestill.lab.teacher.guide import Guide
    from edgestill.lab.teacher.head import Head
    from edgestill.lab.teacher.records import Shard

_FIX: Final = "free some room, or keep fewer views or only `top_k` logits; what is kept already stays"


@final
@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Fill:
    """Who answers what, and where it is kept.

    Attributes:
        folder: of the cache.
        head: whose answers they are.
        teacher: is asked.
        source: shows it the samples.
        batch: samples the teacher is asked about at once.
    """

    folder: Path
    head: Head
    teacher: Guide
    source: Source
    batch: int

    def missing(self, shards: Sequence[Shard]) -> list[Shard]:
        """Those that are not there or were cut short.

        Raises:
            DataError: a file in the place of one does not belong to this cache.
        """
        key = self.head.key
        return [shard for shard in shards if not shard.is_whole(self.folder, self.head.layout, key)]

    def check_room(self, shards: Iterable[Shard], free: Callable[[Path], int]) -> None:
        """Refuses to begin what cannot be ended.

        Raises:
            PathError: there are fewer bytes free than the shards take.
        """
        needed = self._bytes(shards)
        room = free(self.folder) if needed else 0
        if room < needed:
            raise PathError(
                "no room for the teacher's answers",
                where=self.folder,
                expected=f"{needed} bytes free ({format_size(needed)})",
                got=f"{room} bytes ({format_size(room)})",
                fix=_FIX,
            )

    def run(self, shards: Sequence[Shard], progress: Callable[[int, int], None]) -> int:
        """Asks the teacher and keeps its answers.

        Args:
            shards: the missing ones that are this process's to fill.
            progress: called after each batch with (samples done, samples to do).

        Returns:
            How many records were made.

        Raises:
            PathError: the folder cannot be written, or is full.
            NotFiniteError: an answer cannot be kept. ShapeError: an answer of another shape than the first.
        """
        layout, key, total, done = self.head.layout, self.head.key, sum(map(len, shards)), 0
        batches = iter(self.source.batches(_Asks(shards, self.head.seed, self.batch)))
        for at, shard in enumerate(shards):
            rows = np.zeros(len(shard), layout.dtype)
            for ask in _Asks([shard], self.head.seed, self.batch):
                answer = self.teacher.answer(ask, next(batches).inputs)
                rows[ask.index - shard.start] = layout.encode(ask, answer)
                done += len(ask.index)
                progress(done, total)
            try:
                shard.write(self.folder, rows, key)
            except OSError as error:
                raise self._unwritable(error, shards[at:]) from error
        return done

    def _bytes(self, shards: Iterable[Shard]) -> int:
        return sum(shard.size(self.head.layout) for shard in shards)

    def _unwritable(self, error: OSError, left: Sequence[Shard]) -> PathError:
        where = left[0].path(self.folder)
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            return PathError(
                "cannot keep the teacher's answers",
                where=where,
                got=error.strerror or error,
                expected="a folder that can be written",
                fix="give another folder with cache=, or make this one writable",
            )
        needed = self._bytes(left)
        return PathError(
            "no room for the teacher's answers",
            where=where,
            expected=f"{needed} bytes more ({format_size(needed)})",
            got=error.strerror,
            fix=_FIX,
        )


@final
class _Asks(Sequence[Ask]):
    """A sequence of asks, each made when it is looked at: all at once would take more memory than some data."""

    def __init__(self, shards: Sequence[Shard], seed: int, batch: int) -> None:
        self._seed = seed
        self._spans = [
            (shard.view, start, min(start + batch, shard.stop))
            for shard in shards
            for start in range(shard.start, shard.stop, batch)
        ]

    def __len__(self) -> int:
        return len(self._spans)

    @overload
    def __getitem__(self, at: int) -> Ask: ...
    @overload
    def __getitem__(self, at: slice) -> list[Ask]: ...
    def __getitem__(self, at: int | slice) -> Ask | list[Ask]:
        if isinstance(at, slice):
            return [self[one] for one in range(len(self))[at]]
        view, start, stop = self._spans[at]
        index = np.arange(start, stop)
        return Ask(index, view_seeds(self._seed, view, index), view)


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Within, this process writes there; what dead writers left is thrown away first, unless another one lives.

    Args:
        folder: made where there is none.

    Raises:
        PathError: it cannot be made or read.
    """
    with told(folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # some network file systems have no locks: there a leftover may stay, which harms nobody
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            for leftover in (*folder.glob(f".*{PART}"), *folder.glob(f"view-*/.*{PART}")):
                leftover.unlink(missing_ok=True)
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_SH)
        yield
    finally:
        os.close(handle)


@contextmanager
def told(folder: Path) -> Iterator[None]:
    """What the disk refuses, as a coded error."""
    try:
        yield
    except OSError as error:
        where = folder if error.filename is None else error.filename
        raise PathError(
            "cannot use a folder for a cache",
            where=where,
            expected="a folder that can be written and has room",
            got=error.strerror or error,
            fix="give another folder with cache=, or make this one writable",
        ) from error
