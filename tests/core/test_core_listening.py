"""A port to listen on."""

from __future__ import annotations

import asyncio
import socket

import pytest

from edgestill.core.errors import PortError, SettingError
from edgestill.core.listening import bound, check_port, is_loopback, url_of


def test_a_server_on_a_bound_port_sends_at_once() -> None:
    """Nagle's algorithm is off for its connections, so that no answer waits for an acknowledgement."""

    async def delays() -> int:
        listener = bound("127.0.0.1", 0)
        told: asyncio.Future[int] = asyncio.get_running_loop().create_future()

        def accepted(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            stream = writer.get_extra_info("socket")
            told.set_result(stream.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        async with await asyncio.start_server(accepted, sock=listener):
            _, writer = await asyncio.open_connection(*listener.getsockname())
            found = await told
            writer.close()
            await writer.wait_closed()
        return found

    assert asyncio.run(delays()) != 0


def test_a_port_that_is_taken_or_not_ours_is_told() -> None:
    """With what to do about it."""
    with bound("127.0.0.1", 0) as listener:
        listener.listen()
        port = listener.getsockname()[1]
        assert url_of("127.0.0.1", listener, tls=True) == f"https://127.0.0.1:{port}"
        with pytest.raises(PortError, match="the port is taken"):
            bound("127.0.0.1", port)
    with pytest.raises(PortError, match="the port cannot be bound"):
        bound("192.0.2.1", 0)
    for wrong in (-1, 65_536):
        with pytest.raises(SettingError, match="a port is out of range"):
            check_port(wrong)


@pytest.mark.parametrize(
    ("host", "is_one"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("192.0.2.1", False),
        ("localhost.example", False),
    ],
)
def test_only_this_machines_own_addresses_are_a_loopback(host: str, is_one: bool) -> None:
    """A name that merely looks like one is none."""
    assert is_loopback(host) == is_one
