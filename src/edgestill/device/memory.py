"""What an engine child keeps over restarts, in the home's folder `learned`.

    policy.json               the escalation policy's state, and the bundle it belongs to
    progress.json             what was noticed, how a head on trial stands, and the bundle they belong to
    privacy.json              what was spent on noise, by whatever bundle (device.sending); also in the home itself
    <bundle>.overlay          a learned head (learn.overlay)
    <backbone>-<window>.stats sums of one window (learn.statistics)
    <clips>-<window>.clipped  the same over clipped samples, by how they were clipped (device.sending)

Every file is replaced whole; one that is damaged or belongs to something else is passed over, and never served. Nothing
here is needed: a device that loses it all answers as its bundle does, and learns anew. Only a damaged `privacy.json` is no new
beginning: what was spent is not known then, so nothing is spent any more. Nor is a lost one, as long as the copy beside the device's identity
is there: who has lost both is another device.
"""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Final, final

from edgestill.core import bundle as bundles
from edgestill.core.errors import EdgestillError
from edgestill.core.jsonio import Fields, canonical, parse, parse_object
from edgestill.device.sending import Account
from edgestill.infer.decision import PolicyState
from edgestill.learn.overlay import MAX_BYTES as MAX_OVERLAY_BYTES
from edgestill.learn.overlay import Overlay
from edgestill.learn.statistics import MAX_BYTES as MAX_STATISTICS_BYTES
from edgestill.learn.statistics import Statistics

if TYPE_CHECKING:
    from pathlib import Path

    from edgestill.core.digest import Digest
    from edgestill.core.jsonio import JsonObject
    from edgestill.infer.policy import Policy

MAX_OVERLAYS: Final = 4
_POLICY: Final = "policy.json"
_PROGRESS: Final = "progress.json"
_PRIVACY: Final = "privacy.json"
_MOST_JSON: Final = 16_384


