"""The app's server over HTTP, with decompositions that a test holds: whom it answers, and whom it refuses."""

import dataclasses
import http.client
import json
import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import gradio_client
import httpx
import pytest
from offering import HASTY, IMPATIENT, LIMITS, RELEASED
from proxy import proxied
from waiting import HANGS, free_port, until

pytestmark = pytest.mark.full

TESTS = Path(__file__).resolve().parents[1]
ROOT = "/under/layers"
"""The path at which a proxy shows the page."""


@dataclasses.dataclass(frozen=True)
class Client:
    """A client of a running page, whose process writes what becomes of calls into a file of the folder."""

    folder: Path
    port: int
    url: str

    def upload(self, data: bytes = b"x") -> dict[str, Any]:
        """Upload a file; how calls name it."""
        answer = httpx.post(f"{self.url}/upload", files={"files": ("x.png", data)}, timeout=HANGS)
        assert answer.status_code == 200, answer.text
        return {"path": answer.json()[0], "meta": {"_type": "gradio.FileData"}}

    def get(self, path: str, **headers: str) -> httpx.Response:
        """What lies at an address of gradio's API."""
        return httpx.get(f"{self.url}/{path}", headers=headers, timeout=HANGS)

    def post(self, call: str, body: Any) -> httpx.Response:
        """The answer to a call, whose body is JSON or text that may be none."""
        text = body if isinstance(body, str) else json.dumps(body)
        headers = {"content-type": "application/json"}
        return httpx.post(f"{self.url}/{call}", content=text, headers=headers, timeout=HANGS)

    def start(self) -> httpx.Response:
        """Start a call."""
        return self.post("call/v2/decompose", {"picture": self.upload()})

    def count(self, word: str) -> int:
        """How often the server wrote a word."""
        return self.log().splitlines().count(word)

    def log(self) -> str:
        """What the server wrote."""
        return (self.folder / "log.txt").read_text()

    @contextmanager
    def having(self, name: str) -> Iterator[None]:
        """A file is there within the block."""
        (self.folder / name).touch()
        try:
            yield
        finally:
            (self.folder / name).unlink()


@pytest.fixture(scope="module")
def client(tmp_path_factory) -> Iterator[Client]:
    folder, port = tmp_path_factory.mktemp("app"), free_port()
    path = os.pathsep.join(map(str, (TESTS.parent, TESTS, TESTS / "app")))
    call = [sys.executable, str(TESTS / "app" / "offering.py"), str(folder), str(port), ROOT]
    running = Client(folder, port, f"http://127.0.0.1:{port}/gradio_api")
    with (folder / "log.txt").open("wb") as stream:
        process = subprocess.Popen(call, stdout=stream, stderr=stream, env={**os.environ, "PYTHONPATH": path})
    try:
        until(lambda: "serving " in running.log() or process.poll() is not None)
        yield running
        assert process.poll() is None and "Traceback" not in running.log()
    finally:
        process.kill()
        process.wait(HANGS)


HALF = '"\\ud800"'
WRONG = [
    ('{"steps": 3}', "there is no picture: upload one first"),
    ('{"picture": "x.png"}', "picture must be what the upload of a file returned, got 'x.png'"),
    ('{"picture": PICTURE, "nope": 3}', "unknown parameter 'nope': decompose has picture, layers, steps"),
    ('{"picture": PICTURE, "guidance": NaN}', "'guidance': nan is no number of JSON"),
    ('{"picture": PICTURE, "guidance": -1e999}', "'guidance': -inf is no number of JSON"),
    (f'{{"picture": PICTURE, "prompt": {HALF}}}', r"'prompt': '\ud800': half of a surrogate pair is no character"),
    (f'{{"picture": PICTURE, {HALF}: 1}}', r"'\ud800': 1: half of a surrogate pair"),
    ('{"picture": PICTURE, "layers": "00000000021"}', "layers must be from 1 to 20, got 21"),
    ('{"picture": PICTURE, "steps": 0}', "steps must be at least 1, got 0"),
    ('{"picture": PICTURE, "layers": "20", "steps": 100, "depth": 3}', "times the work of a usual call"),
    ('{"picture": PICTURE, "formats": ["exe"]}', "formats must be a list of"),
    ("[1]", "the call must be a JSON object, got [1]"),
    ("", "the call must be a JSON object, got None"),
]


