"""The key that seals what a device keeps to train on: a file of 32 bytes, wherever the device's owner wants it to be.

- The file is its owner's alone (0600), and that is the agent's user or root: one that others may read or write is refused, and so is one of another length. What
  root puts there for the agent may be readable by root's group: an access control list for one user looks like that (acl(5)), and services are given secrets by one.
- It is made when the owner names it (`edgestill-agent settings --seal-samples FILE`) and nothing has the name. A key that is not there later may be on a
  medium that is not, or not fetched yet. Until it is back nothing is kept, and what was kept is left alone.
- One exception is settled when it is named: where it was *made* then, in memory (tmpfs, ramfs), it is gone after a restart of the machine, by intent. It is made
  anew when it is missing and its folder is on that file system again; what was sealed with the one before is of no use to anybody from then on, and is begun
  anew. A key that was there when it was named is somebody else's to bring back, and a link is never replaced.
- What a key protects depends on where it lies (`Place`). Beside the samples it protects copies of their file alone.

What was kept before in the clear is overwritten once sealing is switched on, as far as a file system and a flash memory write in place. Whether a file is
in the clear is read of its own head, and looked at by each run of `settings` and of the engine, so that what one of them could not do the next one does.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Final, Literal

from edgestill.core.bundle import replace, sync_folder
from edgestill.core.errors import ConflictError, NotFoundError, PathError, SettingError
from edgestill.core.files import open_plain
from edgestill.device.blocks import PlainFile
from edgestill.device.replay_head import HEAD_BYTES, is_sealed
from edgestill.device.sealing import KEY_BYTES

Place = Literal["in memory", "on the same file system", "on another file system", "not there now"]
"""Where a key lies, seen from the samples. Another file system may be on the same disk: a partition, a subvolume."""

_WHAT: Final = "the key of the samples"
_ANEW: Final = "bring it back, or make a new one with edgestill-agent settings --seal-samples FILE: what was kept is lost then"
_MOUNTS: Final = Path("/proc/self/mountinfo")
_IN_MEMORY: Final = frozenset({"tmpfs", "ramfs"})
_PIECE: Final = 2**20
_NO_LINKS: Final = frozenset({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})
"""What a file system without hard links says, such as that of most sticks."""


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
            got="a link that leads nowhere" if path.is_symlink() else "none",
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
            expected=f"mode 0600 or 0400, of user {os.geteuid()}",
            got=f"{stat.S_IMODE(about.st_mode):04o}, of user {about.st_uid}",
            fix="chmod 600 and chown it, or where the medium knows no modes mount it with umask=077",
        )
    if len(data) != KEY_BYTES:
        raise SettingError(
            f"{_WHAT} has another length",
            where=path,
            expected=f"{KEY_BYTES} bytes",
            got="more" if len(data) > KEY_BYTES else f"{len(data)} bytes",
            fix=f"remove it, and {_ANEW}",
        )
    return data


def _is_ours_alone(about: os.stat_result) -> bool:
    others, us = about.st_mode & (stat.S_IRWXG | stat.S_IRWXO), os.geteuid()
    is_given = (about.st_uid, about.st_gid) == (0, 0) and us != 0
    return about.st_uid in {0, us} and (others == 0 or (is_given and others == stat.S_IRGRP))


def make_key(path: Path) -> bool:
    """Makes a key where nothing has the name, not even a link; False where something has. Of several at once, one makes it.

    Raises:
        PathError: it cannot be made, such as in a folder that is not there.
    """
    if os.path.lexists(path):
        return False
    key = os.urandom(KEY_BYTES)
    beside = path.with_name(f".{path.name[:40]}.{os.urandom(8).hex()}")
    replace(beside, key)  # so that the name never stands for a part of a key
    try:
        _put(beside, path, key)
        sync_folder(path.parent)
    except FileExistsError:
        return False
    except OSError as error:
        raise PathError(
            f"{_WHAT} cannot be made",
            where=path,
            expected="a folder that can be written, with room",
            got=error.strerror or error,
            fix="choose another path",
        ) from error
    finally:
        beside.unlink(missing_ok=True)
    return True


def _put(beside: Path, path: Path, key: bytes) -> None:
    """Gives a whole file a name that nothing has; FileExistsError where something has it.

    Where there are no hard links it is written under that name: a power cut may leave a part, which is refused later by its length.
    """
    try:
        os.link(beside, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        with os.fdopen(
            os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600), "wb"
        ) as file:
            file.write(key)
            file.flush()
            os.fsync(file.fileno())


def chosen_key(path: Path) -> bytes:
    """The key in a file; made where nothing has the name.

    Raises:
        NotFoundError, PathError, SettingError: as `read_key` and `make_key`.
    """
    make_key(path)
    return read_key(path)


def key_to_keep(path: Path, anew_on: Path | None) -> bytes:
    """The key for whoever keeps samples.

    Args:
        path: of the key.
        anew_on: the file system in memory that it is made anew on where it is missing (`memory_of`); None makes none.

    Raises:
        NotFoundError, PathError, SettingError: as `read_key`.
    """
    try:
        return read_key(path)
    except NotFoundError:
        if anew_on is None or memory_of(path.parent) != anew_on:
            raise
    return chosen_key(path)


def place_of(path: Path, samples: Path) -> Place:
    """Where a key lies, seen from the samples; links are followed.

    Args:
        path: of the key.
        samples: their file, which need not be there; its folder is.
    """
    try:
        real = Path(os.path.realpath(path, strict=True))
        if memory_of(real.parent) is not None:
            return "in memory"
        together = real.stat().st_dev == samples.parent.stat().st_dev
    except OSError:
        return "not there now"
    return "on the same file system" if together else "on another file system"


def is_plain(path: Path) -> bool:
    """Whether there is a file of samples that does not say it is sealed; one with a damaged head may have anything in it.

    Raises:
        PathError: it cannot be read.
    """
    try:
        with open_plain(path, follow=False) as file:
            return not is_sealed(file.read(HEAD_BYTES))
    except FileNotFoundError:
        return False
    except OSError as error:
        raise _not_erased(path, error) from error


def erase(path: Path) -> bool:
    """Overwrites a file of samples with zeros and removes it; False where an engine still fills it, and nothing is done.

    Raises:
        PathError: the disk refuses.
    """
    try:
        blocks = PlainFile.to_write(path)
    except FileNotFoundError:
        return True
    except ConflictError:
        return False
    except OSError as error:
        raise _not_erased(path, error) from error
    try:
        for offset in range(0, blocks.length, _PIECE):
            blocks.write(offset, bytes(min(_PIECE, blocks.length - offset)))
        blocks.sync()
        path.unlink(missing_ok=True)
        sync_folder(path.parent)
    except OSError as error:
        raise _not_erased(path, error) from error
    finally:
        blocks.close()
    return True


def _not_erased(path: Path, error: OSError) -> PathError:
    return PathError(
        "what was kept cannot be erased",
        where=path,
        expected="a file that can be written",
        got=error.strerror or error,
        fix="check its owner and the disk, and try again",
    )


def memory_of(folder: Path) -> Path | None:
    """Where the file system in memory is mounted that a folder is on; None where it is on another, or that cannot be told.

    Nothing of what is on it is there after a restart of the machine. Links are followed.
    """
    try:
        real = Path(os.path.realpath(folder, strict=True))
        kind = kind_of(_MOUNTS.read_text(errors="replace"), real.stat().st_dev)
    except OSError:
        return None
    if kind not in _IN_MEMORY:
        return None
    return next(one for one in (real, *real.parents) if one.is_mount())


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
