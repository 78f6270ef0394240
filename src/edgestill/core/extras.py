"""Parts that are installed only where they are needed."""

from __future__ import annotations

import importlib
import importlib.util
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
        raise _missing(error.name or module, module, extra, purpose) from error


def look_for(package: str, *, extra: str, purpose: str) -> None:
    """As `require`, but nothing is loaded, and what the package needs itself is not looked for.

    Args:
        package: top-level name, such as `zstandard`.
        extra: the extra of this distribution that carries it.
        purpose: what it is wanted for.

    Raises:
        MissingExtraError: it is not installed.
    """
    if importlib.util.find_spec(package) is None:
        raise _missing(package, package, extra, purpose)


def _missing(what: str, wanted: str, extra: str, purpose: str) -> MissingExtraError:
    return MissingExtraError(
        f"{what} is not installed; it is needed {purpose}",
        where=f"import {wanted}",
        fix=f'run: pip install "edgestill[{extra}]"',
    )
