"""The key that seals what a device keeps to train on: a file of 32 bytes, wherever the device's owner wants it to be.

- The file is its owner's alone (0600): one that others may read or write is refused, and so is one of another length. What root puts there for the agent may be
  readable by root's group: an access control list for one user looks like that (acl(5)), and services are given secrets by one.
- It is made when the owner names it (`edgestill-agent settings --seal-samples FILE`), and never again on a disk: a key that is not there may be on a
  medium that is. Until it is back nothing is kept, and what was kept is left alone.
- Where its folder is in memory (tmpfs, ramfs) it is gone after a restart of the machine, by intent. There it is made anew when it is missing; what was sealed with the
  one before is of no use to anybody from then on, and is begun anew.
- What a key protects depends on where it lies (`Place`). Beside the samples it protects copies of their file alone.

What was kept before in the clear is overwritten when sealing is switched on, as far as a file system and a flash memory write in place.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import Final, Literal

from edgestill.core.bundle import replace, sync_folder
from edgestill.core.errors import ConflictError, NotFoundError, PathError, SettingError
from edgestill.core.files import open_plain
from edgestill.device.blocks import PlainFile
from edgestill.device.sealing import KEY_BYTES

Place = Literal["in memory", "on the same disk", "elsewhere"]
"""Where a key lies, seen from the samples: gone without power; taken away together with them; or not."""

_WHAT: Final = "the key of the samples"
_ANEW: Final = "bring it back, or make a new one with edgestill-agent settings --seal-samples FILE: what was kept is lost then"
_MOUNTS: Final = Path("/proc/self/mountinfo")
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_PIECE: Final = 2**20


def read_key(path: Path) -> bytes:
    """The key in a file.

    Raises:
        NotFoundError: there is no such file.
        PathError: it cannot be read, is no plain file, or others may read or write it.
        SettingError: of another length. No error tells what is in it.
    """
    try:
        with open_plain(path) as file:
            about, data = os.fstat(file.fileno()), file.read(KEY_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(
            f"{_WHAT} is not there",
            where=path,
            expected=f"a file of {KEY_BYTES} bytes",
            got="none",
            fix=_ANEW,
        ) from error
    except OSError as error:
        raise PathError(
            f"{_WHAT} cannot be read",
            where=path,
            expected="a file that the agent may read",
            got=error.strerror or error,
            fix="check the path, its owner and its medium",
        ) from error
    if not _is_ours_alone(about):
        raise PathError(
            f"{_WHAT} is not its owner's alone",
            where=path,
            expected="mode 0600, or 0400",
            got=f"{stat.S_IMODE(about.st_mode):04o}",
            fix="chmod 600, or where the medium knows no modes mount it with umask=077",
        )
    if len(data) != KEY_BYTES:
        raise SettingError(
            f"{_WHAT} has another length",
            where=path,
            expected=f"{KEY_BYTES} bytes",
            got="more" if len(data) > KEY_BYTES else f"{len(data)} bytes",
            fix=_ANEW,
        )
    return data


def _is_ours_alone(about: os.stat_result) -> bool:
    others = about.st_mode & (stat.S_IRWXG | stat.S_IRWXO)
    is_given = (about.st_uid, about.st_gid) == (0, 0) and os.geteuid() != 0
    return others == 0 or (is_given and others == stat.S_IRGRP)


def chosen_key(path: Path) -> bytes:
    """The key in a file that the owner has just named; made where there is none.

    Raises:
        PathError, SettingError: as `read_key`; or it cannot be made, such as in a folder that is not there.
    """
    try:
        return read_key(path)
    except NotFoundError:
        replace(path, os.urandom(KEY_BYTES))
    return read_key(path)


def key_to_keep(path: Path) -> bytes:
    """The key for whoever keeps samples: made anew where it is missing from memory, and nowhere else.

    Raises:
        NotFoundError, PathError, SettingError: as `read_key`.
    """
    try:
        return read_key(path)
    except NotFoundError:
        if not _is_in_memory(path.parent):
            raise
    return chosen_key(path)


def place_of(path: Path, samples: Path) -> Place:
    """Where a key lies, seen from the samples.

    Args:
        path: of the key.
        samples: their file, which need not be there; its folder is.
    """
    if _is_in_memory(path.parent):
        return "in memory"
    try:
        together = path.parent.stat().st_dev == samples.parent.stat().st_dev
    except OSError:  # a medium that is not there
        return "elsewhere"
    return "on the same disk" if together else "elsewhere"


def erase(path: Path) -> bool:
    """Overwrites a file of samples with zeros and removes it; False where an engine still fills it, and it is only removed.

    Raises:
        PathError: the disk refuses.
    """
    try:
        try:
            blocks = PlainFile.to_write(path)
        except FileNotFoundError:
            return True
        except ConflictError:
            path.unlink(missing_ok=True)
            return False
        try:
            for offset in range(0, blocks.length, _PIECE):
                blocks.write(offset, bytes(min(_PIECE, blocks.length - offset)))
            blocks.sync()
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
        finally:
            blocks.close()
    except OSError as error:
        raise PathError(
            "what was kept cannot be erased",
            where=path,
            expected="a file that can be written",
            got=error.strerror or error,
            fix="check its owner and the disk, and try again",
        ) from error
    return True


def _is_in_memory(folder: Path) -> bool:
    """Whether nothing of what is in a folder is there after a restart of the machine; where that cannot be told, it is."""
    try:
        return kind_of(_MOUNTS.read_text(errors="replace"), folder.stat().st_dev) in _IN_MEMORY
    except OSError:
        return False


def kind_of(mounts: str, device: int) -> str:
    """The kind of a file system.

    Args:
        mounts: as `/proc/self/mountinfo` has it (proc(5)).
        device: `st_dev` of a file on it.

    Returns:
        such as `ext4` or `tmpfs`; empty where it is not told.
    """
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in mounts.splitlines():
        fields, _, kind = line.partition(" - ")
        if fields.split()[2:3] == [wanted] and kind:
            return kind.split()[0]
    return ""
