"""How long a client may take over one connection. The only module that knows uvicorn's protocol from within."""

import asyncio
from typing import Any

import h11
from uvicorn import Server
from uvicorn.protocols.http.h11_impl import H11Protocol

MOST_CONNECTIONS = 400
"""Connections at a time; further ones get 503. Each may have a file open, and a process often has 1,024 of them."""
HEAD = 10.0
"""Seconds within which a request's head is there: from the connection on, or from its first byte."""
TAKING = 60.0
"""Seconds within which a client takes some of an answer that waits for it."""


class PunctualProtocol(H11Protocol):
    """HTTP/1.1 of uvicorn, which closes connections that send no whole head, or take nothing of their answer."""

    _late: asyncio.TimerHandle | None = None
    _stuck: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first request."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Read what came; a head that has begun must end in time, however often something comes."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._late = _ended(self._late)
        elif self._late is None:
            self._wait()

    def pause_writing(self) -> None:
        """Wait for the client to take something."""
        super().pause_writing()
        self._stuck = self.loop.call_later(TAKING, self.transport.abort)

    def resume_writing(self) -> None:
        """Go on."""
        self._stuck = _ended(self._stuck)
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._late, self._stuck = _ended(self._late), _ended(self._stuck)
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._late = self.loop.call_later(HEAD, self.transport.abort)


def bound(server: Server) -> None:
    """Bound the number of a running server's connections, and the time that clients take over each new one."""
    server.config.http_protocol_class = PunctualProtocol
    server.config.limit_concurrency = MOST_CONNECTIONS


def _ended(timer: asyncio.TimerHandle | None) -> Any:
    if timer is not None:
        timer.cancel()
