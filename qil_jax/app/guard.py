"""The door of the app: what no client may send is refused before gradio reads it, and nothing leaves the page.

Gradio's components take a path or an address wherever a file is expected. Paths are allowed below the folder of uploads
only, so that no file of the server is read, and addresses not at all, so that the server fetches nothing for a client.
"""

import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qil_jax.app.limits import Limits
from qil_jax.app.uploads import is_upload

MOST_JSON = 2**20
"""The largest call in bytes, uploads aside."""
ENVELOPE = 2**16
"""Bytes of an upload beside those of its file."""
MOST_DRAINED = 2**28
"""Bytes of a refused upload that are read and dropped, since browsers show a refusal only after they have sent all."""
CALLS = re.compile(r"/gradio_api/(queue/join|(call|run)/[\w/]+|cancel|reset)/?$")
UPLOAD = re.compile(r"/gradio_api/upload/?$")
FETCHES = re.compile(r"/gradio_api/(file=[a-z]+:/|proxy=|stream/|custom_component/|file/)", re.IGNORECASE)
"""Addresses by which gradio would fetch from elsewhere, or that this app has no use for."""
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; "
    "base-uri 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""Headers of every answer. The page may load from its own server alone, and so may the viewer within it."""


class RefusedError(Exception):
    """A request that is answered with a status and a message."""

    def __init__(self, status: int, detail: str):
        super().__init__(detail)
        self.status, self.detail = status, detail


class Guard:
    """ASGI middleware that refuses large bodies, foreign paths and unused routes, and sets the HEADERS."""

    def __init__(self, app: ASGIApp, *, folder: Path, limits: Limits):
        self.app, self.folder, self.limits = app, folder, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        try:
            receive = await self._checked(scope, receive)
        except RefusedError as refused:
            answer = JSONResponse({"detail": refused.detail}, refused.status, headers={"connection": "close"})
            await answer(scope, receive, send_with_headers)
            return
        await self.app(scope, receive, send_with_headers)

    async def _checked(self, scope: Scope, receive: Receive) -> Receive:
        """The function that gives the request's body; a call's body is read and checked first."""
        path = scope["path"]
        if FETCHES.search(path):
            raise RefusedError(403, "this app serves its own files only")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            return receive
        is_upload_call = UPLOAD.search(path) is not None
        if not is_upload_call and not CALLS.search(path):
            raise RefusedError(404, "no such call: see docs/app.md")
        length = _length(scope)
        most = self.limits.upload_bytes + ENVELOPE if is_upload_call else MOST_JSON
        if length > most:
            await _drain(receive)
            what = f"{self.limits.megabytes} MB at most are taken here" if is_upload_call else "the call is too long"
            raise RefusedError(413, f"{length / 2**20:.1f} MB: {what}")
        return receive if is_upload_call else await self._call(receive)

    async def _call(self, receive: Receive) -> Receive:
        body = b""
        async for part in _parts(receive):
            body += part
        try:
            value = json.loads(body or b"null")
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, "the call is no JSON") from error
        for path in _paths(value):
            if not is_upload(path, self.folder):
                raise RefusedError(400, "a picture is given by the path that its upload returned: see docs/app.md")
        given = False

        async def again() -> Message:
            nonlocal given
            if given:
                return await receive()
            given = True
            return {"type": "http.request", "body": body, "more_body": False}

        return again


def _paths(value: Any) -> Iterator[Any]:
    """Whatever gradio may take for the path of a file, anywhere in a call's JSON."""
    left = [value]
    while left:
        value = left.pop()
        if isinstance(value, dict):
            if "path" in value:
                yield value["path"]
            left += value.values()
        elif isinstance(value, list):
            left += value


def _length(scope: Scope) -> int:
    """The body's length, which clients must say beforehand; the server holds them to it."""
    found = dict(scope["headers"]).get(b"content-length", b"")
    if not found.isdigit():
        raise RefusedError(411, "say the length of what you send: Content-Length is missing")
    return int(found)


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _drain(receive: Receive) -> None:
    read = 0
    async for part in _parts(receive):
        read += len(part)
        if read > MOST_DRAINED:
            return
