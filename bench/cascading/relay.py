"""A relay before a server, as a process of its own, that can be slow or answer garbage; killed or stopped, it is a cloud that is gone or frozen.

    python relay.py PORT TARGET_PORT MODE

MODE is `pass`, `slow` (every piece of an answer waits for 200 ms) or `garbage` (random bytes with an HTTP head). It says `ready` on
standard output once it listens.
"""

from __future__ import annotations

import os
import socket
import sys
import threading
import time
from contextlib import suppress

SLOW = 0.2
_PIECE = 65_536
_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/octet-stream\r\ncontent-length: 400\r\n\r\n"


def main() -> None:
    """Serves for ever."""
    port, target, mode = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    listener = socket.create_server(("127.0.0.1", port), backlog=64)
    print("ready", flush=True)
    while True:
        client, _ = listener.accept()
        threading.Thread(target=_serve, args=(client, target, mode), daemon=True).start()


def _serve(client: socket.socket, target: int, mode: str) -> None:
    with suppress(OSError), client:
        if mode == "garbage":
            while client.recv(_PIECE):
                client.sendall(_HEAD + os.urandom(400))
            return
        with socket.create_connection(("127.0.0.1", target)) as server:
            for stream in (client, server):
                stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            back = threading.Thread(target=_pump, args=(server, client, mode), daemon=True)
            back.start()
            _pump(client, server, "pass")


def _pump(source: socket.socket, sink: socket.socket, mode: str) -> None:
    with suppress(OSError):
        while piece := source.recv(_PIECE):
            if mode == "slow":
                time.sleep(SLOW)
            sink.sendall(piece)
        sink.shutdown(socket.SHUT_WR)


if __name__ == "__main__":
    main()
