"""A folder with a record and the archive of one job, for whatever a hub lets a device do in idle hours.

    FOLDER/state.json          what outlives the agent
    FOLDER/<sha256>SUFFIX      the archive of the job in hand, or a part of it

What is of no job in hand is removed. An archive is brought only where there is twice its size of room, so that half stays free.
"""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING, Final, final

from edgestill.core.errors import PathError, SettingError
from edgestill.core.units import format_size

if TYPE_CHECKING:
    import threading
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.device.jobs import Job

STATE: Final = "state.json"


@final
class Depot:
    """One folder.

    Args:
        folder: made by `prepare`.
        suffix: of archives.
        most_bytes: of an archive that this device would fetch.
    """

    def __init__(self, folder: Path, *, suffix: str, most_bytes: int) -> None:
        self._folder = folder
        self._suffix = suffix
        self._most_bytes = most_bytes

    @property
    def state(self) -> Path:
        """The record."""
        return self._folder / STATE

    def prepare(self, what: str) -> None:
        """Makes the folder of `what`; PathError where it cannot be made."""
        try:
            self._folder.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise PathError(
                f"cannot make the folder of {what}",
                where=self._folder,
                expected="a folder that can be made",
                got=error.strerror,
                fix="check the home's owner and its disk",
            ) from error

    def archive(self, digest: Digest) -> Path:
        """Where an archive lies, or would."""
        return self._folder / f"{digest.hex}{self._suffix}"

    def make_room(self, job: Job) -> Path:
        """Where a job's archive is to be brought to; what is of another job is gone then.

        Raises:
            SettingError: it is too large for this device. PathError: there is no room.
        """
        if job.size > self._most_bytes:
            raise SettingError(
                "an archive that is too large for this device",
                where=job.target,
                expected=f"at most {format_size(self._most_bytes)}, which is half of its data budget of a day where it has one",
                got=format_size(job.size),
                fix="make a smaller one",
            )
        kept = self.archive(job.digest)
        self.clear(kept)
        if shutil.disk_usage(self._folder).free < 2 * job.size:
            raise PathError(
                f"no room for {job.target}",
                where=self._folder,
                expected=f"{format_size(2 * job.size)} free, of which half stays free",
                got="less",
                fix="make room, or cancel the job",
            )
        return kept

    def clear(self, kept: Path | None = None) -> None:
        """Removes everything but the record, and an archive that is kept with what has arrived of it."""
        for path in self._folder.iterdir():
            if path.name != STATE and (kept is None or not path.name.startswith(kept.name)):
                path.unlink(missing_ok=True)


def work(
    advance: Callable[[], float | None],
    *,
    waking: threading.Event,
    ending: threading.Event,
    failed: Callable[[Exception], float],
) -> None:
    """Does one thing after the other until the end.

    Args:
        advance: does the next; seconds until there may be something again, None where that takes being woken.
        waking: ends a pause.
        ending: ends the work.
        failed: says what came of an error; seconds until the next try.
    """
    while not ending.is_set():
        try:
            pause = advance()
        except Exception as error:  # noqa: BLE001  # a thread that is gone would never be missed
            pause = failed(error)
        if pause is None or pause > 0:
            waking.wait(pause)
            waking.clear()
