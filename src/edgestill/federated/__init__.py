"""Our students and messages as Flower apps: sums, federated distillation, and weight averaging, on Flower's own engines.

What most users need is here by name, and loaded when it is asked for.

- Flower reports its use to its makers and asks them for newer versions unless two variables say otherwise, and reads one
  of them when it is imported. So this package, which is imported before it, sets both to no. What a user has set stays.
- Flower's own programs start without this package: `python -m edgestill.federated flower-superlink ...` starts them with
  the same choice.
"""

from __future__ import annotations

import importlib
import os
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from edgestill.federated.answers import Answers, Form, agreed
    from edgestill.federated.averaging import Averaging, averaging_client_app
    from edgestill.federated.client import client_app
    from edgestill.federated.node import Node, Samples
    from edgestill.federated.server import server_app
    from edgestill.federated.strategies import ClosedForm, FederatedDistillation, HeadFromProxy

__all__ = [
    "Answers",
    "Averaging",
    "ClosedForm",
    "FederatedDistillation",
    "Form",
    "HeadFromProxy",
    "Node",
    "Samples",
    "agreed",
    "averaging_client_app",
    "client_app",
    "server_app",
]

QUIET: Final = {"FLWR_TELEMETRY_ENABLED": "0", "FLWR_DISABLE_UPDATE_CHECK": "1"}
"""What Flower is told where the user has told it nothing."""

_PLACES: Final = {
    "Answers": "answers",
    "Averaging": "averaging",
    "ClosedForm": "strategies",
    "FederatedDistillation": "strategies",
    "Form": "answers",
    "HeadFromProxy": "strategies",
    "Node": "node",
    "Samples": "node",
    "agreed": "answers",
    "averaging_client_app": "averaging",
    "client_app": "client",
    "server_app": "server",
}
_NEED_FLOWER: Final = {"averaging", "client", "server", "strategies"}

for _name, _value in QUIET.items():
    os.environ.setdefault(_name, _value)


def __getattr__(name: str) -> object:
    """Loads Flower only when somebody asks for what needs it."""
    if name not in _PLACES:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    from edgestill.core.extras import require

    require("numpy", extra="federated", purpose="to learn together")
    if _PLACES[name] in _NEED_FLOWER:
        require("flwr", extra="federated", purpose="to take part in a federation")
    return getattr(importlib.import_module(f"{__name__}.{_PLACES[name]}"), name)