@pytest.mark.parametrize(("body", "message"), WRONG)
def test_what_a_call_cannot_have_is_told_before_it_waits(client, body, message):
    answer = client.post("call/v2/decompose", body.replace("PICTURE", json.dumps(client.upload())))
    assert answer.status_code == 400 and message in answer.json()["detail"]


@pytest.mark.parametrize(
    ("call", "body", "status", "message"),
    [
        ("call/v2/nosuch", "{}", 404, "there is no call 'nosuch': this app has decompose"),
        ("call/nosuch", '{"data": []}', 404, "there is no call 'nosuch'"),
        ("run/nosuch", '{"data": []}', 404, "there is no call 'nosuch'"),
        ("run/predict", '{"data": [], "fn_index": 99}', 404, "there is no call fn_index 99"),
        ("queue/join", '{"data": [], "fn_index": -1, "session_hash": "a"}', 404, "there is no call fn_index -1"),
        ("call/decompose", '{"data": []}', 400, "data must be a list of 9 values (picture, layers"),
        ("call/decompose", '{"data": 3}', 400, "got 3"),
        ("cancel", "[NaN]", 400, "nan is no number of JSON"),
    ],
)
def test_calls_that_there_are_not_are_named(client, call, body, status, message):
    answer = client.post(call, body)
    assert answer.status_code == status and message in answer.json()["detail"]


def test_gradios_own_clients_are_told_in_their_way(client):
    data = [client.upload(), "20", 100, 1, 0, "", False, 3, ["zip"]]
    config = client.get("../config").json()
    (number,) = [function["id"] for function in config["dependencies"] if function["api_name"] == "decompose"]
    body = {"data": data, "fn_index": number, "session_hash": "s"}
    answer = client.post("queue/join", body)
    (said,) = answer.json()["detail"]
    assert answer.status_code == 422 and said["__type__"] == "validate" and not said["is_valid"]
    assert "times the work of a usual call" in said["message"]


@pytest.mark.parametrize(
    "path", ["call/decompose/nosuch", "call/v2/decompose/nosuch", "queue/data?session_hash=nosuch"]
)
def test_an_answer_that_there_is_not_is_refused(client, path):
    answer = client.get(path)
    assert answer.status_code == 404 and "there is no call 'nosuch': it was never started" in answer.json()["detail"]


@pytest.mark.parametrize(
    ("kind", "form"),
    [
        (
            "multipart/form-data; boundary=B",
            b'--B\r\nContent-Disposition: form-data; name="files"\r\n\r\nx\r\n--B--\r\n',
        ),
        (f"multipart/form-data; boundary={'B' * 500}", b"x"),
    ],
)
def test_an_upload_that_is_no_named_file_is_refused(client, kind, form):
    answer = httpx.post(f"{client.url}/upload", content=form, headers={"content-type": kind}, timeout=HANGS)
    assert answer.status_code == 400 and "a file under `files` that has a name" in answer.json()["detail"]


def test_two_lengths_are_refused(client):
    with socket.create_connection(("127.0.0.1", client.port), HANGS) as stream:
        stream.sendall(
            b"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"
            b"5\r\nhello\r\n0\r\n\r\n"
        )
        answer = http.client.HTTPResponse(stream)
        answer.begin()
        assert answer.status == 400 and b"without Transfer-Encoding" in answer.read()


@pytest.mark.parametrize("call", ["upload", "call/v2/decompose"])
def test_a_body_that_trickles_is_refused_in_words(client, call):
    head = f"POST /gradio_api/{call} HTTP/1.1\r\nHost: x\r\nContent-Length: 9000\r\n"
    head += "Content-Type: multipart/form-data; boundary=B\r\n\r\n"
    head += '--B\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
    with socket.create_connection(("127.0.0.1", client.port), 0.5) as stream:
        stream.sendall(head.encode())
        answer = b""
        while not answer:
            stream.sendall(b"-")
            with suppress(TimeoutError):
                answer = stream.recv(2**16)
        stream.settimeout(HANGS)
        while piece := stream.recv(2**16):
            answer += piece
    assert answer.startswith(b"HTTP/1.1 408 ") and b"this comes too slowly" in answer


