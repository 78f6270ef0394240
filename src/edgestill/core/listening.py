"""A port to listen on, and whether what goes through it could be read on the way."""

from __future__ import annotations

import errno
import ipaddress
import socket
from typing import Final

from edgestill.core.errors import PortError, SettingError

MAX_PORT: Final = 65_535


def check_port(port: int) -> None:
    """Refuses what is no port.

    Raises:
        SettingError: out of range.
    """
    if not 0 <= port <= MAX_PORT:
        raise SettingError(
            "a port is out of range",
            where="--port",
            expected=f"0 to {MAX_PORT}",
            got=port,
            fix="choose another port; 0 takes a free one",
        )


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def bound(host: str, port: int) -> socket.socket:
    """A socket bound to the address.

    Raises:
        PortError: the port is taken, or the address is not this machine's.
    """
    # asyncio sends at once (TCP_NODELAY) only where the protocol is named; else the body of an answer, written after its
    # head, waits some 40 ms for the other side's acknowledgement
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        taken = error.errno == errno.EADDRINUSE
        raise PortError(
            "the port is taken" if taken else "the port cannot be bound",
            where=f"{host}:{port}",
            got=error,
            fix="choose another port, or end what listens there"
            if taken
            else "give an address of this machine with --host, and a port that you may use",
            expected="a free port of this machine",
        ) from error
    return listener


def url_of(host: str, listener: socket.socket, *, tls: bool) -> str:
    """The address of a bound socket, as a client writes it."""
    shown = f"[{host}]" if ":" in host else host
    return f"{'https' if tls else 'http'}://{shown}:{listener.getsockname()[1]}"
