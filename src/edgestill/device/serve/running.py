"""A served model, from the first connection to the last answer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import edgestill
from edgestill.device.serve.server import app_of, serve
from edgestill.infer.serving.app import MAX_BODY
from edgestill.infer.serving.descriptions import About
from edgestill.infer.serving.endpoint import Endpoint

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from edgestill.core.protocols import Clock
    from edgestill.device.serve.listening import Listening
    from edgestill.infer.serving.limits import Rate
    from edgestill.infer.serving.served import Served
    from edgestill.infer.serving.waiting import Capacity

NAME: Final = "edgestill-serve"


def endpoint_of(served: Served, listening: Listening, *, capacity: Capacity, clock: Clock) -> Endpoint:
    """The endpoint of one model."""
    about = About(name=NAME, version=edgestill.__version__, needs_token=bool(listening.tokens))
    return Endpoint([served], about=about, capacity=capacity, clock=clock)


def run(
    served: Served,
    listening: Listening,
    *,
    capacity: Capacity,
    rate: Rate,
    clock: Clock,
    ready: Callable[[str], object],
    archives: Path | None = None,
) -> None:
    """Serves a model until SIGTERM or SIGINT.

    Args:
        served: the model.
        listening: where, and who may connect.
        capacity: how much it takes on.
        rate: how often one caller may ask.
        clock: of the machine.
        ready: is told the address once it listens.
        archives: folder of the slots whose bundles are handed out as well; None hands out none.

    Raises:
        PortError: the port cannot be bound.
    """
    endpoint = endpoint_of(served, listening, capacity=capacity, clock=clock)
    app = app_of(endpoint, listening, rate=rate, clock=clock, max_body=MAX_BODY, archives=archives)
    serve(app, endpoint, listening, ready=ready)
