"""What a device sends of its sums, as its bundle's policy says: in which coordinates, rounded how, with which noise.

- Without noise the current window is sent again whenever it has grown by a quarter; the newest counts.
- With noise a window is sent *once*, when it is over: each time it is sent is paid for. Its samples were clipped one by one.
- It is paid before it is sent: the account and the window's number are on the disk first. A kill in between loses a message, never
  a part of the account. Windows are sent in order, whatever their backbone, so that none is paid for twice.
- A clock that stood in the future must not block sending until then: the account's window is turned back to the current one, and what was
  summed of later ones is forgotten, so that nothing is sent twice.
- When the account is spent, nothing is sent any more. The account belongs to the device, not to the bundle: another bundle with the
  same policy goes on where the last one stopped. An account that cannot be read counts as spent.

What is learned on the device itself has no noise.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Final, Self, Union, final

from edgestill.core.digest import Digest
from edgestill.core.errors import EvidenceError
from edgestill.core.jsonio import Fields, canonical, parse_object
from edgestill.learn.coordinates import Coordinates
from edgestill.learn.privacy import Mechanism, Spent, SystemNormals, multiplier_for

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edgestill.core.jsonio import JsonObject
    from edgestill.core.sharing import Noise, Sharing
    from edgestill.learn.statistics import Statistics

Source = Union["np.random.Generator", SystemNormals]
_ROUNDING: Final = 1e-6
"""By which the last message may pass the budget's epsilon: shares of it are rounded."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """What a device has spent on noise.

    Attributes:
        spent: by all messages.
        window: the newest that was sent; -1 before the first.
    """

    spent: Spent = field(default_factory=Spent)
    window: int = -1

    @classmethod
    def from_bytes(cls, data: bytes) -> Self:
        """Reads what `to_bytes` wrote; MessageError where it is something else."""
        fields = Fields(parse_object(data, where="privacy.json"), "privacy.json")
        return cls(spent=Spent.from_fields(fields.inner("spent")), window=fields.integer("window", least=-1))

    def to_bytes(self) -> bytes:
        """The file."""
        return canonical({"spent": self.spent.as_json(), "window": self.window})


@final
class Sender:
    """Makes messages for one bundle.

    Args:
        reference: the bundle's statistics, which say what the coordinates are.
        sharing: the policy's.
        account: what was spent; None where it cannot be read.
        rng: where noise comes from.

    Raises:
        EvidenceError, SettingError: the reference has no such coordinates.
    """

    def __init__(
        self, reference: Statistics, sharing: Sharing, *, account: Account | None, rng: Source
    ) -> None:
        self._sharing = sharing
        self._coordinates = None if sharing.kept == 0 else Coordinates.of(reference, sharing.kept)
        self._mechanism = None if sharing.noise is None else _mechanism(sharing.noise)
        self._account = account
        self._rng = rng

    @property
    def is_private(self) -> bool:
        """Whether noise is added."""
        return self._mechanism is not None

    @property
    def account(self) -> Account | None:
        """What was spent."""
        return self._account

    @property
    def clips(self) -> Digest | None:
        """Names how samples are clipped: sums of samples that were clipped otherwise must not be sent. None without noise."""
        noise = self._sharing.noise
        if noise is None or self._coordinates is None:
            return None
        told: JsonObject = {
            "coordinates": str(self._coordinates.backbone),
            "norm": noise.norm,
            "weight": noise.weight,
        }
        return Digest.of(canonical(told))

    def prepared(self, features: NDArray[np.floating], weight: float) -> tuple[NDArray[np.floating], float]:
        """A sample's features `[D]` and weight as they may be sent: clipped where noise is added.

        Clipped features are float64: rounded to float32 they could be longer again, by more than is left free.
        """
        noise = self._sharing.noise
        if noise is None or self._coordinates is None:
            return features, weight
        near = self._coordinates.clipped(features[None], noise.norm * (1 - _ROUNDING))[0]
        return near, min(weight, noise.weight)

    def may_pay(self) -> bool:
        """Whether the budget holds another message."""
        noise, account = self._sharing.noise, self._account
        if noise is None or self._mechanism is None:
            return True
        if account is None:
            return False
        after = account.spent.after(self._mechanism)
        return after.epsilon(noise.delta) <= noise.epsilon * (1 + _ROUNDING)

    def turned_back(self, window: int) -> Account | None:
        """The account where a window later than the current one was sent, to be kept; None where none was.

        The clock stood in the future then. Nothing of the current window or before it is sent: of those some were.
        """
        if self._account is None or self._account.window <= window:
            return None
        self._account = replace(self._account, window=window)
        return self._account

    def pay(self, window: int) -> Account:
        """The account once the window is sent, to be kept before it is.

        Raises:
            EvidenceError: the budget is spent, or the window was sent.
        """
        if self._mechanism is None or self._account is None or not self.may_pay():
            raise EvidenceError(
                "the privacy budget is spent", where="statistics", expected="room for a message", got="none"
            )
        if window <= self._account.window:
            raise EvidenceError(
                "a window that was sent",
                where="statistics",
                expected=f"above {self._account.window}",
                got=window,
            )
        self._account = Account(spent=self._account.spent.after(self._mechanism), window=window)
        return self._account

    def message(self, statistics: Statistics) -> bytes:
        """The message of a device's sums; with noise it must have been paid for.

        Raises:
            EvidenceError: they do not fit into a message.
        """
        one = statistics if self._coordinates is None else self._coordinates.project(statistics)
        if self._mechanism is not None:
            one = self._mechanism.noisy(one, self._rng)
        try:
            return one.to_bytes(self._sharing.encoding)
        except EvidenceError:  # too long, or too large for the element type
            return one.to_bytes("float16")

    def key(self, statistics: Statistics) -> str:
        """Under which the newest message waits: its backbone, as it is sent, and its window."""
        backbone = statistics.backbone if self._coordinates is None else self._coordinates.backbone
        return f"{backbone.hex[:32]}-{statistics.window}"

    def told(self) -> JsonObject | None:
        """The account for people: what was spent, of what; None where no noise is added.

        Epsilon is of what messages say, given that they exist: that a window had enough samples to be sent is not hidden.
        """
        noise, mechanism = self._sharing.noise, self._mechanism
        if noise is None or mechanism is None:
            return None
        account = self._account
        return {
            "unit": noise.unit,
            "delta": noise.delta,
            "epsilon_of_each": Spent().after(mechanism).epsilon(noise.delta),
            "epsilon_allowed": noise.epsilon,
            "epsilon_spent": None if account is None else account.spent.epsilon(noise.delta),
            "messages": None if account is None else account.spent.messages,
            "may_send": self.may_pay(),
        }


def _mechanism(noise: Noise) -> Mechanism:
    return Mechanism(
        unit=noise.unit,
        norm=noise.norm,
        multiplier=multiplier_for(noise.epsilon, noise.delta, messages=noise.messages),
        weight=noise.weight,
        most=noise.most,
    )
