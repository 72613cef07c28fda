"""Connections on which a client takes its time: they are closed, whatever they wait for."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
import uvicorn
from waiting import HANGS, free_port

from qil_jax.app import connections
from qil_jax.app.connections import bound

PIECE = bytes(2**20)
HEAD = b"GET / HTTP/1.1\r\nHost: x\r\n"


async def answers(scope, receive, send) -> None:
    """Answers `/` with a word, and everything else with more than connections hold."""
    await send({"type": "http.response.start", "status": 200, "headers": []})
    for _ in range(64 if scope["path"] != "/" else 0):
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})
    await send({"type": "http.response.body", "body": b"whole"})


def served(client: Callable[[int], Awaitable[None]]) -> None:
    """Run a client of a server that is bound, with its port."""

    async def run() -> None:
        port = free_port()
        server = uvicorn.Server(uvicorn.Config(answers, port=port, log_level="error", lifespan="off"))
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.01)
        bound(server)
        await asyncio.wait_for(client(port), HANGS)
        server.should_exit = server.force_exit = True
        await serving

    asyncio.run(run())


@pytest.mark.parametrize(
    "began", [b"", b"G", b"GET / HTTP/1.1\r\nHost: x\r\n", b"GET / HTTP/1.1\r\nHost: x\r\n\r\nGET"]
)
def test_a_head_that_does_not_end_is_not_waited_for(monkeypatch, began):
    """Nothing, a byte, a head without its end, and one that begins after a whole request."""
    monkeypatch.setattr(connections, "HEAD", 0.05)

    async def client(port: int) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(began)
        with suppress(ConnectionResetError):
            await reader.read()
        writer.close()

    served(client)


def test_an_answer_that_nobody_takes_is_given_up(monkeypatch):
    monkeypatch.setattr(connections, "TAKING", 0.05)
    protocols = []
    lost = connections.PunctualProtocol.connection_lost
    monkeypatch.setattr(
        connections.PunctualProtocol,
        "connection_lost",
        lambda self, exc: (protocols.append(self), lost(self, exc))[1],
    )

    async def client(port: int) -> None:
        _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
        writer.write(b"GET /much HTTP/1.1\r\nHost: x\r\n\r\n")
        while not protocols:
            await asyncio.sleep(0.01)
        writer.close()

    served(client)


def test_more_connections_than_are_taken_are_told_so(monkeypatch):
    monkeypatch.setattr(connections, "MOST_CONNECTIONS", 3)

    async def asks(port: int) -> bytes:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(HEAD + b"Connection: close\r\n\r\n")
        answer = await reader.read()
        writer.close()
        return answer

    async def client(port: int) -> None:
        assert (await asks(port)).endswith(b"whole\r\n0\r\n\r\n")
        held = [await asyncio.open_connection("127.0.0.1", port) for _ in range(3)]
        assert (await asks(port)).startswith(b"HTTP/1.1 503 ")
        for _, writer in held:
            writer.close()
        while not (await asks(port)).startswith(b"HTTP/1.1 200 "):
            await asyncio.sleep(0.01)

    served(client)
