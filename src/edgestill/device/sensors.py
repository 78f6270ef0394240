"""What a machine tells of itself: temperature, mains, battery, load and energy, from files of the Linux kernel.

    /sys/class/thermal/thermal_zone*/temp           thousandths of a degree Celsius
    /sys/class/power_supply/*/type,online,...       mains, USB, batteries
    /sys/class/powercap/*/energy_uj                 microjoules, counting up and round
    /proc/loadavg                                   runnable tasks, averaged

- What is not there, cannot be read or makes no sense is not known; no reading raises an error.
- The root folder is an argument, so tests read a tree of real files.
- Other systems have none of these files: there everything is unknown, and what needs it refuses (`device.effort`).
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, final

from edgestill.core.files import open_plain

if TYPE_CHECKING:
    from edgestill.core.protocols import Clock

MAX_ENTRIES: Final = 256
_MAX_BYTES: Final = 128
_COLDEST, _HOTTEST = -50.0, 200.0
"""Degrees Celsius; sensors that are off tell others."""
_MAX_LOAD: Final = 1e6
_BATTERY: Final = "Battery"


@dataclass(frozen=True, slots=True)
class Zone:
    """A counter of energy.

    Attributes:
        name: such as `package-0`.
        microjoules: counted.
        wraps_after: the count goes from about this to 0; 0 where it is not known.
    """

    name: str
    microjoules: int
    wraps_after: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Readings:
    """What is known at one moment; None for what is not.

    Attributes:
        now: seconds since 1970.
        utc_offset: seconds that local time is ahead of UTC.
        since_answer: seconds since the device last answered; infinity if never.
        trained_for: seconds for which training has run without a longer pause; 0 while it does not.
        load: average number of runnable tasks over one minute.
        cores: that they share.
        celsius: of the hottest zone.
        on_mains: whether the machine is fed from outside; true where it knows of no battery.
        has_battery: of its own.
        battery: share of the charge, 0 to 1, of the emptiest.
        energy: what counts it, without zones that lie within another; empty where nothing does.
    """

    now: float
    utc_offset: float = 0.0
    since_answer: float | None = None
    trained_for: float = 0.0
    load: float | None = None
    cores: int = 1
    celsius: float | None = None
    on_mains: bool | None = None
    has_battery: bool | None = None
    battery: float | None = None
    energy: tuple[Zone, ...] = ()


@final
class Sensors:
    """Reads a machine.

    Args:
        clock: tells the time.
        root: where `sys` and `proc` are.
        cores: of the machine; by default those that this process may use.
    """

    def __init__(self, clock: Clock, *, root: Path = Path("/"), cores: int | None = None) -> None:
        self._clock = clock
        self._root = root
        self._cores = cores or _usable_cores()

    def read(self, *, since_answer: float | None, trained_for: float = 0.0) -> Readings:
        """What is known now.

        Args:
            since_answer: seconds since the device last answered, infinity if never; None if the caller does not know.
            trained_for: seconds for which training has run.
        """
        now = self._clock.now()
        supplies = self._supplies()
        return Readings(
            now=now,
            utc_offset=_utc_offset(now),
            since_answer=since_answer,
            trained_for=trained_for,
            load=self._load(),
            cores=self._cores,
            celsius=self._celsius(),
            on_mains=None if supplies is None else _on_mains(supplies),
            has_battery=None if supplies is None else any(one.kind == _BATTERY for one in supplies),
            battery=None if supplies is None else _charge(supplies),
            energy=self.energy(),
        )

    def energy(self) -> tuple[Zone, ...]:
        """The counters of energy alone: to be read before and after a spell of training."""
        zones: dict[str, Zone] = {}
        for folder in self._entries("powercap"):
            if (
                folder.name.count(":") != 1
            ):  # intel-rapl is no zone, and intel-rapl:0:0 lies within intel-rapl:0
                continue
            name, count = _text(folder / "name"), _number(folder / "energy_uj")
            if name is not None and count is not None and count >= 0:
                # the same package may be shown by two drivers: intel-rapl:0 and intel-rapl-mmio:0
                zones.setdefault(
                    name, Zone(name, count, max(_number(folder / "max_energy_range_uj") or 0, 0))
                )
        # psys is the whole platform, the packages included
        return (zones["psys"],) if "psys" in zones else tuple(zones.values())

    def _load(self) -> float | None:
        text = _text(self._root / "proc" / "loadavg")
        try:
            load = float(text.split()[0]) if text else -1.0
        except ValueError:
            return None
        return load if 0 <= load <= _MAX_LOAD else None

    def _celsius(self) -> float | None:
        zones = [one for one in self._entries("thermal") if one.name.startswith("thermal_zone")]
        degrees = [value / 1000 for one in zones if (value := _number(one / "temp")) is not None]
        return max((one for one in degrees if _COLDEST <= one <= _HOTTEST), default=None)

    def _supplies(self) -> list[_Supply] | None:
        """What feeds the machine; None where its kernel does not tell."""
        if not (self._root / "sys" / "class").is_dir():
            return None
        return [
            _Supply(
                kind=kind,
                online=_number(one / "online"),
                capacity=_number(one / "capacity"),
                status=_text(one / "status") or "Unknown",
            )
            for one in self._entries("power_supply")
            if (kind := _text(one / "type")) is not None
            and _text(one / "scope") != "Device"  # a mouse's battery
            and _number(one / "present") != 0  # an empty bay
        ]

    def _entries(self, kind: str) -> list[Path]:
        try:
            return sorted((self._root / "sys" / "class" / kind).iterdir())[:MAX_ENTRIES]
        except OSError:
            return []


@dataclass(frozen=True, slots=True)
class _Supply:
    kind: str
    online: int | None
    capacity: int | None
    status: str


def joules_between(before: tuple[Zone, ...], after: tuple[Zone, ...]) -> float | None:
    """Joules counted between two readings; None where nothing counts, or what counts has changed.

    A count that is smaller than before has gone round, once: read it more often than it can go round twice (that of an
    Intel package goes round after 262 kJ, 40 minutes at 100 W).
    """
    if not before or [one.name for one in before] != [one.name for one in after]:
        return None
    total = 0
    for old, new in zip(before, after, strict=True):
        counted = new.microjoules - old.microjoules
        if counted < 0:
            counted += new.wraps_after
        if counted < 0:  # and where it goes round is not known, or another
            return None
        total += counted
    return total / 1e6


def _on_mains(supplies: list[_Supply]) -> bool | None:
    """Whether anything feeds the machine from outside."""
    batteries = [one for one in supplies if one.kind == _BATTERY]
    feeds = [one.online for one in supplies if one.kind != _BATTERY and one.online is not None]
    if any(feeds) or not batteries:
        return True
    states = {one.status for one in batteries}
    if "Discharging" in states:
        return False
    if states & {"Charging", "Full", "Not charging"}:
        return True
    return False if feeds else None


def _charge(supplies: list[_Supply]) -> float | None:
    """Of the emptiest battery; None where one does not tell."""
    charges = [one.capacity for one in supplies if one.kind == _BATTERY]
    known = [one / 100 for one in charges if one is not None and 0 <= one <= 100]
    return min(known) if known and len(known) == len(charges) else None


def _text(path: Path) -> str | None:
    try:
        with open_plain(path) as file:
            data = file.read(_MAX_BYTES + 1)
        return data.decode("ascii").strip() if len(data) <= _MAX_BYTES else None
    except (OSError, UnicodeDecodeError):
        return None


def _number(path: Path) -> int | None:
    text = _text(path)
    try:
        return None if text is None else int(text)
    except ValueError:
        return None


def _utc_offset(now: float) -> float:
    try:
        return float(time.localtime(now).tm_gmtoff)
    except (OverflowError, OSError, ValueError):
        return 0.0


def _usable_cores() -> int:
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on this system
        return os.cpu_count() or 1
