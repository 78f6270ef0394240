"""Makes an archive of the one that serves and a patch.

It is a module of its own because it is the only one of the supervisor's that unpacks: the codec and the compressor's library are loaded
when the first patch has come, and an agent that has nothing to do holds neither.
"""

from __future__ import annotations

import io
import logging
import os
from typing import TYPE_CHECKING

from edgestill.core import bundle
from edgestill.core.errors import PathError
from edgestill.delta.codec import apply

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.device.state import Target

log = logging.getLogger(__name__)


def patch(base: Path, hint: bytes, *, to: Path, target: Target) -> None:
    """Writes the patched archive; under its name only once it is whole and synced.

    Args:
        base: the archive that the patch is said to be for.
        hint: the patch; nothing in it is believed.
        to: where the new archive goes.
        target: what must come out.

    Raises:
        PatchError: the patch does not lead from the base to the target.
        PathError: one cannot be read, or the other not be written.
    """
    unfinished = to.with_name(f".{to.name}.patched")
    try:
        with base.open("rb") as old, unfinished.open("wb") as out:
            apply(old, io.BytesIO(hint), out, expected=target.digest, max_size=target.size)
            out.flush()
            os.fsync(out.fileno())
        unfinished.replace(to)
        bundle.sync_folder(to.parent)
        log.info("patched %s: %d of %d bytes", target.release, len(hint), target.size)
    except OSError as error:
        raise PathError(
            "a patch cannot be applied here",
            where=to,
            got=error.strerror,
            expected="a base that can be read, and room to write the new file",
            fix="check the disk",
        ) from error
    finally:
        unfinished.unlink(missing_ok=True)
