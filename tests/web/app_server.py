"""The app as a program on a free port, and clients of its HTTP API."""

import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from waiting import HANGS, free_port, until

ROOT = Path(__file__).resolve().parents[2]
STEPS = 2
HOLD = ".hold"
HELD = """
import runpy, sys, time
from pathlib import Path
from qil_jax.app import server
from qil_jax.app.engine import Engine
from qil_jax.app.streams import Streams

hold, *sys.argv = sys.argv[1:]
decompose, serve = Engine.decompose, server.serve

def held(self, *args, on_step, is_wanted, **how):
    def step(done, steps):
        on_step(done, steps)
        while Path(hold).exists() and is_wanted():
            time.sleep(0.01)

    return decompose(self, *args, on_step=step, is_wanted=is_wanted, **how)

def often(*args, **how):
    from gradio import utils

    utils.get_heartbeat_rate = lambda: 0.1
    return serve(*args, **how)

Engine.decompose, server.serve, Streams.patience = held, often, 1800.0
runpy.run_path(sys.argv[0], run_name="__main__")
"""
"""`qil app`, whose decompositions stay at their first step while a file exists and somebody waits for them, and
which often tells those who wait that it is there, and waits long for those who do not listen yet."""


@dataclasses.dataclass(frozen=True)
class Server:
    """A running app: its address, process, folder of work and log."""

    url: str
    process: subprocess.Popen
    work: Path
    log: Path

    def memory(self, name: str) -> int:
        """A field of the process's status in MiB, such as VmRSS or VmHWM, its peak."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith(name)).split()[1]) >> 10

    def forget_peak(self) -> None:
        """Let VmHWM begin anew at what the process holds now."""
        Path(f"/proc/{self.process.pid}/clear_refs").write_text("5")

    @contextmanager
    def holding(self) -> Iterator[None]:
        """No decomposition ends within the block."""
        hold = self.log.with_suffix(HOLD)
        hold.touch()
        try:
            yield
        finally:
            hold.unlink()

    def results(self) -> list[Path]:
        """The records of all results that lie in the folder of work."""
        return sorted(self.work.rglob("result.json"))


@contextmanager
def served(folder: Path, *words: str) -> Iterator[Server]:
    """An app of the shipped model, ended as a service manager ends it."""
    port, work, log = free_port(), folder / "work", folder / "log.txt"
    call = [sys.executable, "-c", HELD, str(log.with_suffix(HOLD)), str(ROOT / "qil_jax" / "__main__.py"), "app"]
    call += ["--port", str(port), "--work", str(work), *words]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with log.open("wb") as stream:
        process = subprocess.Popen(call, stdout=stream, stderr=subprocess.STDOUT, cwd=folder, env=env)
    try:
        until(lambda: "serving " in log.read_text() or process.poll() is not None)
        assert process.poll() is None, log.read_text()
        yield Server(f"http://127.0.0.1:{port}", process, work, log)
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(HANGS)
        finally:
            process.kill()


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a client got: the outputs of its call, or the message of a refusal."""

    outputs: list[Any] | None = None
    error: str | None = None


class Client:
    """A client of the HTTP API, as docs/app.md describes it."""

    def __init__(self, server: Server):
        self.url = server.url

    def get(self, path: str) -> httpx.Response:
        """What lies at a path of the app."""
        return httpx.get(self.url + path, timeout=HANGS)

    def post(self, call: str, **body: Any) -> httpx.Response:
        """The answer to a call of gradio's."""
        return httpx.post(f"{self.url}/gradio_api/{call}", timeout=HANGS, **body)

    def upload(self, data: bytes, name: str = "picture.png") -> str:
        """Upload a file; its path on the server."""
        answer = self.post("upload", files={"files": (name, data)})
        if answer.status_code != 200:
            raise RefusedError(f"{answer.status_code}: {answer.text}")
        return answer.json()[0]

    def start(self, path: Any, **values: Any) -> str:
        """Start a decomposition of an upload; the number of the call."""
        picture = {"path": path, "meta": {"_type": "gradio.FileData"}}
        body = {"picture": picture, "steps": STEPS, "formats": ["zip"], **values}
        answer = self.post("call/v2/decompose", json=body)
        if answer.status_code != 200:
            raise RefusedError(f"{answer.status_code}: {answer.text}")
        return answer.json()["event_id"]

    def finish(self, call: str) -> Answer:
        """Wait for the answer of a call."""
        kind = ""
        with self._stream(call) as lines:
            for line in lines.iter_lines():
                if line.startswith("event: "):
                    kind = line.removeprefix("event: ")
                elif line.startswith("data: ") and kind in ("complete", "error"):
                    value = json.loads(line.removeprefix("data: "))
                    error = value.get("error") if isinstance(value, dict) else value
                    return Answer(outputs=value) if kind == "complete" else Answer(error=str(error))
        return Answer(error="the stream ended")

    def leave(self, call: str) -> None:
        """Listen to a call until the server says that it is there, and go away before its answer."""
        with self._stream(call) as lines:
            assert next(lines.iter_lines()) == "event: heartbeat"

    def decompose(self, data: bytes, name: str = "picture.png", **values: Any) -> Answer:
        """Upload, start and wait; a refusal at any of them is the answer."""
        try:
            return self.finish(self.start(self.upload(data, name), **values))
        except RefusedError as error:
            return Answer(error=str(error))

    def layers(self, answer: Answer) -> np.ndarray:
        """The layers of an answer, bottom to top, from its ZIP."""
        (url,) = [file["url"] for file in answer.outputs[2] if file["path"].endswith(".zip")]
        return layers_in(httpx.get(url, timeout=HANGS).content)

    def _stream(self, call: str) -> AbstractContextManager[httpx.Response]:
        return httpx.stream("GET", f"{self.url}/gradio_api/call/decompose/{call}", timeout=HANGS)


def layers_in(data: bytes) -> np.ndarray:
    """The layers in a ZIP, bottom to top."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = sorted(name for name in archive.namelist() if name[:2].isdigit() and name.endswith(".png"))
        return np.stack([np.asarray(Image.open(io.BytesIO(archive.read(name)))) for name in names])


class RefusedError(Exception):
    """A request that the server refused."""


def encoded(image: Image.Image, kind: str = "PNG", **how: Any) -> bytes:
    """The bytes of a picture file."""
    stream = io.BytesIO()
    image.save(stream, kind, **how)
    return stream.getvalue()


def noise(size: tuple[int, int], number: int, mode: str = "RGBA") -> Image.Image:
    """A picture unlike those of other numbers: blocks of random colours."""
    blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 4), np.uint8)
    return Image.fromarray(blocks, "RGBA").convert(mode).resize(size, Image.Resampling.NEAREST)
