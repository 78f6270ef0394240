"""One tree of errors, each with a stable code.

- Every error edgestill raises on purpose is an `EdgestillError`; anything else is a bug of ours.
- A class is a code: `code` never changes once released, and `docs/errors.md` has a heading for each.
- The text is one line that answers: what, where, expected (who says so), got, what to do.
- Where the same is to be done wherever an error arises, its class says it (`remedy`), and `fix` only what is more.
- Shapes are told in one notation, `[2, 3]`: a tuple of numbers is written so.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, ClassVar, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

_CODES: Final[dict[str, type[EdgestillError]]] = {}


class EdgestillError(Exception):
    """What went wrong, told so that a person can mend it.

    Args:
        what: the failure as a statement, without a full stop.
        where: the file, field, address or layer it was found at.
        expected: what would have been right, and who says so.
        got: what was there instead.
        fix: what to do about it; by default the class's `remedy`.
    """

    code: ClassVar[str] = "edgestill"
    remedy: ClassVar[str | None] = None

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        expected: object = None,
        got: object = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.expected = expected
        self.got = got
        self.fix = self.remedy if fix is None else fix
        super().__init__(what)

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if cls.code in _CODES:
            msg = f"error code {cls.code!r} is already {_CODES[cls.code].__name__}'s"
            raise TypeError(msg)
        _CODES[cls.code] = cls

    def __str__(self) -> str:
        parts = [_one_line(self.what)]
        if self.where is not None:
            parts.append(f"at {_one_line(self.where)}")
        if self.expected is not None:
            parts.append(f"expected {_one_line(self.expected)}")
        if self.got is not None:
            parts.append(f"got {_one_line(self.got)}")
        if self.fix is not None:
            parts.append(_one_line(self.fix))
        return f"[{self.code}] " + "; ".join(parts)

    def as_json(self) -> dict[str, str | None]:
        """The same facts for machines: the body of `--json` failures and of HTTP problem details."""
        return {
            "code": self.code,
            "what": self.what,
            "where": None if self.where is None else as_text(self.where),
            "expected": None if self.expected is None else as_text(self.expected),
            "got": None if self.got is None else as_text(self.got),
            "fix": self.fix,
        }


def codes() -> dict[str, type[EdgestillError]]:
    """Every code with its class, in the order of definition."""
    return dict(_CODES)


def as_text(value: object) -> str:
    """A value as errors tell it: a tuple of whole numbers is a shape, `[2, 3]`, whatever its numbers' class."""
    if (
        isinstance(value, tuple)
        and type(value).__str__ is object.__str__  # none that has its own spelling
        and all(hasattr(one, "__index__") for one in value)
    ):
        return f"[{', '.join(map(str, value))}]"
    return str(value)


@contextmanager
def within(place: object, *, fix: str | None = None) -> Iterator[None]:
    """Names the place before whatever an error raised in this context says of where it was.

    Args:
        place: such as a file; a last name that the error says too is said once.
        fix: what to do, where the error knows no more than its class's remedy.
    """
    try:
        yield
    except EdgestillError as error:
        error.where = place if error.where is None else _place(str(place), as_text(error.where))
        if error.fix == error.remedy:
            error.fix = fix or error.fix
        raise


def _place(outer: str, inner: str) -> str:
    last = outer.rpartition(": ")[2]
    if inner == last:
        return outer
    return f"{outer}: {inner.removeprefix(f'{last}: ')}"


def _one_line(value: object) -> str:
    text = " ".join(as_text(value).split())[:400]
    # Names and texts of strangers end up here: no escape sequence of theirs may reach a terminal or a log.
    return "".join(letter if letter.isprintable() else "\ufffd" for letter in text)


# What people ask for


class UnitError(EdgestillError):
    """A size, duration or share that cannot be read."""

    code = "unit-invalid"


class SettingError(EdgestillError):
    """A recipe, policy, option or configuration value outside its range, or an unknown key."""

    code = "setting-invalid"


class MissingExtraError(EdgestillError):
    """A part of edgestill that is not installed."""

    code = "extra-missing"


class PathError(EdgestillError):
    """A file or folder that cannot be read or written."""

    code = "path-unusable"


class PortError(EdgestillError):
    """A port that cannot be bound."""

    code = "port-in-use"


# What goes into a model


class ShapeError(EdgestillError):
    """An array of the wrong rank or shape."""

    code = "shape-mismatch"


class DtypeError(EdgestillError):
    """An array of the wrong element type."""

    code = "dtype-mismatch"


class NotFiniteError(EdgestillError):
    """NaN or infinity where numbers are needed."""

    code = "not-finite"


