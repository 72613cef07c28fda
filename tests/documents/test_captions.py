"""Captioners; the endpoint is tested against a local HTTP server."""

import base64
import io
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from PIL import Image
from waiting import free_port

from qil_jax.documents import captions
from qil_jax.documents.captions import Captioner, EndpointCaptioner, EndpointConfig, SidecarCaptioner
from qil_jax.documents.reasons import Dropped, Reason

PICTURE = np.full((30, 60, 4), (200, 10, 30, 128), np.uint8)


class Server(ThreadingHTTPServer):
    """Answers with given statuses, then with a caption."""

    def __init__(self, *statuses: int, text: str = "a red card"):
        self.statuses, self.text, self.requests = list(statuses), text, []
        super().__init__(("127.0.0.1", 0), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self):
        self.server.requests.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        status = self.server.statuses.pop(0) if self.server.statuses else 200
        message = {"role": "assistant", "content": self.server.text}
        body = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
        body["choices"] = [{"index": 0, "finish_reason": "stop", "message": message}]
        data = json.dumps(body if status == 200 else {"error": {"message": "busy"}}).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        if status == 429:
            self.send_header("Retry-After", "0.2")
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def pauses(monkeypatch) -> list[float]:
    """Seconds that a captioner would sleep."""
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.fixture
def serve():
    servers = []

    def start(*statuses: int, **options) -> Server:
        servers.append(Server(*statuses, **options))
        return servers[-1]

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def captioner(server: Server, cache, **options) -> EndpointCaptioner:
    return EndpointCaptioner(EndpointConfig(url=server.url, model="m", **options), epath.Path(cache))


def test_the_endpoint_sees_the_picture_over_white(serve, tmp_path):
    server = serve()
    ask = captioner(server, tmp_path, side=30, prompt="What is it?")
    assert isinstance(ask, Captioner) and ask(PICTURE, "x.psd") == "a red card"
    image, text = server.requests[0]["messages"][0]["content"]
    assert text == {"type": "text", "text": "What is it?"} and server.requests[0]["model"] == "m"
    picture = Image.open(io.BytesIO(base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))))
    assert picture.size == (30, 15) and picture.getpixel((0, 0)) == (227, 132, 142)


def test_answers_are_kept(serve, tmp_path):
    server = serve()
    for _ in range(2):
        assert captioner(server, tmp_path)(PICTURE, "x.psd") == "a red card"
    assert len(server.requests) == 1
    captioner(server, tmp_path, prompt="another")(PICTURE, "x.psd")
    assert len(server.requests) == 2


def test_refusals_are_waited_out(serve, tmp_path, pauses):
    server = serve(429, 500, 503)
    assert captioner(server, tmp_path)(PICTURE, "x.psd") == "a red card"
    assert len(server.requests) == 4
    turn, asked, *own = pauses
    assert (turn, asked) == (0.0, 0.2) and len(own) == 2 and 0 < own[0] < own[1]


@pytest.mark.parametrize(("statuses", "text"), [((500,) * 9, "x"), ((400,), "x"), ((), "  ")])
def test_no_caption_drops_the_document(serve, tmp_path, pauses, statuses, text):
    server = serve(*statuses, text=text)
    with pytest.raises(Dropped) as dropped:
        captioner(server, tmp_path, retries=1)(PICTURE, "x.psd")
    assert dropped.value.reason is Reason.CAPTION_FAILED and server.url in dropped.value.detail
    assert not list(tmp_path.iterdir())


def test_no_server(tmp_path):
    url = f"http://127.0.0.1:{free_port()}/v1"
    ask = EndpointCaptioner(EndpointConfig(url=url, model="m", retries=0), epath.Path(tmp_path))
    with pytest.raises(Dropped, match="APIConnectionError"):
        ask(PICTURE, "x.psd")


def test_the_rate_is_kept(serve, tmp_path, monkeypatch):
    """Five threads ask at the same moment: their requests are spaced by the rate limit."""
    server, pauses = serve(), []
    monkeypatch.setattr(captions, "time", SimpleNamespace(monotonic=lambda: 0.0, sleep=pauses.append))
    ask = captioner(server, tmp_path, requests_per_minute=600.0)
    threads = [threading.Thread(target=ask, args=(PICTURE[: 10 + i], "x.psd")) for i in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(server.requests) == 5 and sorted(pauses) == pytest.approx([0.0, 0.1, 0.2, 0.3, 0.4])


def test_files_beside_documents(tmp_path):
    (tmp_path / "poster.txt").write_text(" ein Plakat\u00e4 \n", encoding="utf-8")
    assert SidecarCaptioner()(PICTURE, str(tmp_path / "poster.psd")) == "ein Plakat\u00e4"
    assert SidecarCaptioner(otherwise="?")(PICTURE, str(tmp_path / "other.psd")) == "?"
