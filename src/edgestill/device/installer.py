"""Carries out the slow steps of an installation, one at a time, and says as an event how each ended.

- Every step may be repeated: an archive that is there and whole is not fetched again, a record is written again.
- What may pass (no network, a busy hub) is `Hindered`; what may pass but must not go on for ever (a full disk, bytes
  with another digest) is `Hindered` and counted; what stays wrong (not a bundle, another hardware class, wrong golden
  answers) is `Failed`.
- Nothing here touches the slot that serves, except to read a patch's base.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Protocol, final

from edgestill.core.bundle import Bundle
from edgestill.core.errors import (
    BundleError,
    DeadlineError,
    EdgestillError,
    NotFoundError,
    PathError,
    RefusedError,
    SpentError,
    UnreachableError,
)
from edgestill.core.manifest import POLICY
from edgestill.device.events import (
    Clear,
    Confirm,
    Download,
    Downloaded,
    Failed,
    Hindered,
    Probe,
    Probed,
    Stage,
    Staged,
    Verified,
    Verify,
)
from edgestill.device.slots import holds
from edgestill.infer.policy import Policy

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.device.events import Event, Work
    from edgestill.device.slots import Slots
    from edgestill.device.state import SlotName, Target

log = logging.getLogger(__name__)

_PASSING = (UnreachableError, DeadlineError, RefusedError, SpentError, NotFoundError)
_COUNTED = (PathError, OSError)


class Fetch(Protocol):
    """Brings an archive to a device."""

    def __call__(self, target: Target, *, to: Path, base: tuple[Target, Path] | None) -> None:
        """Writes the target to `to`, whole and with its digest, or raises.

        Args:
            target: what the publisher listed.
            to: where; what is there is replaced.
            base: a bundle this device has, and where: a patch may start from it.
        """
        ...


@final
class Installer:
    """Carries out `Work`, and the two small chores of the slots.

    Args:
        slots: opened.
        fetch: brings archives; raises the errors of `link`.
        probe: runs an archive's golden inputs; ProbeError and others where it fails.
        hardware_class: of this device.
    """

    def __init__(
        self,
        slots: Slots,
        *,
        fetch: Fetch,
        probe: Callable[[SlotName, Target, Path], None],
        hardware_class: str,
    ) -> None:
        self._slots = slots
        self._fetch = fetch
        self._probe = probe
        self._hardware_class = hardware_class

    def perform(self, work: Work | Confirm | Clear) -> Event | None:
        """Does it.

        Returns:
            How it ended; None for a chore, whose failure is only logged: the next installation clears up.
        """
        if isinstance(work, Confirm | Clear):
            self._chore(work)
            return None
        try:
            return self._do(work)
        except _PASSING as error:
            return Hindered(work.target.digest, str(error), counts=False)
        except _COUNTED as error:
            return Hindered(work.target.digest, str(error), counts=True)
        except EdgestillError as error:
            if isinstance(work, Download):
                return Hindered(work.target.digest, str(error), counts=True)
            return Failed(work.target.digest, str(error))
        except Exception as error:
            log.exception("a bug")
            return Hindered(work.target.digest, f"a bug: {error!r}", counts=True)

    def _do(self, work: Work) -> Event:
        target = work.target
        archive = self._slots.archive(work.slot, target)
        match work:
            case Download(slot, _, base):
                if not holds(archive, target):
                    other: SlotName = "b" if slot == "a" else "a"
                    known = None if base is None else (base, self._slots.archive(other, base))
                    self._fetch(target, to=archive, base=known)
                return Downloaded(target.digest)
            case Verify():
                verify(archive, target, hardware_class=self._hardware_class)
                return Verified(target.digest)
            case Stage(slot, _, counter):
                self._slots.stage(slot, target, counter)
                return Staged(target.digest)
            case Probe(slot):
                self._probe(slot, target, archive)
                return Probed(target.digest)

    def _chore(self, chore: Confirm | Clear) -> None:
        try:
            if isinstance(chore, Clear):
                self._slots.clear(chore.slot)
            else:
                self._slots.confirm(chore.slot)
        except (EdgestillError, OSError) as error:
            log.warning("%s", error)


def verify(archive: Path, target: Target, *, hardware_class: str) -> None:
    """Checks that an archive is the target, is whole, and is meant for this device.

    Raises:
        BundleError and its relatives: it is not.
        MessageError, SettingError: its policy cannot be read.
        PathError: the archive cannot be read.
    """
    if not holds(archive, target):
        raise BundleError(
            "the archive is not the target",
            where=archive,
            expected=target.digest,
            got="other bytes",
            fix="nothing: it is fetched again",
        )
    bundle = Bundle.open(archive)
    bundle.verify()
    manifest = bundle.manifest
    named = f"{manifest.name}/{manifest.version}/{manifest.hardware_class}.esb"
    if named != target.name:
        raise BundleError(
            "a bundle under another name",
            where=archive,
            expected=target.name,
            got=named,
            fix="publish it under its own name",
        )
    if manifest.hardware_class not in {hardware_class, "any"}:
        raise BundleError(
            "a bundle for another hardware class",
            where=archive,
            expected=f"{hardware_class} or any",
            got=manifest.hardware_class,
            fix="publish one for this class",
        )
    Policy.from_bytes(bundle.read(POLICY))
