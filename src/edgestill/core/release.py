"""Releases, rollouts and assignments: the nouns of delivery.

- A release is one version for all hardware classes. Its bundles are TUF targets signed by the publisher.
- A rollout brings a release to a fleet in stages, each guarded by gates.
- An assignment tells one device what to run. It is short-lived, counted upwards, and signed by the hub; a device
  installs only what is both assigned and listed by the publisher.
- A measurement tells one device what to time in idle hours, in the same way and counted by itself. It names a family of models
  (`core.family`), whose names on the list are of another pattern: neither can name what the other is for.
- A turn tells one device what to vote on, likewise. It names a set of samples (`core.proxyset`), whose names are of a third pattern.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Self

from edgestill.core.errors import SettingError

if TYPE_CHECKING:
    from edgestill.core.jsonio import Fields, JsonObject

TARGET: Final = r"[a-z0-9][a-z0-9_-]{0,63}/[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}/[a-z0-9_-]{1,60}\.esb"
"""Of a bundle on the publisher's list."""
TIMING: Final = r"timing/" + TARGET.removesuffix("b") + "t"
"""Of a family of models there."""
PROXY: Final = r"proxy/[a-z0-9][a-z0-9_-]{0,63}/[0-9]{1,9}\.[0-9]{1,9}\.[0-9]{1,9}/samples\.esp"
"""Of a set of samples there."""
LISTED: Final = f"{TARGET}|{TIMING}|{PROXY}"
"""Whatever a list may name."""

RolloutState = Literal["running", "paused", "done", "rolled-back"]


def target_name(name: str, version: str, hardware_class: str) -> str:
    """The TUF target path of a bundle: `watch/1.0.0/x86_64-vnni-onnxruntime.esb`.

    Raises:
        SettingError: a part that the pattern does not allow.
    """
    path = f"{name}/{version}/{hardware_class}.esb"
    if re.fullmatch(TARGET, path) is None:
        raise SettingError(
            "not a target name",
            expected="NAME/1.2.3/CLASS.esb",
            got=repr(path),
            where="target",
            fix="name it as the list of targets does",
        )
    return path


def timing_name(name: str, version: str, hardware_class: str) -> str:
    """The TUF target path of a family of models: `timing/watch/1.0.0/x86_64-vnni-onnxruntime.est`.

    Raises:
        SettingError: a part that the pattern does not allow.
    """
    path = f"timing/{name}/{version}/{hardware_class}.est"
    if re.fullmatch(TIMING, path) is None:
        raise SettingError(
            "not a name of a timing job",
            expected="timing/NAME/1.2.3/CLASS.est",
            got=repr(path),
            where="target",
            fix="name it as the list of targets does",
        )
    return path


def proxy_name(name: str, version: str) -> str:
    """The TUF target path of a set of samples: `proxy/watch/1.0.0/samples.esp`.

    Raises:
        SettingError: a part that the pattern does not allow.
    """
    path = f"proxy/{name}/{version}/samples.esp"
    if re.fullmatch(PROXY, path) is None:
        raise SettingError(
            "not a name of a proxy set",
            expected="proxy/NAME/1.2.3/samples.esp",
            got=repr(path),
            where="target",
            fix="name it as the list of targets does",
        )
    return path


