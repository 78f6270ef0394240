"""A program: `edgestill demo` on the tiny world, so that a test need not wait for the real one to be trained.

It calls itself `watch`, so that the real other folds are measured beside it, in a process of their own, as always.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from demo_worlds import tiny_scenario

from edgestill.demo import walk

if TYPE_CHECKING:
    from edgestill.demo.scenario import Scenario


def tiny(_name: str, **_options: Any) -> Scenario:
    """The tiny world under the name of the real one."""
    return replace(tiny_scenario(), name="watch")


if __name__ == "__main__":
    from edgestill.cli.app import run

    walk.scenario_named = tiny  # type: ignore[assignment]  # fewer options than the real one
    run()
