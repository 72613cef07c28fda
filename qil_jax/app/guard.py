"""The door of the app: what no client may send is refused before gradio reads it, and nothing leaves the page.

Gradio's components take a path or an address wherever a file is expected. Paths are allowed below the folder of uploads
only, so that no file of the server is read, and addresses not at all, so that the server fetches nothing for a client.
"""

import json
import math
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any, NoReturn
from urllib.parse import parse_qs

from anyio import current_time, fail_after
from anyio.to_thread import run_sync
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from qil_jax.app.calls import Calls, UnknownCallError
from qil_jax.app.limits import Limits
from qil_jax.app.storage import FullError, Storage
from qil_jax.app.uploads import is_upload
from qil_jax.errors import QilError

MOST_JSON = 2**20
"""The largest call in bytes, uploads aside."""
ENVELOPE = 2**16
"""Bytes of an upload beside those of its file."""
MOST_DRAINED = 2**28
"""Bytes of a refused upload that are read and dropped, since browsers show a refusal only after they have sent all."""
CALLS = re.compile(r"/gradio_api/(?P<kind>queue/join|call/v2|call|run|cancel|reset)(/(?P<name>[^/]+))?/?$")
UPLOAD = re.compile(r"/gradio_api/upload/?$")
ANSWERS = re.compile(r"/gradio_api/(call/(v2/)?[^/]+/(?P<call>[^/]+)|queue/data)/?$")
FETCHES = re.compile(r"/gradio_api/(file=[a-z]+:/|proxy=|stream/|custom_component/|file/)", re.IGNORECASE)
"""Addresses by which gradio would fetch from elsewhere, or that this app has no use for."""
HALF = re.compile(r"[\ud800-\udfff]")
"""Half of a surrogate pair, which JSON can escape and UTF-8 cannot say."""
LONGEST_LENGTH = 18
"""Digits of a length that are read, far more than any that is taken has."""
PATIENCE = 10.0
"""Seconds of waiting within which a body brings so many bytes, or its end."""
LEAST = 10 * 2**15
"""Bytes of a body that must come within `PATIENCE`: 32 KB a second."""
STEP = 2**20
"""Bytes of an upload for which room is made before they are read."""
HEADERS = {
    "content-security-policy": "default-src 'self' 'unsafe-inline' 'unsafe-eval' data: blob:; form-action 'self'; "
    "base-uri 'self'; object-src 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}
"""Headers of every answer. The page may load from its own server alone, and so may the viewer within it."""


class RefusedError(Exception):
    """A request that is answered with a status and a message."""

    def __init__(self, status: int, detail: Any):
        super().__init__(detail)
        self.status, self.detail = status, detail


class Guard:
    """ASGI middleware that refuses large and slow bodies, foreign paths, unused routes and calls that are none.

    It counts the bytes of every body, notes who listens to which answer, and sets the HEADERS.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        limits: Limits,
        storage: Storage,
        calls: Calls,
        check: Callable[[Mapping[str, Any]], Any],
    ):
        self.app, self.limits, self.storage, self.calls, self.check = app, limits, storage, calls, check

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or hand it on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        has_begun = False

        async def send_with_headers(message: Message) -> None:
            nonlocal has_begun
            if message["type"] == "http.response.start":
                has_begun = True
                added = [(name.encode(), value.encode()) for name, value in HEADERS.items()]
                message["headers"] = [*message.get("headers", []), *added]
            await send(message)

        try:
            await self._handed_on(scope, receive, send_with_headers)
        except ClientDisconnect:
            return
        except RefusedError as refused:
            if has_begun:
                raise
            answer = JSONResponse({"detail": refused.detail}, refused.status, headers={"connection": "close"})
            await answer(scope, receive, send_with_headers)

    async def _handed_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hand a request on that nothing is wrong with."""
        path = scope["path"]
        if FETCHES.search(path):
            raise RefusedError(403, "this app serves its own files only")
        if scope["method"] in ("GET", "HEAD", "OPTIONS"):
            with self._listening(scope):
                await self.app(scope, receive, send)
            return
        receive = _prompt(receive)
        if UPLOAD.search(path):
            await self._upload(scope, receive, send)
        elif called := CALLS.search(path):
            length = _length(scope)
            if length > MOST_JSON:
                await _too_long(receive, length, "the call is too long")
            body = await self._call(_counted(receive, MOST_JSON), called)
            await self.app(scope, _again(body, receive), send)
        else:
            raise RefusedError(404, "no such call: see docs/app.md")

    def _listening(self, scope: Scope) -> AbstractContextManager[None]:
        """The time in which a client listens to an answer, if that is what it asks for."""
        asked = ANSWERS.search(scope["path"])
        if asked is None or scope["method"] != "GET":
            return nullcontext()
        query = parse_qs(scope["query_string"].decode("latin-1"))
        name = asked["call"] or query.get("session_hash", [""])[-1]
        try:
            self.calls.require_answer(name)
        except UnknownCallError as error:
            raise RefusedError(404, str(error)) from error
        return self.calls.streams.opened(name)

    async def _upload(self, scope: Scope, receive: Receive, send: Send) -> None:
        length, most = _length(scope), self.limits.upload_bytes + ENVELOPE
        if length > most:
            await _too_long(receive, length, f"{self.limits.megabytes} MB at most are taken here")
        room = min(length, STEP)
        counted, read, reserved = _counted(receive, length), 0, 0

        async def stored() -> Message:
            """A part of the body, once there is room for it; what came before lies in the folder and counts there."""
            nonlocal read, reserved
            message = await counted()
            read += len(message.get("body", b""))
            if read > room or not reserved:
                self.storage.release(reserved)
                read, reserved = 0, 0
                await run_sync(self.storage.reserve, room)
                reserved = room
            return message

        try:
            await self.app(scope, stored, send)
        except FullError as error:
            await _drain(receive)
            raise RefusedError(507, str(error)) from error
        except (TypeError, AttributeError, ValueError) as error:  # what gradio makes of a form without a file
            message = "an upload is multipart/form-data with a file under `files` that has a name: see docs/app.md"
            raise RefusedError(400, message) from error
        finally:
            self.storage.release(reserved)

    async def _call(self, receive: Receive, called: re.Match[str]) -> bytes:
        """The body of a call that makes sense."""
        body = b"".join([part async for part in _parts(receive)])
        try:
            value = json.loads(body or b"null")
        except (ValueError, RecursionError) as error:
            raise RefusedError(400, f"the call is no JSON: {error}") from error
        for where, member in _members(value):
            self._check_value(where, member)
        self.calls.abandon()
        kind = called["kind"]
        if kind in ("cancel", "reset"):
            return body
        try:
            self.calls.check(kind, called["name"], value, self.check)
        except UnknownCallError as error:
            raise RefusedError(404, str(error)) from error
        except QilError as error:
            raise _refusal(kind, str(error)) from error
        return body

    def _check_value(self, where: str, value: Any) -> None:
        """Refuse what is no JSON although Python reads it, and paths of what is no upload."""
        if isinstance(value, float) and not math.isfinite(value):
            raise RefusedError(400, f"{where!a}: {value} is no number of JSON; give a finite one")
        if HALF.search(where) or (isinstance(value, str) and HALF.search(value)):
            raise RefusedError(400, f"{where!a}: {ascii(value)[:80]}: half of a surrogate pair is no character")
        if where == "path":
            if not isinstance(value, str) or not is_upload(value, self.storage.folder):
                raise RefusedError(400, "a picture is given by the path that its upload returned: see docs/app.md")
            self.storage.touch(value)


def _refusal(kind: str, message: str) -> RefusedError:
    """A refusal as the client of a call reads it: gradio's own show what a validator says, and no other message."""
    if kind != "queue/join":
        return RefusedError(400, message)
    said = {"__type__": "validate", "is_valid": False, "parameter_name": "call", "message": message}
    return RefusedError(422, [said])


def _members(value: Any) -> Iterator[tuple[str, Any]]:
    """All members of a JSON value, however deep, each with the name of the nearest member that has one."""
    left = [("the call", value)]
    while left:
        where, value = left.pop()
        yield where, value
        if isinstance(value, dict):
            left += value.items()
        elif isinstance(value, list):
            left += [(where, member) for member in value]


def _length(scope: Scope) -> int:
    """The body's length, which clients must say beforehand.

    Which of two lengths counts is a question that servers answer in different ways, so there must be one.
    """
    headers = [name for name, _ in scope["headers"]]
    if b"transfer-encoding" in headers and b"content-length" in headers:
        raise RefusedError(400, "say the length of what you send once: Content-Length without Transfer-Encoding")
    found = dict(scope["headers"]).get(b"content-length", b"")
    if not found.isdigit():
        raise RefusedError(411, "say the length of what you send: Content-Length is missing")
    return int(found[:LONGEST_LENGTH])


def _prompt(receive: Receive) -> Receive:
    """What gives a body that comes as fast as it must; only the time in which nothing is there counts."""
    waited, read, is_whole = 0.0, 0, False

    async def prompt() -> Message:
        nonlocal waited, read, is_whole
        if is_whole:  # what comes now is that the client went away, whenever it does
            return await receive()
        began = current_time()
        try:
            with fail_after(PATIENCE - waited):
                message = await receive()
        except TimeoutError as error:
            raise RefusedError(
                408, f"this comes too slowly: {LEAST >> 10} KB in {PATIENCE:.0f} seconds are the least that is taken"
            ) from error
        waited += current_time() - began
        read += len(message.get("body", b""))
        if read >= LEAST:
            waited, read = 0.0, 0
        is_whole = message["type"] != "http.request" or not message.get("more_body")
        return message

    return prompt


def _counted(receive: Receive, most: int) -> Receive:
    """What gives a body that has so many bytes at most, whatever its headers say."""
    read = 0

    async def counted() -> Message:
        nonlocal read
        message = await receive()
        read += len(message.get("body", b""))
        if read > most:
            raise RefusedError(413, f"the body has more than {most} bytes, which is what is taken or what it says")
        return message

    return counted


def _again(body: bytes, receive: Receive) -> Receive:
    """What gives a body that has been read."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def again() -> Message:
        return messages.pop() if messages else await receive()

    return again


async def _too_long(receive: Receive, length: int, what: str) -> NoReturn:
    await _drain(receive)
    raise RefusedError(413, f"{length / 2**20:.1f} MB: {what}")


async def _parts(receive: Receive) -> AsyncIterator[bytes]:
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return
        yield message.get("body", b"")
        if not message.get("more_body"):
            return


async def _drain(receive: Receive) -> None:
    """Read and drop a refused body, as far as it comes as it should."""
    read = 0
    with suppress(RefusedError):
        async for part in _parts(receive):
            read += len(part)
            if read > MOST_DRAINED:
                return
