"""The door of the app: bodies, paths and routes that never reach gradio."""

import json

import pytest
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.testclient import TestClient

from qil_jax.app.guard import HEADERS, MOST_JSON, Guard
from qil_jax.app.limits import Limits


async def echo(scope, receive, send) -> None:
    body = await Request(scope, receive).body()
    await JSONResponse({"got": len(body), "path": scope["path"]})(scope, receive, send)


@pytest.fixture
def client(tmp_path) -> TestClient:
    (tmp_path / "work").mkdir()
    return TestClient(Guard(echo, folder=tmp_path / "work", limits=Limits(megabytes=1)))


def file_data(path: object) -> dict:
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def refusal(answer: Response) -> tuple[int, str]:
    return answer.status_code, answer.json()["detail"]


def test_calls_with_own_uploads_pass_whole(client, tmp_path):
    call = {"data": [file_data(str(tmp_path / "work" / "a" / "x.png")), "auto", 3]}
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


@pytest.mark.parametrize("body", [b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(client, body):
    assert refusal(client.post("/gradio_api/queue/join", content=body)) == (400, "the call is no JSON")


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
