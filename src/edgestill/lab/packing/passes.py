"""Steps from one ONNX model to another, each with what it needs and what it promises.

A `Pass` is asked three things: whether a model is one it can work on (`requires`), the new model (`apply`), and whether
the new one is what it promised (`ensures`). `through` runs a chain of them, and a broken promise names its pass.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edgestill.core.errors import EdgestillError, ModelError, within

if TYPE_CHECKING:
    from collections.abc import Iterable


class Pass(Protocol):
    """One step. Models are ONNX files as bytes; none is changed in place."""

    @property
    def name(self) -> str:
        """What it does, as a verb phrase."""
        ...

    def requires(self, model: bytes) -> None:
        """Looks whether it can work on the model.

        Raises:
            ModelError: it cannot; the text says why.
        """
        ...

    def apply(self, model: bytes) -> bytes:
        """The new model.

        Raises:
            ModelError: something in the model was not as it looked.
        """
        ...

    def ensures(self, before: bytes, after: bytes) -> None:
        """Checks the promise.

        Raises:
            ModelError: it does not hold.
        """
        ...


def through(model: bytes, passes: Iterable[Pass]) -> bytes:
    """The model after all the passes, in their order.

    Raises:
        ModelError: as a pass raises, or a library that it uses fails on; `where` begins with the pass.
    """
    for step in passes:
        with within(step.name):
            try:
                step.requires(model)
                after = step.apply(model)
                step.ensures(model, after)
            except EdgestillError:
                raise
            except Exception as error:
                raise ModelError(
                    "a step failed on this model",
                    where="model.onnx",
                    expected="a model that the step can read and change",
                    got=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}",
                    fix="export it in another way, or report it with the model",
                ) from error
        model = after
    return model
