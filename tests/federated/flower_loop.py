"""A Flower grid in one process: every message goes to its client app and back as the bytes that Flower would send."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.message_pb2 import Message as Wire
from flwr.serverapp import Grid
from flwr.supercore.task_identity import TaskIdentity

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from flwr.clientapp import ClientApp

    Spoil = Callable[[Message], Message | None]


def over_the_wire(message: Message) -> Message:
    """The message as the other side reads it."""
    proto = message_to_proto(message)
    return message_from_proto(Wire.FromString(proto.SerializeToString()))


def begin() -> None:
    """Tells Flower that this process is a server's, which it wants to know before a message is made."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1


class Loop(Grid):  # type: ignore[misc]  # Flower is not where types are checked
    """Clients by node id, each with a state of its own.

    Args:
        clients: what runs on each node.
        spoil: node id -> what becomes of its replies; None loses one.
    """

    def __init__(self, clients: dict[int, ClientApp], spoil: dict[int, Spoil] | None = None) -> None:
        begin()
        self.clients = clients
        self.spoil = spoil or {}
        self.asked: list[tuple[int, str]] = []
        self._contexts = {
            node: Context(run_id=1, node_id=node, node_config={}, state=RecordDict(), run_config={})
            for node in clients
        }

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> list[Message]:
        """Every reply that comes."""
        del timeout
        return list(self._replies(messages))

    def _replies(self, messages: Iterable[Message]) -> Iterator[Message]:
        for message in messages:
            node = message.metadata.dst_node_id
            self.asked.append((node, message.metadata.message_type))
            arrived = over_the_wire(message)
            reply: Message | None = self.clients[node](arrived, self._contexts[node])
            if node in self.spoil:
                reply = self.spoil[node](reply)
            if reply is not None:
                yield over_the_wire(reply)

    def get_node_ids(self) -> list[int]:
        """All of them."""
        return list(self.clients)

    def set_run(self, run: Any) -> None:
        """Of no use here."""

    @property
    def run(self) -> Any:
        """Of no use here."""
        return None

    def create_message(self, *arguments: Any, **options: Any) -> Message:
        """Nobody calls it: strategies make messages themselves."""
        raise AssertionError((arguments, options))

    def push_messages(self, messages: Iterable[Message]) -> list[str]:
        """Nobody calls it: strategies send and receive at once."""
        raise AssertionError(messages)

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """As above."""
        raise AssertionError(message_ids)


def instead(reply: Message, content: RecordDict | Error) -> Message:
    """Another reply of the same node: this content, or an error."""
    asked = Message(RecordDict(), message_type="train", dst_node_id=reply.metadata.src_node_id)
    return Message(content, reply_to=over_the_wire(asked))