@final
class Memory:
    """A folder of learned things.

    Args:
        folder: made when first written to.
        bundle: digest of the bundle's manifest.
    """

    def __init__(self, folder: Path, bundle: Digest) -> None:
        self._folder = folder
        self._bundle = bundle
        self._written: dict[str, bytes] = {}

    def policy_state(self, policy: Policy) -> PolicyState:
        """The state to go on with: after a change of bundle a fresh one, but what was sent today stays sent."""
        data = _read(self._folder / _POLICY, _MOST_JSON)
        if data is None:
            return PolicyState.start(policy)
        try:
            fields = Fields(parse_object(data, where=_POLICY), _POLICY)
            before = PolicyState.from_bytes(canonical(fields.inner("state").unknown(())))
            if fields.digest("bundle") == self._bundle:
                return before
        except EdgestillError:
            return PolicyState.start(policy)
        return replace(PolicyState.start(policy), day=before.day, spent=before.spent, pace=before.pace)

    def keep_policy_state(self, state: PolicyState) -> None:
        """Writes the policy's state; PathError where it cannot be written."""
        value = {"bundle": str(self._bundle), "state": parse(state.to_bytes(), where=_POLICY)}
        self._write_news(_POLICY, canonical(value))

    def progress(self) -> JsonObject | None:
        """What `keep_progress` wrote for this bundle."""
        data = _read(self._folder / _PROGRESS, _MOST_JSON)
        if data is None:
            return None
        try:
            fields = Fields(parse_object(data, where=_PROGRESS), _PROGRESS)
            if fields.digest("bundle") == self._bundle:
                return fields.inner("progress").unknown(())
        except EdgestillError:
            return None
        return None

    def keep_progress(self, progress: JsonObject) -> None:
        """Writes how learning stands; PathError where it cannot be written."""
        self._write_news(_PROGRESS, canonical({"bundle": str(self._bundle), "progress": progress}))

    def account(self) -> Account | None:
        """What was spent on noise: nothing where there is no file, None where there is one that cannot be read.

        Of two files that differ the one in which more was spent is right: a kill came between them.
        """
        found = [Account()]
        for path in self._accounts:
            data = _read(path, _MOST_JSON)
            if data is None and not path.exists():
                continue
            try:
                found.append(Account.from_bytes(data or b""))
            except EdgestillError:
                return None
        return max(found, key=lambda one: (one.spent.rho, one.window))

    def keep_account(self, account: Account) -> None:
        """Writes what was spent; PathError where it cannot be written, and nothing may be sent then."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for path in self._accounts:
            bundles.replace(path, account.to_bytes())

    def overlay(self) -> Overlay | None:
        """The head that was adopted for this bundle."""
        data = _read(self._folder / self._overlay_name, MAX_OVERLAY_BYTES)
        try:
            return None if data is None else Overlay.from_bytes(data, bundle=self._bundle)
        except EdgestillError:
            return None

    def keep_overlay(self, overlay: Overlay) -> None:
        """Writes an adopted head, and forgets those of bundles long gone; PathError where it cannot be written."""
        self._write(self._overlay_name, overlay.to_bytes())
        by_age = sorted(self._folder.glob("*.overlay"), key=lambda path: path.stat().st_mtime)
        for path in by_age[:-MAX_OVERLAYS]:
            path.unlink(missing_ok=True)

    def drop_overlay(self) -> None:
        """Forgets the head that was adopted for this bundle."""
        (self._folder / self._overlay_name).unlink(missing_ok=True)

    def statistics(self) -> list[bytes]:
        """All windows kept, of whatever backbone."""
        files = sorted(self._folder.glob("*.stats"))
        return [data for path in files if (data := _read(path, MAX_STATISTICS_BYTES)) is not None]

    def keep_statistics(self, windows: list[bytes] | None) -> None:
        """Writes the windows that are remembered, and forgets the others; PathError where one cannot be written.

        Args:
            windows: all that are remembered; None leaves everything as it is.
        """
        if windows is None:
            return
        names = set()
        for data in windows:
            one = Statistics.from_bytes(data)
            name = f"{one.backbone.hex[:16]}-{one.window}.stats"
            self._write(name, data)
            names.add(name)
        for path in self._folder.glob("*.stats"):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def clipped(self, clips: Digest | None) -> list[bytes]:
        """The windows of samples that were clipped so; those clipped otherwise are forgotten, for nothing may use them any more."""
        mine = []
        for path in sorted(self._folder.glob("*.clipped")):
            if clips is not None and path.name.startswith(f"{clips.hex[:32]}-"):
                mine.append(path)
                continue
            with suppress(OSError):  # it is passed over at the next start, too
                path.unlink(missing_ok=True)
        return [data for path in mine if (data := _read(path, MAX_STATISTICS_BYTES)) is not None]

    def keep_clipped(self, clips: Digest, windows: list[bytes]) -> None:
        """Writes the windows of clipped samples, and forgets the others; PathError where one cannot be written."""
        names = set()
        for data in windows:
            name = f"{clips.hex[:32]}-{Statistics.from_bytes(data).window}.clipped"
            self._write_news(name, data)
            names.add(name)
        for path in self._folder.glob("*.clipped"):
            if path.name not in names:
                path.unlink(missing_ok=True)
                self._written.pop(path.name, None)

    @property
    def _accounts(self) -> tuple[Path, Path]:
        return self._folder.parent / _PRIVACY, self._folder / _PRIVACY

    @property
    def _overlay_name(self) -> str:
        return f"{self._bundle.hex[:32]}.overlay"

    def _write(self, name: str, data: bytes) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        bundles.replace(self._folder / name, data)

    def _write_news(self, name: str, data: bytes) -> None:
        """Writes what differs from the last time: a device that rests must not wear out its flash memory."""
        if self._written.get(name) != data:
            self._write(name, data)
            self._written[name] = data


def _read(path: Path, most: int) -> bytes | None:
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError:
        return None
    return data if len(data) <= most else None
