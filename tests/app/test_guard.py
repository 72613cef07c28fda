"""The door of the app: bodies, paths and routes that never reach gradio."""

import asyncio
import json

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from qil_jax.app.calls import Calls
from qil_jax.app.guard import HEADERS, MOST_JSON, Guard
from qil_jax.app.limits import Limits
from qil_jax.app.start import storage
from qil_jax.app.streams import Streams


async def echo(scope, receive, send) -> None:
    body = await Request(scope, receive).body()
    await JSONResponse({"got": len(body), "path": scope["path"]})(scope, receive, send)


class AnyCalls(Calls):
    """Calls of which each is right."""

    def __init__(self):
        self.streams = Streams()

    def check(self, *_: object) -> None:
        """Refuse nothing."""

    def abandon(self) -> None:
        """Drop nothing."""


@pytest.fixture
def guard(tmp_path) -> Guard:
    (tmp_path / "work").mkdir()
    limits = Limits(megabytes=1)
    return Guard(
        echo, limits=limits, storage=storage(tmp_path / "work", limits), calls=AnyCalls(), check=lambda _: None
    )


@pytest.fixture
def client(guard) -> TestClient:
    return TestClient(guard)


def file_data(path: object) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def refusal(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["detail"]


def test_calls_with_own_uploads_pass_whole(client, tmp_path):
    picture = file_data(str(tmp_path / "work" / "a" / "x.png"))
    call = {"data": [picture, "auto", 3, 1, 0, "", False, 1, ["zip"]]}
    answer = client.post("/gradio_api/queue/join", json=call)
    assert answer.json()["got"] == len(answer.request.content)
    assert {name: answer.headers[name] for name in HEADERS} == HEADERS
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/etc/passwd",
        "../secret",
        "http://169.254.169.254/latest",
        "https://x.org/x.png",
        "file:///etc/passwd",
        "",
        None,
        7,
    ],
)
@pytest.mark.parametrize("call", ["queue/join", "call/decompose", "call/v2/decompose", "cancel"])
def test_foreign_paths_are_refused_wherever_they_stand(client, path, call):
    for value in ({"data": [file_data(path)]}, {"picture": {"path": path}}, [[{"x": {"y": [file_data(path)]}}]]):
        status, detail = refusal(client.post(f"/gradio_api/{call}", json=value))
        assert status == 400 and "by the path that its upload returned" in detail


def test_long_calls_and_long_uploads_are_refused(client):
    assert refusal(client.post("/gradio_api/queue/join", content=b" " * (MOST_JSON + 1)))[0] == 413
    status, detail = refusal(client.post("/gradio_api/upload", content=bytes(2**21)))
    assert status == 413 and "2.0 MB: 1 MB at most" in detail
    assert client.post("/gradio_api/upload", content=bytes(2**20)).json()["got"] == 2**20


def test_bodies_without_a_length_are_refused(client):
    assert refusal(client.post("/gradio_api/upload", content=iter([b"x"])))[0] == 411


def sent(guard: Guard, path: str, headers: dict[str, str], parts: list[bytes]) -> tuple[int, int, str]:
    """A body in parts as a server hands it on: the parts that are left, and the answer."""
    left = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
    answers = []

    async def receive() -> dict:
        return left.pop() if left else {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: dict) -> None:
        answers.append(message)

    said = [(name.encode(), value.encode()) for name, value in headers.items()]
    scope = {"type": "http", "method": "POST", "path": path, "headers": said, "query_string": b""}
    asyncio.run(guard(scope, receive, send))
    return len(left), answers[0]["status"], json.loads(answers[1]["body"])["detail"]


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel"])
def test_a_body_is_counted_whatever_its_headers_say(guard, path):
    left, status, detail = sent(guard, path, {"content-length": "10"}, [bytes(2**20)] * 40)
    assert left >= 38 and status == 413 and "more than" in detail


@pytest.mark.parametrize("path", ["/gradio_api/upload", "/gradio_api/queue/join", "/gradio_api/cancel"])
def test_two_lengths_are_refused_unread(guard, path):
    headers = {"content-length": "10", "transfer-encoding": "chunked"}
    left, status, detail = sent(guard, path, headers, [bytes(2**20)] * 40)
    assert left == 40 and status == 400 and "Content-Length without Transfer-Encoding" in detail


@pytest.mark.parametrize("path", ["upload", "queue/join", "call/decompose", "cancel"])
@pytest.mark.parametrize("said", ["1000", "900000"])
def test_a_body_that_comes_too_slowly_is_refused_and_holds_no_room(guard, monkeypatch, path, said):
    """A byte, and then nothing; also where the length alone would be refused if it came."""
    monkeypatch.setattr("qil_jax.app.guard.PATIENCE", 0.01)
    answers, parts = [], [{"type": "http.request", "body": b"x", "more_body": True}]

    async def receive() -> dict:
        return parts.pop() if parts else await asyncio.Event().wait()

    async def send(message: dict) -> None:
        answers.append(message)

    headers = [(b"content-length", said.encode())]
    scope = {"type": "http", "method": "POST", "path": f"/gradio_api/{path}", "headers": headers, "query_string": b""}
    asyncio.run(guard(scope, receive, send))
    assert answers[0]["status"] == 408 and (b"connection", b"close") in answers[0]["headers"]
    assert "this comes too slowly: 320 KB in 0 seconds" in json.loads(answers[1]["body"])["detail"]
    guard.storage.reserve(guard.storage.most)


def test_waiting_for_what_follows_a_body_has_no_end(guard, monkeypatch):
    """Answers that take long are listened to; gradio then waits for the client to go away."""
    monkeypatch.setattr("qil_jax.app.guard.PATIENCE", 0.01)
    parts = [{"type": "http.disconnect"}, {"type": "http.request", "body": b"{}", "more_body": False}]

    async def receive() -> dict:
        if len(parts) == 1:
            await asyncio.sleep(0.1)
        return parts.pop()

    async def listens(scope, receive, send) -> None:
        while (await receive())["type"] == "http.request":
            pass
        await JSONResponse({})(scope, receive, send)

    async def send(message: dict) -> None:
        answers.append(message)

    answers, guard.app = [], listens
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/cancel", "headers": [(b"content-length", b"2")]}
    asyncio.run(guard(scope, receive, send))
    assert answers[0]["status"] == 200


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(client, body):
    status, detail = refusal(client.post("/gradio_api/queue/join", content=body))
    assert status == 400 and detail.startswith("the call is no JSON: ")


@pytest.mark.parametrize(
    "path", ["api/decompose", "component_server", "process_recording", "vibe-edit/", "stream/x", "login"]
)
def test_calls_that_the_app_has_no_use_for_are_refused(client, path):
    assert refusal(client.post(f"/gradio_api/{path}", content=json.dumps({})))[0] in (403, 404)


@pytest.mark.parametrize(
    "path", ["file=http://x.org/a", "file=HTTPS://x.org/a", "proxy=https://x.hf.space/", "stream/a/1"]
)
def test_nothing_is_fetched_for_a_client(client, path):
    assert refusal(client.get(f"/gradio_api/{path}"))[0] == 403
