"""What runs on the server: sums or distillation, and the head that came of it in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from edgestill.federated import ClosedForm, FederatedDistillation, HeadFromProxy, Node, server_app
from flower_digits.data import LEARN, SHARED, part

if TYPE_CHECKING:
    from flwr.app import Context
    from flwr.serverapp.strategy import Result, Strategy


def strategy(context: Context) -> Strategy:
    """As the run's settings say."""
    told = context.run_config
    server = Node.open(str(told["bundle"]), part(LEARN))  # for its features; what it learned is not used
    if told["strategy"] == "sums":
        return ClosedForm(server.like, nodes=int(told["nodes"]))
    shared = part(SHARED).inputs
    distil = HeadFromProxy(server.features(shared), server.like)
    return FederatedDistillation(server.like, shared, distil, nodes=int(told["nodes"]))


def keep(played: Strategy, result: Result, context: Context) -> None:
    """Writes the arrays, and the counts of every round."""
    out = Path(str(context.run_config["out"]))
    for name, array in result.arrays.items():
        out.with_suffix(f".{name}.npy").write_bytes(array.data)
    told = {
        "trained": {number: dict(one) for number, one in result.train_metrics_clientapp.items()},
        "tried": {number: dict(one) for number, one in result.evaluate_metrics_clientapp.items()},
        "refused": [one.reason for one in played.refusals],
    }
    out.write_text(json.dumps(told))


app = server_app(strategy, keep, rounds=lambda context: int(context.run_config["rounds"]))
