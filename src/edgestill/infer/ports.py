"""What all engines share: what a model takes and gives, how many threads there may be, and one error of one line for whatever a runtime raises."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from edgestill.core.errors import EdgestillError, EngineError, SettingError

if TYPE_CHECKING:
    from collections.abc import Callable

Described = dict[str, tuple[str, tuple[int | None, ...]]]
"""Name -> (Open Inference Protocol datatype, shape with None where free)."""

_MAX_THREADS: Final = 256
_MAX_TEXT: Final = 300


class Ports:
    """What a model takes and gives.

    Args:
        inputs: of the model.
        outputs: of the model.
    """

    def __init__(self, inputs: Described, outputs: Described) -> None:
        self._inputs, self._outputs = inputs, outputs

    @property
    def inputs(self) -> Described:
        """Name -> (Open Inference Protocol datatype, shape with None where free)."""
        return self._inputs

    @property
    def outputs(self) -> Described:
        """As `inputs`, for what the model gives."""
        return self._outputs


class told:  # noqa: N801  # a context manager read as a verb
    """Whatever a runtime raises, as one error of one line; errors of ours pass.

    Args:
        runtime: its name.
        what: could not be done.
        expected: instead.
        fix: what to do about it.
        text: of an error of the runtime's.
    """

    def __init__(
        self,
        runtime: str,
        what: str,
        expected: str,
        *,
        fix: str,
        text: Callable[[Exception], str] | None = None,
    ) -> None:
        self._runtime, self._what, self._expected, self._fix = runtime, what, expected, fix
        self._text = text or _one_line

    def __enter__(self) -> None:
        """Nothing to do."""

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if not isinstance(error, Exception) or isinstance(error, EdgestillError):
            return
        raise EngineError(
            self._what, where=self._runtime, expected=self._expected, got=self._text(error), fix=self._fix
        ) from error


def check_threads(threads: int) -> None:
    """Raises SettingError where an engine cannot be made with so many."""
    if not 1 <= threads <= _MAX_THREADS:
        raise SettingError(
            "threads out of range",
            expected=f"1 to {_MAX_THREADS}",
            got=threads,
            where="threads",
            fix="leave it at 1 on a small device",
        )


def refused(runtime: str, expected: str, got: object) -> EngineError:
    """An input that the model does not take."""
    return EngineError(
        "the engine could not run the model",
        where=runtime,
        expected=expected,
        got=got,
        fix="give what the model takes, and nothing else",
    )


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:_MAX_TEXT]
