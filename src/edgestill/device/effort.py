"""When a device may train, and how much of itself it may spend on that.

`may_train` is a pure function of the owner's settings (`Effort`), what the sensors say (`device.sensors.Readings`) and what was spent (`Spent`).

- A limit whose reading is not known refuses: what cannot be measured cannot be kept. The exceptions are stated: a
  machine that knows of no battery runs on mains and cannot run it down; and where energy is not counted, CPU seconds stand
  for it, each as `watts` joules, and `Spent.estimated` says so.
- A counter of energy counts the whole machine (or its processors), not the trainer alone: what it counts while training runs
  is charged to training. That is too much rather than too little.
- A day is one of UTC. A clock that goes back gives nothing back; where it is more than a day behind one it has shown before, a budget comes
  with every 24 hours of running instead, as for the data budget (`link.allowance`). So `spend` and `ran` want seconds of a
  monotonic clock.
- `No` says after how many seconds to look again, at most an hour: the clock may jump, and the world change.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any, Final, Self

from edgestill.core.errors import SettingError
from edgestill.core.units import format_duration, parse_duration, parse_share
from edgestill.link.allowance import MAX_DAY, SECONDS_PER_DAY

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgestill.core.jsonio import Fields, JsonObject
    from edgestill.device.sensors import Readings

LONGEST_WAIT: Final = 3600.0
SHORTEST_WAIT: Final = 1.0
_SOON: Final = 60.0
"""Seconds in which heat and load change."""
_LATER: Final = 600.0
"""Seconds in which a battery, or whether there is mains, may change."""
_LOAD_TIME: Final = 60.0
"""Time constant of the first load average (Linux, include/linux/sched/loadavg.h: EXP_1)."""
_HOURS: Final = 24.0
_MOST: Final = 1e12


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """What the owner allows.

    Attributes:
        seconds_per_day: of training, pauses not counted; 0 forbids it.
        core_share: of one processor core, above 0 up to 1, on average: after each spell of work follows a rest (`rest_after`).
        joules_per_day: None for any number.
        watts: of one busy core, where nothing counts energy: a CPU second then counts as so many joules.
        highest_celsius: of the hottest zone; None does not look at it.
        idle_seconds: since the last answer; 0 does not look at it.
        highest_load: load average of one minute per core, without what training itself adds; None does not look at it.
        only_on_mains: not on battery.
        lowest_battery: share of the charge, 0 to 1; None does not look at it.
        hours: of the day by the device's own time zone, from and to, each 0 up to 24; over midnight where the first is the larger;
            None for all day.
    """

    seconds_per_day: float = 1800.0
    core_share: float = 0.5
    joules_per_day: float | None = None
    watts: float = 5.0
    highest_celsius: float | None = None
    idle_seconds: float = 60.0
    highest_load: float | None = None
    only_on_mains: bool = True
    lowest_battery: float | None = None
    hours: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        start, end = self.hours or (0.0, _HOURS)
        is_right = (
            0 <= self.seconds_per_day <= SECONDS_PER_DAY
            and 0 < self.core_share <= 1
            and (self.joules_per_day is None or 0 <= self.joules_per_day <= _MOST)
            and 0 < self.watts <= 10_000
            and (self.highest_celsius is None or -50 <= self.highest_celsius <= 200)
            and 0 <= self.idle_seconds <= SECONDS_PER_DAY
            and (self.highest_load is None or 0 < self.highest_load <= 1_000)
            and (self.lowest_battery is None or 0 <= self.lowest_battery <= 1)
            and 0 <= start <= _HOURS
            and 0 <= end <= _HOURS
            and start != end
        )
        if not is_right:
            raise SettingError(
                "a setting of the effort to train is out of range",
                where="effort",
                expected="0 to 86400 s a day, a core's share above 0 up to 1, joules from 0, up to 10000 W, -50 to 200 °C,"
                " idle for 0 to 86400 s, a load above 0 up to 1000, a battery's share from 0 to 1, two different hours from 0 to 24",
                got=self,
                fix="correct it, or leave it out for the default",
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Reads what an owner writes, such as `time=30min,idle=60s,core=50%,mains=yes,hours=1-5,celsius=70`; what is left out is as usual.

        Raises:
            SettingError: a word that is none, or a value out of range.
        """
        given: dict[str, Any] = {}
        for part in filter(None, (one.strip() for one in text.split(","))):
            name, _, value = part.partition("=")
            if name not in _WORDS:
                raise SettingError(
                    "no setting of the effort to train",
                    where="effort",
                    expected=", ".join(_WORDS),
                    got=repr(part[:80]),
                    fix="write it like time=30min,idle=60s,mains=yes",
                )
            field, read = _WORDS[name]
            try:
                given[field] = read(value)
            except ValueError as error:
                raise SettingError(
                    "a value that cannot be read",
                    where=f"effort: {name}",
                    expected="a number, a duration such as 30min, a share such as 50%, yes or no, or hours such as 1-5",
                    got=repr(value[:80]),
                    fix="write it like time=30min,idle=60s,mains=yes",
                ) from error
        return cls(**given)

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError or SettingError where it is something else."""

        def maybe(name: str) -> float | None:
            return fields.number(name) if fields.has(name) else None

        hours = None
        if fields.has("hours"):
            inner = fields.inner("hours")
            hours = (inner.number("from"), inner.number("to"))
        return cls(
            seconds_per_day=fields.number("seconds_per_day"),
            core_share=fields.number("core_share"),
            joules_per_day=maybe("joules_per_day"),
            watts=fields.number("watts"),
            highest_celsius=maybe("highest_celsius"),
            idle_seconds=fields.number("idle_seconds"),
            highest_load=maybe("highest_load"),
            only_on_mains=fields.boolean("only_on_mains"),
            lowest_battery=maybe("lowest_battery"),
            hours=hours,
        )

    def as_json(self) -> JsonObject:
        """The settings as JSON."""
        value = asdict(self)
        value["hours"] = None if self.hours is None else {"from": self.hours[0], "to": self.hours[1]}
        return value


def _hours(text: str) -> tuple[float, float]:
    start, _, end = text.partition("-")
    return float(start), float(end)


def _yes(text: str) -> bool:
    if text not in {"yes", "no"}:
        raise ValueError(text)
    return text == "yes"


_WORDS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "time": ("seconds_per_day", parse_duration),
    "core": ("core_share", parse_share),
    "joules": ("joules_per_day", float),
    "watts": ("watts", float),
    "celsius": ("highest_celsius", float),
    "idle": ("idle_seconds", parse_duration),
    "load": ("highest_load", float),
    "mains": ("only_on_mains", _yes),
    "battery": ("lowest_battery", parse_share),
    "hours": ("hours", _hours),
}
"""What an owner writes -> the setting, and how it is read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spent:
    """What training has cost today; a value, to be kept over restarts.

    Attributes:
        day: that it is about, in days since 1970-01-01 UTC.
        seconds: of training.
        cpu_seconds: of the trainer.
        joules: measured or estimated.
        estimated: of them those that no counter counted.
        ran: seconds that a monotonic clock has counted since this day's budget was given.
    """

    day: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    joules: float = 0.0
    estimated: float = 0.0
    ran: float = 0.0

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads what `as_json` wrote; MessageError where it is something else."""
        return cls(
            day=fields.integer("day", most=MAX_DAY),
            seconds=fields.number("seconds", least=0, most=_MOST),
            cpu_seconds=fields.number("cpu_seconds", least=0, most=_MOST),
            joules=fields.number("joules", least=0, most=_MOST),
            estimated=fields.number("estimated", least=0, most=_MOST),
            ran=fields.number("ran", least=0, most=_MOST),
        )

    def as_json(self) -> JsonObject:
        """The value as JSON."""
        return asdict(self)

    def on(self, now: float) -> Self:
        """What is spent as it stands at `now`, in seconds since 1970: nothing where another day's budget has come."""
        day = min(max(int(now // SECONDS_PER_DAY), 0), MAX_DAY)
        is_later = day > self.day
        was_wrong = day < self.day - 1 and self.ran >= SECONDS_PER_DAY
        if not is_later and not was_wrong:
            return self
        # the later day stays: whoever sets the clock to it again has had its budget
        return type(self)(day=max(day, self.day))

    def after(self, seconds: float) -> Self:
        """What is spent when a monotonic clock has counted so many seconds more, training or not."""
        return replace(self, ran=min(self.ran + max(seconds, 0.0), 2.0 * SECONDS_PER_DAY))

    def spend(
        self, *, now: float, seconds: float, cpu_seconds: float, joules: float | None, watts: float
    ) -> Self:
        """What is spent after a spell of training.

        Args:
            now: seconds since 1970, at its end; all of it counts to that day.
            seconds: that it took, by a monotonic clock.
            cpu_seconds: of the trainer.
            joules: that were counted meanwhile (`device.sensors.joules_between`); None where they were not.
            watts: for which each CPU second stands then (`Effort.watts`).
        """
        today = self.on(now)
        cpu_seconds, guessed = max(cpu_seconds, 0.0), 0.0
        if joules is None:
            joules = guessed = cpu_seconds * watts
        return replace(
            today,
            seconds=min(today.seconds + max(seconds, 0.0), _MOST),
            cpu_seconds=min(today.cpu_seconds + cpu_seconds, _MOST),
            joules=min(today.joules + max(joules, 0.0), _MOST),
            estimated=min(today.estimated + guessed, _MOST),
        )


@dataclass(frozen=True, slots=True)
class Yes:
    """Training may run.

    Attributes:
        seconds: that are left of today's; look again earlier, for the rest changes by itself.
    """

    seconds: float


@dataclass(frozen=True, slots=True)
class No:
    """Training may not run now.

    Attributes:
        reason: for people.
        again: seconds after which to look again, from 1 to 3600.
    """

    reason: str
    again: float


def may_train(effort: Effort, readings: Readings, spent: Spent) -> Yes | No:
    """Whether training may run at the moment of these readings.

    Args:
        effort: what the owner allows.
        readings: of now.
        spent: as of the last spell; the day is turned here.
    """
    today = spent.on(readings.now)
    for refusal in (
        _over_budget(effort, readings, today),
        _at_another_hour(effort, readings),
        _busy(effort, readings),
        _hot(effort, readings),
        _on_battery(effort, readings),
    ):
        if refusal is not None:
            return No(refusal.reason, min(max(refusal.again, SHORTEST_WAIT), LONGEST_WAIT))
    return Yes(effort.seconds_per_day - today.seconds)


def rest_after(effort: Effort, cpu_seconds: float) -> float:
    """Seconds to rest after so many of work on one core, so that the share of a core is kept on average."""
    return max(cpu_seconds, 0.0) * (1 / effort.core_share - 1)


def _over_budget(effort: Effort, readings: Readings, today: Spent) -> No | None:
    tomorrow = SECONDS_PER_DAY - readings.now % SECONDS_PER_DAY
    if effort.seconds_per_day == 0:
        return No("training is not allowed", tomorrow)
    if today.seconds >= effort.seconds_per_day:
        return No(f"trained for {format_duration(today.seconds)} today", tomorrow)
    if effort.joules_per_day is not None and today.joules >= effort.joules_per_day:
        how = f", {today.estimated:.0f} of them by CPU seconds" if today.estimated else ""
        return No(f"{today.joules:.0f} J spent today{how}", tomorrow)
    return None


def _at_another_hour(effort: Effort, readings: Readings) -> No | None:
    if effort.hours is None:
        return None
    start, end = effort.hours
    hour = (readings.now + readings.utc_offset) % SECONDS_PER_DAY / 3600
    is_open = start <= hour < end if start < end else hour >= start or hour < end
    return None if is_open else No(f"only from {start:g} to {end:g} o'clock", (start - hour) % _HOURS * 3600)


def _busy(effort: Effort, readings: Readings) -> No | None:
    if effort.idle_seconds > 0:
        if readings.since_answer is None:
            return _unknown("when an answer was given last")
        if readings.since_answer < effort.idle_seconds:
            return No("answers are asked for", effort.idle_seconds - readings.since_answer)
    if effort.highest_load is None:
        return None
    if readings.load is None:
        return _unknown("the load")
    # the average lags behind: what training adds to it grows as 1 - e^(-t / minute), and is not held against training
    own = effort.core_share * -math.expm1(-max(readings.trained_for, 0.0) / _LOAD_TIME)
    load = (readings.load - own) / max(readings.cores, 1)
    return No(f"load {load:.2f} per core", _SOON) if load > effort.highest_load else None


def _hot(effort: Effort, readings: Readings) -> No | None:
    if effort.highest_celsius is None:
        return None
    if readings.celsius is None:
        return _unknown("the temperature")
    return No(f"{readings.celsius:.0f} °C", _SOON) if readings.celsius > effort.highest_celsius else None


def _on_battery(effort: Effort, readings: Readings) -> No | None:
    if effort.only_on_mains:
        if readings.on_mains is None:
            return _unknown("whether there is mains")
        if not readings.on_mains:
            return No("on battery", _LATER)
    if effort.lowest_battery is None or readings.has_battery is False:
        return None
    if readings.battery is None:
        return _unknown("the battery's charge")
    return (
        No(f"battery at {readings.battery:.0%}", _LATER) if readings.battery < effort.lowest_battery else None
    )


def _unknown(what: str) -> No:
    return No(f"{what} is not known", _LATER)
