"""What runs on a client: `--node-config 'bundle="/path/digits.esb" client=0 clients=2'`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgestill.federated import Node, client_app
from flower_digits.data import TEST, of_client, part

if TYPE_CHECKING:
    from flwr.app import Context


def node(context: Context) -> Node:
    """This client's bundle and samples."""
    told = context.node_config
    mine = of_client(int(told["client"]), int(told["clients"]))
    return Node.open(str(told["bundle"]), mine, heldout=part(TEST))


app = client_app(node)
