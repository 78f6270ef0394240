"""Two folders and one small file: where bundles lie on a device.

    slots/state.json             device.state.State: which slot serves
    slots/a/slot.json            device.state.Record: what slot A holds
    slots/a/<sha256>.esb         its archive

- Every file is written beside its name, synced, and renamed (`core.bundle.replace`): a name holds the old bytes or
  the new ones. The archive comes first, then its record, so that a record speaks of a whole archive.
- A slot is emptied in the other order: no record ever outlives its archive by a kill.
- An archive carries its digest in its name, so that a download given up cannot be taken for the next one.
- Nothing read back is believed: `load` compares each archive with its record, and the state with the records.
"""

from __future__ import annotations

import hashlib
import shutil
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Protocol, Self, final

from edgestill.core import bundle
from edgestill.core.digest import Digest
from edgestill.core.errors import MessageError, PathError
from edgestill.device.state import MAX_STATE_BYTES, SLOTS, Record, SlotName, State, settle

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.device.state import Target

STATE: Final = "state.json"
SLOT_RECORD: Final = "slot.json"
_CHUNK: Final = 1 << 20


class Disk(Protocol):
    """How slots are written. `SyncedDisk` is the real one; tests put one in between that fails where they like."""

    def write(self, path: Path, data: bytes) -> None:
        """Replaces a file whole or not at all; PathError where it cannot be done."""
        ...

    def remove(self, path: Path) -> None:
        """Removes a file or a folder's content; what is not there is no error. PathError where it cannot be done."""
        ...


@final
class SyncedDisk:
    """A disk whose writes are synced before they count."""

    def write(self, path: Path, data: bytes) -> None:
        """Replaces a file whole or not at all."""
        bundle.replace(path, data)

    def remove(self, path: Path) -> None:
        """Removes a file or folder, and makes that durable."""
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
            bundle.sync_folder(path.parent)
        except OSError as error:
            raise PathError(
                "cannot remove",
                where=path,
                got=error.strerror,
                fix="check the disk",
                expected="a folder of ours",
            ) from error


@final
@dataclass(frozen=True, slots=True)
class Slots:
    """The two slots of a device.

    Attributes:
        folder: holds `state.json` and a folder per slot.
        disk: writes and removes.
    """

    folder: Path
    disk: Disk

    @classmethod
    def open(cls, folder: Path, *, disk: Disk | None = None) -> Self:
        """Makes the folders where they are missing, and sweeps up what a kill left half-written.

        Raises:
            PathError: the folder cannot be written.
        """
        slots = cls(folder, disk or SyncedDisk())
        try:
            for slot in SLOTS:
                (folder / slot).mkdir(parents=True, exist_ok=True)
            for leftover in (*folder.glob(".*"), *folder.glob("[ab]/.*")):
                if not leftover.is_dir():  # a file system's own, such as .snapshot
                    leftover.unlink(missing_ok=True)
        except OSError as error:
            raise PathError(
                "cannot prepare the slots",
                where=folder,
                got=error.strerror,
                expected="a folder of ours with room",
                fix="check its owner, and the room on the disk",
            ) from error
        return slots

    def archive(self, slot: SlotName, target: Target) -> Path:
        """Where a slot keeps this target's archive."""
        return self.folder / slot / f"{target.digest.hex}.esb"

    def load(self) -> State:
        """The state as it truly is: a torn or missing file, or a damaged archive, leads to the slot that is whole."""
        return settle(read_state(self.folder), {slot: self.record(slot) for slot in SLOTS})

    def save(self, state: State) -> None:
        """Writes the state. This is the switch: before, the old slot serves; after, the new one.

        Raises:
            PathError: it cannot be written; the old state still holds.
        """
        self.disk.write(self.folder / STATE, state.to_bytes())

    def record(self, slot: SlotName) -> Record | None:
        """What a slot holds, or None where it has no record, or no archive that matches it bit by bit."""
        data = _read(self.folder / slot / SLOT_RECORD)
        try:
            record = None if data is None else Record.from_bytes(data)
        except MessageError:
            return None
        if record is None or not holds(self.archive(slot, record.target), record.target):
            return None
        return record

    def stage(self, slot: SlotName, target: Target, counter: int) -> None:
        """Writes a slot's record: from now on the slot counts as whole.

        Raises:
            PathError: it cannot be written.
        """
        record = Record(target=target, counter=counter, confirmed=False)
        self.disk.write(self.folder / slot / SLOT_RECORD, record.to_bytes())

    def confirm(self, slot: SlotName) -> None:
        """Marks a slot's record as confirmed, so that it is preferred should the state be lost.

        Raises:
            PathError: it cannot be written.
        """
        data = _read(self.folder / slot / SLOT_RECORD)
        if data is None:
            return
        record = Record.from_bytes(data)
        confirmed = Record(target=record.target, counter=record.counter, confirmed=True)
        self.disk.write(self.folder / slot / SLOT_RECORD, confirmed.to_bytes())

    def clear(self, slot: SlotName) -> None:
        """Empties a slot, its record first.

        Raises:
            PathError: something cannot be removed.
        """
        folder = self.folder / slot
        self.disk.remove(folder / SLOT_RECORD)
        for path in sorted(folder.iterdir()):
            self.disk.remove(path)


def read_state(folder: Path) -> State | None:
    """The state as it was written, unchecked against the slots; None where it is missing or torn."""
    data = _read(folder / STATE)
    try:
        return None if data is None else State.from_bytes(data)
    except MessageError:
        return None


def holds(archive: Path, target: Target) -> bool:
    """Whether the file is the target, by size and digest."""
    try:
        if archive.stat().st_size != target.size:
            return False
        return digest_of(archive) == target.digest
    except OSError:
        return False


def digest_of(path: Path) -> Digest:
    """The digest of a file, read in pieces; OSError where it cannot be read."""
    state = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            state.update(chunk)
    return Digest(state.hexdigest())


def _read(path: Path) -> bytes | None:
    try:
        with path.open("rb") as file:
            return file.read(MAX_STATE_BYTES + 1)
    except OSError:
        return None
