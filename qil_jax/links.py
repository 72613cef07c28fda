"""Connections between the processes of one program: lines of JSON, and tunnels for the traffic of others."""

import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from typing import Any


class Word(StrEnum):
    """The first word of a line between two processes."""

    JOIN = "join"  # number of processes, index
    WELCOME = "welcome"  # all have joined
    REFUSED = "refused"  # problems
    TUNNEL = "tunnel"  # from here on the connection carries bytes of jax's own service
    ALIVE = "alive"
    LOST = "lost"  # index
    DONE = "done"


class Connection:
    """Lines of JSON in both directions."""

    def __init__(self, raw: socket.socket, timeout: float):
        raw.settimeout(timeout)
        self.raw = raw
        self._lines = raw.makefile("rb", buffering=0)
        self._lock = threading.Lock()

    def send(self, *words: Any) -> None:
        """Send a line; if the other end is gone, nothing is sent."""
        with self._lock, suppress(OSError):
            self.raw.sendall(json.dumps(words).encode() + b"\n")

    def receive(self) -> list[Any]:
        """The next line; [] at the end, after a timeout, or if the line is no JSON list."""
        try:
            line = self._lines.readline(1 << 16)
            words = json.loads(line) if line.endswith(b"\n") else []
        except (OSError, ValueError):
            return []
        return words if isinstance(words, list) else []

    def close(self) -> None:
        """End the connection in both directions."""
        with suppress(OSError):
            self.raw.shutdown(socket.SHUT_RDWR)
        self.raw.close()


def background(work: Callable[..., None], *given: Any) -> None:
    """Run `work(*given)` in a thread that does not keep the process alive."""
    threading.Thread(target=work, args=given, daemon=True).start()


def free_address() -> str:
    """HOST:PORT of this host at which nothing listens yet."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        return f"127.0.0.1:{probe.getsockname()[1]}"


def tunnel(raw: socket.socket, service: str) -> None:
    """Connect a connection of another process with jax's service, which may be just about to start."""
    host, _, port = service.rpartition(":")
    for _ in range(100):
        with suppress(OSError):
            carry(raw, socket.create_connection((host, int(port))), keep=False)
            return
        time.sleep(0.1)
    raw.close()


def carry(one: socket.socket, other: socket.socket, *, keep: bool) -> None:
    """Carry bytes in both directions until an end closes; `keep`: the end of `other` does not close `one`."""

    def copy(source: socket.socket, sink: socket.socket, close: bool) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)
        if close:
            with suppress(OSError):
                sink.shutdown(socket.SHUT_RDWR)

    for end in (one, other):
        end.settimeout(None)
    background(copy, one, other, True)
    background(copy, other, one, not keep)
