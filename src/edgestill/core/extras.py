"""Parts that are installed only where they are needed."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

from edgestill.core.errors import MissingExtraError

if TYPE_CHECKING:
    from types import ModuleType


def require(module: str, *, extra: str, purpose: str) -> ModuleType:
    """Imports `module`, or says which `pip install` line brings it.

    Args:
        module: dotted name, such as `onnxruntime`.
        extra: the extra of this distribution that carries it, such as `device`.
        purpose: what it is wanted for, as in "to run a model".

    Raises:
        MissingExtraError: the module, or one it needs, is not installed.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"{error.name} is not installed; it is needed {purpose}",
            where=f"import {module}",
            fix=f'run: pip install "edgestill[{extra}]"',
        ) from error
