"""What allows a run to go on where it was stopped, and to end with the same weights, bit for bit.

- A checkpoint is one file; its name holds the old one or the new one, never a part, whenever the process dies.
- It knows the run it is of (recipe, data, teacher, student) and is refused by any other.
- It begins with the digest of what follows: a bit that was flipped on the disk is found before it becomes a weight.
- Order, views and dropout are functions of seed and step, so that no generator's state has to be kept.
- It is read with torch's `weights_only`, which builds tensors and plain values, and runs nothing.
"""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any, Final, final

import torch

from edgestill.core.bundle import replace
from edgestill.core.digest import Digest
from edgestill.core.errors import DataError, PathError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

NAME: Final = "checkpoint.pt"
FORMAT: Final = 2
_HEAD: Final = b"edgestill checkpoint\n"
_DATA: Final = len(_HEAD) + len(str(Digest.of(b"")))

State = dict[str, Any]  # tensors and plain values; the digest of the run vouches for their kinds


@final
class Checkpoints:
    """The newest state of one run.

    Args:
        folder: made when the first one is kept.
        run: what makes this run this run: a name, such as `recipe`, -> its digest.
    """

    def __init__(self, folder: Path, run: Mapping[str, str]) -> None:
        self.path, self.run = folder / NAME, dict(run)

    def keep(self, state: Mapping[str, object]) -> None:
        """Replaces the last one.

        Raises:
            PathError: it cannot be written; the last one is still there.
        """
        buffer = io.BytesIO()
        torch.save({"format": FORMAT, "run": self.run, **state}, buffer)
        data = buffer.getvalue()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise PathError(
                "cannot make a folder for checkpoints",
                where=self.path.parent,
                got=error.strerror,
                expected="a folder that can be written",
                fix="name another folder",
            ) from error
        replace(self.path, _HEAD + str(Digest.of(data)).encode() + data)

    def last(self) -> State | None:
        """The newest one, or None.

        Raises:
            DataError: it is of another run, of another version, or damaged.
        """
        if not self.path.exists():
            return None
        fix = "name another folder, or delete this one to begin again"
        try:
            state: object = torch.load(io.BytesIO(_intact(self.path)), weights_only=True, map_location="cpu")
        except Exception as error:  # torch's reader fails in many ways
            raise DataError(
                "a checkpoint that cannot be read",
                where=self.path,
                got=error,
                fix=fix,
                expected="a checkpoint of this run",
            ) from error
        if not isinstance(state, dict) or state.get("format") != FORMAT:
            raise DataError(
                "a checkpoint of another version",
                where=self.path,
                expected=FORMAT,
                fix=fix,
                got="another one",
            )
        run = state.get("run")
        if run != self.run:
            theirs = run if isinstance(run, dict) else {}
            differing = [name for name, digest in self.run.items() if theirs.get(name) != digest]
            raise DataError(
                "a checkpoint of another run",
                where=self.path,
                expected=f"the same {', '.join(self.run)}",
                got=f"another {' and another '.join(differing)}",
                fix=fix,
            )
        return state


def _intact(path: Path) -> bytes:
    """What stands behind the digest, where it is of it.

    Raises:
        ValueError: it is not, or there is none. OSError: it cannot be read.
    """
    whole = path.read_bytes()
    digest, data = whole[len(_HEAD) : _DATA], whole[_DATA:]
    if not whole.startswith(_HEAD) or digest != str(Digest.of(data)).encode():
        msg = "damaged, or a checkpoint of another version"
        raise ValueError(msg)
    return data
