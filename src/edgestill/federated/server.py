"""A Flower server that runs one of the strategies."""

from __future__ import annotations

from typing import TYPE_CHECKING

from flwr.app import ArrayRecord
from flwr.serverapp import Grid, ServerApp

if TYPE_CHECKING:
    from collections.abc import Callable

    from flwr.app import Context
    from flwr.serverapp.strategy import Result, Strategy


def server_app(
    make: Callable[[Context], Strategy],
    done: Callable[[Strategy, Result, Context], None],
    *,
    rounds: int | Callable[[Context], int] = 1,
    initial: Callable[[Context], ArrayRecord] | None = None,
    timeout: float = 3600.0,
) -> ServerApp:
    """A server that plays some rounds of a strategy and hands over the result.

    Args:
        make: the strategy; `context.run_config` holds what the run was started with.
        done: takes the strategy, Flower's result and the context, and keeps what is wanted of them.
        rounds: to play, or what tells their number; one is all that `ClosedForm` needs.
        initial: the arrays to begin with: a network's weights for averaging, none for the others.
        timeout: seconds that a round waits for replies.
    """
    app = ServerApp()

    @app.main()  # type: ignore[untyped-decorator]  # Flower is not where types are checked
    def main(grid: Grid, context: Context) -> None:
        strategy = make(context)
        arrays = ArrayRecord() if initial is None else initial(context)
        played = rounds if isinstance(rounds, int) else rounds(context)
        done(strategy, strategy.start(grid, arrays, num_rounds=played, timeout=timeout), context)

    return app