def test_many_uploads_stay_within_the_folders_bytes(client):
    uploads = [Path(client.upload(bytes([number]) * 2**19)["path"]) for number in range(12)]
    assert uploads[-1].is_file() and not uploads[0].exists()
    files = [file for file in uploads[0].parents[1].rglob("*") if file.is_file()]
    assert sum(file.stat().st_size for file in files) <= LIMITS.disk * 2**20


def test_calls_that_nobody_listens_to_give_their_turn_and_their_place_back(client):
    begun, abandoned = client.count("begun"), client.count("abandoned")
    client.start()
    until(lambda: client.count("begun") > begun)
    assert [client.start().status_code for _ in range(LIMITS.queue)] == [200] * LIMITS.queue
    assert client.start().status_code == 503
    with client.having(IMPATIENT):
        until(lambda: client.count("abandoned") > abandoned)
        assert client.start().status_code == 200
    with client.having(RELEASED):
        assert "this was a test" in client.get(f"call/decompose/{client.start().json()['event_id']}").text


def test_in_a_full_queue_calls_that_nobody_listens_to_give_way_early(client):
    begun = client.count("begun")
    client.start()
    until(lambda: client.count("begun") > begun)
    with client.having(HASTY):
        assert [client.start().status_code for _ in range(3 * LIMITS.queue)] == [200] * 3 * LIMITS.queue
    with client.having(IMPATIENT):
        client.start()


def test_a_call_that_is_listened_to_stays(client):
    begun, ended = client.count("begun"), client.count("ended")
    call = client.start().json()["event_id"]
    until(lambda: client.count("begun") > begun)
    with httpx.stream("GET", f"{client.url}/call/decompose/{call}", timeout=HANGS) as answer, client.having(IMPATIENT):
        client.start()  # calls that nobody wants are dropped now
        with client.having(RELEASED):
            assert "this was a test" in "".join(answer.iter_lines())
        assert client.count("ended") == ended + 1


def test_links_behind_a_proxy_have_its_path(client):
    forwarded = {"X-Forwarded-Host": "example.org", "X-Forwarded-Proto": "https"}
    assert client.get("../config", **forwarded).json()["root"] == f"https://example.org{ROOT}"


@pytest.mark.parametrize("forwards", [True, False])
def test_everything_works_behind_a_proxy_that_strips_its_path(client, forwards, tmp_path):
    """The page and what it links, the calls of docs/app.md, gradio's own client, and the files of both."""
    with proxied(client.port, ROOT, forwards=forwards) as url, client.having(RELEASED):
        get = lambda address: httpx.get(address, timeout=HANGS)
        page = get(f"{url}/")
        links = {*re.findall(r'(?:href|src)="([^"#]+)"', page.text)}
        links = {urljoin(f"{url}/", link) for link in links if not link.startswith(("http://", "https://", "data:"))}
        links |= set(re.findall(r'(?:href|src)="(http://[^"]+)"', page.text))
        links = {link for link in links if not link.endswith("/manifest.json")}  # gradio's own, always at the root
        assert len(links) > 2 and {link: get(link).status_code for link in links} == dict.fromkeys(links, 200)
        assert get(f"{url}/config").json()["root"] == url

        behind = dataclasses.replace(client, url=f"{url}/gradio_api")
        picture = behind.upload(b"a picture")
        assert get(f"{url}/gradio_api/file={picture['path']}").content == b"a picture"
        asked = {"picture": picture, "prompt": "x", "formats": ["zip", "psd"]}
        call = behind.post("call/v2/decompose", asked).json()["event_id"]
        answer = behind.get(f"call/decompose/{call}").text
        _, prompt, files, *_ = json.loads(answer.strip().splitlines()[-1].removeprefix("data: "))
        assert prompt == "x" and all(file["url"].startswith(f"{url}/gradio_api/file=") for file in files)
        contents = [get(file["url"]) for file in files]
        assert [file.status_code for file in contents] == [200] * 3 and contents[1].content.startswith(b"8BPS")

        (tmp_path / "sent.png").write_bytes(b"a picture")
        downloads = tmp_path / "got"
        own = gradio_client.Client(url, download_files=str(downloads), verbose=False)
        sent = gradio_client.handle_file(tmp_path / "sent.png")
        _, _, got, _ = own.predict(picture=sent, prompt="x", api_name="/decompose")
        own.close()
        assert [Path(file).suffix for file in got] == [".zip", ".psd", ".json"]