MAX_COUNTER: Final = 2**40 - 1
"""Of an assignment, within an epoch of the keys that may sign one."""
MAX_EPOCH: Final = 2**13 - 1
"""Changes of these keys; so that places are whole numbers below 2^53."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Assignment:
    """What one device shall run.

    Attributes:
        device: the device's id.
        counter: grows with every change, up to `MAX_COUNTER`; a device refuses a smaller one than it has seen.
        target: the TUF target path of the bundle.
        expires: seconds since 1970; later the device keeps what it has and installs nothing.
        epoch: of the keys that sign it, up to `MAX_EPOCH`; see `trust.assignment`.
    """

    device: str
    counter: int
    target: str
    expires: int
    epoch: int = 0

    @property
    def place(self) -> int:
        """Where it stands among all assignments that its device ever gets: by epoch, then by counter."""
        return self.epoch * (MAX_COUNTER + 1) + self.counter

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads the signed part of an assignment."""
        fields.only(("device", "counter", "target", "expires", "epoch"))
        return cls(
            device=fields.text("device", at_most=64),
            counter=fields.integer("counter", least=1, most=MAX_COUNTER),
            target=fields.text("target", at_most=200, pattern=TARGET),
            expires=fields.integer("expires"),
            epoch=fields.integer("epoch", least=1, most=MAX_EPOCH) if fields.has("epoch") else 0,
        )

    def as_json(self) -> JsonObject:
        """The fields to sign."""
        said: JsonObject = {
            "device": self.device,
            "counter": self.counter,
            "target": self.target,
            "expires": self.expires,
        }
        return said | {"epoch": self.epoch} if self.epoch else said


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """What one device shall time.

    Attributes:
        device: the device's id.
        counter: grows with every job of this device, up to `MAX_COUNTER`, apart from the counter of `Assignment`.
        target: the TUF target path of the family of models; `measure` on the wire.
        expires: seconds since 1970; later the device begins and goes on with nothing.
        epoch: of the keys that sign it, up to `MAX_EPOCH`; see `trust.assignment`.
    """

    device: str
    counter: int
    target: str
    expires: int
    epoch: int = 0

    @property
    def place(self) -> int:
        """Where it stands among all jobs that its device ever gets: by epoch, then by counter."""
        return self.epoch * (MAX_COUNTER + 1) + self.counter

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads the signed part."""
        fields.only(("device", "counter", "measure", "expires", "epoch"))
        return cls(
            device=fields.text("device", at_most=64),
            counter=fields.integer("counter", least=1, most=MAX_COUNTER),
            target=fields.text("measure", at_most=200, pattern=TIMING),
            expires=fields.integer("expires"),
            epoch=fields.integer("epoch", most=MAX_EPOCH),
        )

    def as_json(self) -> JsonObject:
        """The fields to sign."""
        return {
            "device": self.device,
            "counter": self.counter,
            "measure": self.target,
            "expires": self.expires,
            "epoch": self.epoch,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """What one device shall vote on.

    Attributes:
        device: the device's id.
        counter: the number of the voting round at its hub, which only grows, up to `MAX_COUNTER`.
        target: the TUF target path of the samples; `vote` on the wire.
        expires: seconds since 1970; later the device begins nothing.
        epoch: of the keys that sign it, up to `MAX_EPOCH`; see `trust.assignment`.
    """

    device: str
    counter: int
    target: str
    expires: int
    epoch: int = 0

    @property
    def place(self) -> int:
        """Where it stands among all rounds that its device is ever told of: by epoch, then by number."""
        return self.epoch * (MAX_COUNTER + 1) + self.counter

    @classmethod
    def from_fields(cls, fields: Fields) -> Self:
        """Reads the signed part."""
        fields.only(("device", "counter", "vote", "expires", "epoch"))
        return cls(
            device=fields.text("device", at_most=64),
            counter=fields.integer("counter", least=1, most=MAX_COUNTER),
            target=fields.text("vote", at_most=200, pattern=PROXY),
            expires=fields.integer("expires"),
            epoch=fields.integer("epoch", most=MAX_EPOCH),
        )

    def as_json(self) -> JsonObject:
        """The fields to sign."""
        return {
            "device": self.device,
            "counter": self.counter,
            "vote": self.target,
            "expires": self.expires,
            "epoch": self.epoch,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """A step of a rollout.

    Attributes:
        share: of the fleet that has the release when the stage is complete, in (0, 1]; at least one device.
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise SettingError(
                "a stage's share is out of range",
                expected="more than 0, at most 1",
                got=self.share,
                where="stage: share",
                fix="write a share such as 0.2; the last stage is 1",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gates:
    """What must hold before the next stage begins; what breaks it pauses the rollout.

    Attributes:
        max_failed: share of the release's devices that may fall back, be silent or be slow.
        min_agreement: lower bound for the agreement with the teacher on audit samples; None asks for none.
        min_audits: audit samples before a stage is complete where agreement is asked for, at least 1.
        silent_after: seconds after which a device that reports nothing before it has confirmed counts as failed.
        max_errors: share of inputs on which the engine may fail; None asks for none.
        max_escalated: share of answers for which a larger model may be asked, audits included; None asks for none.
        min_answers: answers of all devices before a stage is complete where errors, escalations or latency are bounded, and of one device
            before its latency counts; at least 1.
        max_latency: seconds within which 95 of 100 answers must come, as a device last told it; one that is slower counts
            as failed. None asks for none.
    """

    max_failed: float = 0.0
    min_agreement: float | None = None
    min_audits: int = 20
    silent_after: float = 3600.0
    max_errors: float | None = None
    max_escalated: float | None = None
    max_latency: float | None = None
    min_answers: int = 20

    def __post_init__(self) -> None:
        least = min(self.min_audits, self.min_answers)
        if not 0 <= self.max_failed < 1 or least < 1 or not self.silent_after > 0:
            raise SettingError(
                "a gate is out of range",
                expected="max_failed in [0, 1), min_audits and min_answers >= 1, silent_after > 0 s",
                got=self,
                where="gates",
                fix="correct the value, or leave it out for the default",
            )
        for name in ("min_agreement", "max_errors", "max_escalated", "max_latency"):
            value, most = getattr(self, name), 1e6 if name == "max_latency" else 1
            if value is not None and not 0 <= value <= most:
                raise SettingError(
                    "a gate is out of range",
                    expected=f"{name} in [0, {most:g}]",
                    got=value,
                    where="gates",
                    fix="correct the value, or leave it out for the default",
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Rollout:
    """How a release reaches the fleet.

    Attributes:
        release: `NAME/VERSION`.
        stages: with growing shares; the last is 1.
        gates: guard every stage.
    """

    release: str
    stages: tuple[Stage, ...]
    gates: Gates

    def __post_init__(self) -> None:
        shares = [stage.share for stage in self.stages]
        if not shares or shares != sorted(set(shares)) or shares[-1] != 1:
            raise SettingError(
                "the stages do not form a rollout",
                expected="growing shares that end with 1",
                got=shares,
                where="stages",
                fix="order them by share, and let the last be 1",
            )