class DataError(EdgestillError):
    """Data that is missing, empty, of one class, or not what its checksum says."""

    code = "data-unusable"


class ClassCountError(EdgestillError):
    """Teacher, student or labels that disagree on the number of classes."""

    code = "class-count-mismatch"


class ModelError(EdgestillError):
    """A network that cannot be traced, coupled, exported or run."""

    code = "model-unsupported"


class TrainingError(EdgestillError):
    """Training that went astray."""

    code = "training-diverged"


# What is stored and sent


class BundleError(EdgestillError):
    """A bundle that breaks the format."""

    code = "bundle-invalid"


class BundleTruncatedError(EdgestillError):
    """A bundle that ends too early."""

    code = "bundle-truncated"


class BundleAlteredError(EdgestillError):
    """A blob whose bytes do not match its digest."""

    code = "bundle-altered"


class MessageError(EdgestillError):
    """Bytes from outside that do not form the message they should."""

    code = "message-invalid"
    remedy = "make it anew; if that does not help, compare the versions of both sides"


class TooLongError(EdgestillError):
    """A message from outside that is longer than its bound."""

    code = "message-too-long"
    remedy = "send less at once"


class StoreError(EdgestillError):
    """A blob that is missing, or a store that cannot keep one."""

    code = "store-failed"


class PatchError(EdgestillError):
    """A patch that cannot be applied, or whose result has another digest."""

    code = "patch-invalid"
    remedy = "fetch the whole file"


class OverlayError(EdgestillError):
    """A learned overlay that does not belong to the bundle, or is damaged."""

    code = "overlay-invalid"
    remedy = "nothing: the device serves the bundle as shipped, and learns anew"


# Trust


class TrustError(EdgestillError):
    """Metadata, a signature or a target that must not be trusted."""

    code = "trust-refused"
    remedy = "do not use it; compare the keys with those of the publisher"


class UnattendedError(EdgestillError):
    """An update that nobody looked at, which this device does not take."""

    code = "unattended-refused"
    remedy = "have the publisher list the release itself; or let the device's owner opt in"


class ReplayError(EdgestillError):
    """An assignment older than one already seen, of another epoch, or meant for another device."""

    code = "assignment-replayed"
    remedy = "nothing on the device; a hub that was restored from a backup needs a new key"


class ExpiredError(EdgestillError):
    """Metadata, a token or an assignment past its time."""

    code = "expired"
    remedy = "set the clock; if it is right, have it signed or made afresh"


class AccessError(EdgestillError):
    """A caller that is unknown, or may not do this."""

    code = "access-denied"


# The network


class UnreachableError(EdgestillError):
    """A peer that does not answer: no connection, or one that broke."""

    code = "peer-unreachable"
    remedy = "check the address, and whether the other side runs; try again"


class DeadlineError(EdgestillError):
    """An answer that did not come in time."""

    code = "deadline-passed"
    remedy = "try again, or allow more time"


class RefusedError(EdgestillError):
    """A peer that answered, and said no."""

    code = "peer-refused"
    remedy = "look up what the peer says, in its log too"


class RateError(EdgestillError):
    """A caller that asks more often than it may.

    Attributes:
        seconds: after which one more question is answered.
    """

    code = "rate-exceeded"
    remedy = "wait as long as the answer says, or ask about more inputs at once"
    seconds: float = 1.0


class SpentError(EdgestillError):
    """A data budget that is used up."""

    code = "budget-spent"
    remedy = "wait for the next period, or raise the budget"


# The fleet


class NotFoundError(EdgestillError):
    """A device, release, rollout or blob nobody knows."""

    code = "not-found"


class ConflictError(EdgestillError):
    """A change that the present state does not allow."""

    code = "state-conflict"


class ProbeError(EdgestillError):
    """A staged bundle that does not load, answers wrongly or too slowly."""

    code = "probe-failed"
    remedy = "keep what serves now; compare the hardware classes"


class EngineError(EdgestillError):
    """The inference engine, or the process that runs it, failed."""

    code = "engine-failed"
    remedy = "read the log; an agent starts the engine again by itself"


class AnswerNotFiniteError(EngineError):
    """A model that was given finite numbers and answers NaN or infinity."""

    code = "answer-not-finite"
    remedy = "is the input of the sensor's range? Otherwise look at the model: it overflows"


class EvidenceError(EdgestillError):
    """Evidence that is refused: too small, stale, of another backbone, or not finite."""

    code = "evidence-refused"
    remedy = "nothing for one device; if all are refused, compare the backbones"


class DemoError(EdgestillError):
    """A step of the demonstration that did not come to its end."""

    code = "demo-failed"


class BenchError(EdgestillError):
    """A benchmark that did not come to its end."""

    code = "bench-failed"
