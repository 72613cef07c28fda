"""The app under attack: an honest client beside many that are none, with the memory, the disk and its waiting times."""

import argparse
import itertools
import json
import os
import random
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from PIL import Image
from rich.console import Console

from qil_jax.app.limits import Limits
from qil_jax.terminal import Table

ROOT = Path(__file__).resolve().parents[2]
LARGE = 19 * 2**20
"""Bytes of an upload that is just allowed."""
DISK, RESULT = 256, 64
"""MiB of --disk-megabytes, and what a result may add to them while it is written."""
GROWTH = 700
"""MiB by which the app's memory may grow: a large picture that is decoded, and what compiling leaves."""
ANSWERED = 30.0
"""Seconds for a request of the honest client, at most."""
AGAIN = 0.5
"""Seconds until it asks again where it was refused."""


class Server:
    """The app, started as a program.

    Attributes:
      port: where it serves.
      work: its folder of uploads and results.
      log: what it printed.
    """

    def __init__(self, folder: Path):
        with socket.create_server(("127.0.0.1", 0)) as probe:
            self.port = probe.getsockname()[1]
        self.work, self.log, self.url = folder / "work", folder / "log.txt", f"http://127.0.0.1:{self.port}/gradio_api"
        words = ["--port", str(self.port), "--work", str(self.work), "--disk-megabytes", str(DISK)]
        env = {**os.environ, "PYTHONPATH": str(ROOT)}
        with self.log.open("wb") as stream:
            call = [sys.executable, "-m", "qil_jax", "app", *words]
            self.process = subprocess.Popen(call, stdout=stream, stderr=subprocess.STDOUT, env=env)
        while "serving " not in self.log.read_text():
            if self.process.poll() is not None:
                raise RuntimeError(self.log.read_text())
            time.sleep(0.1)

    def memory(self) -> int:
        """MiB that the process holds."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return int(next(line for line in lines if line.startswith("VmRSS")).split()[1]) >> 10

    def files(self) -> int:
        """Its open files, connections included."""
        return len(list(Path(f"/proc/{self.process.pid}/fd").iterdir()))

    def disk(self) -> int:
        """MiB of its folder."""
        size = 0
        for folder, _, names in os.walk(self.work):
            for name in names:
                with suppress(FileNotFoundError):
                    size += Path(folder, name).stat().st_size
        return size >> 20

    def upload(self, data: bytes, **how: Any) -> httpx.Response:
        """Upload a file."""
        return httpx.post(f"{self.url}/upload", files={"files": ("picture.png", data)}, **how)

    def call(self, body: Any, **how: Any) -> httpx.Response:
        """Start a decomposition."""
        return httpx.post(f"{self.url}/call/v2/decompose", json=body, **how)

    def connection(self, head: str) -> socket.socket:
        """A connection on which the head of a request was sent, or the beginning of one."""
        stream = socket.create_connection(("127.0.0.1", self.port), 5)
        stream.sendall(head.encode())
        return stream


def picture(path: str) -> dict[str, Any]:
    """An upload as calls name it."""
    return {"path": path, "meta": {"_type": "gradio.FileData"}}


def small(number: int) -> bytes:
    """A picture of blocks."""
    blocks = np.random.default_rng(number).integers(0, 256, (4, 4, 3), np.uint8)
    with tempfile.SpooledTemporaryFile() as stream:
        Image.fromarray(blocks).resize((64, 64), Image.Resampling.NEAREST).save(stream, "PNG")
        stream.seek(0)
        return stream.read()


def two_lengths(server: Server, _: random.Random) -> None:
    """A length of ten bytes, and chunks without an end."""
    head = "POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\nTransfer-Encoding: chunked\r\n\r\n"
    with server.connection(head) as stream:
        for _count in range(40):
            stream.sendall(b"100000\r\n" + bytes(2**20) + b"\r\n")


def more_than_said(server: Server, _: random.Random) -> None:
    """Chunks alone, and a large length of which little comes."""
    for head in ("Transfer-Encoding: chunked", f"Content-Length: {LARGE}"):
        with server.connection(f"POST /gradio_api/upload HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n") as stream:
            for _count in range(60):
                stream.sendall(b"1\r\nx\r\n")
                time.sleep(0.5)


def unheard(server: Server, rng: random.Random) -> None:
    """Calls to whose answer nobody listens, of as much work as is taken."""
    path = server.upload(small(rng.randrange(9))).json()[0]
    for _ in range(20):
        server.call({"picture": picture(path), "layers": "20", "steps": 20})


def left(server: Server, rng: random.Random) -> None:
    """Calls whose client goes away as soon as it listens."""
    path = server.upload(small(rng.randrange(9))).json()[0]
    number = server.call({"picture": picture(path), "steps": 50}).json()["event_id"]
    with httpx.stream("GET", f"{server.url}/call/decompose/{number}"):
        time.sleep(rng.random())


def flood(server: Server, rng: random.Random) -> None:
    """Uploads as large as they may be."""
    server.upload(rng.randbytes(64) * (LARGE // 64), timeout=60)
    time.sleep(0.5)


def malformed(server: Server, rng: random.Random) -> None:
    """Calls that are none."""
    bodies = [b"", b"[" * 9999, b'{"steps": NaN}', b'{"picture": {"path": "/etc/passwd"}}', b'{"layers": "\\ud800"}']
    httpx.post(f"{server.url}/call/v2/{rng.choice(['decompose', 'x'])}", content=rng.choice(bodies))
    httpx.post(f"{server.url}/upload", content=rng.randbytes(99), headers={"content-type": "multipart/form-data"})
    httpx.get(f"{server.url}/call/decompose/{rng.randrange(99)}")


def headless(server: Server, _: random.Random) -> None:
    """Connections on which no request ever ends."""
    with server.connection(""), server.connection("GET / HTTP/1.1\r\n") as stream:
        for _count in range(30):
            stream.sendall(b"a: b\r\n")
            time.sleep(0.5)


ATTACKS: tuple[Callable[[Server, random.Random], None], ...] = (
    two_lengths,
    more_than_said,
    unheard,
    left,
    flood,
    malformed,
    headless,
)


def attacked(server: Server, number: int, end: threading.Event) -> None:
    """Attack in one way until the end, whatever the server answers."""
    rng = random.Random(number)
    while not end.is_set():
        with suppress(OSError, httpx.HTTPError, ValueError, KeyError):
            ATTACKS[number % len(ATTACKS)](server, rng)
        end.wait(0.05)


def honest(server: Server, number: int) -> tuple[list[float], int]:
    """Seconds until an upload was taken, until the call was, and until the layers were there; how often it asked again.

    Raises:
      RuntimeError: if the answer is none.
    """
    began, refusals = time.monotonic(), 0
    times = []

    def accepted(ask: Callable[[], httpx.Response]) -> Any:
        nonlocal refusals
        while (answer := ask()).status_code in (503, 507):
            refusals += 1
            time.sleep(AGAIN)
        if answer.status_code != 200:
            raise RuntimeError(f"{answer.status_code}: {answer.text}")
        times.append(time.monotonic() - began)
        return answer.json()

    (path,) = accepted(lambda: server.upload(small(number), timeout=ANSWERED))
    call = accepted(lambda: server.call({"picture": picture(path), "formats": ["zip"]}, timeout=ANSWERED))
    with httpx.stream("GET", f"{server.url}/call/decompose/{call['event_id']}", timeout=None) as stream:
        lines = list(stream.iter_lines())
    if "event: complete" not in lines:
        raise RuntimeError(" ".join(lines[-4:]))
    said = json.loads(lines[lines.index("event: complete") + 1].removeprefix("data: "))
    layers = httpx.get(said[2][0]["url"], timeout=ANSWERED)
    if layers.status_code != 200 or not layers.content.startswith(b"PK"):
        raise RuntimeError(f"the layers' file is {layers.status_code}")
    return [*times, time.monotonic() - began], refusals


def measure(arguments: argparse.Namespace) -> int:
    """Attack, and print what the app took and how long the honest client waited; returns 1 if that is too much."""
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        try:
            return _measure(server, arguments.clients, 60 * arguments.minutes)
        finally:
            server.process.terminate()  # a shell may have made it deaf to SIGINT
            server.process.wait()


def _measure(server: Server, clients: int, seconds: float) -> int:
    alone = [honest(server, number)[0][-1] for number in range(3)]
    before, end, found = server.memory(), threading.Event(), {"memory": [0], "disk": [0], "files": [0]}

    def watch() -> None:
        while not end.wait(1):
            for name, figures in found.items():
                figures.append(getattr(server, name)())

    others = [threading.Thread(target=attacked, args=(server, i, end), daemon=True) for i in range(clients - 1)]
    others.append(threading.Thread(target=watch, daemon=True))
    for other in others:
        other.start()
    times, refusals, failures = _asked(server, seconds)
    end.set()
    for other in others:
        other.join(60)
    log = server.log.read_text()
    is_alive = server.process.poll() is None
    table = Table("what", "figure")
    rows = {
        "clients, of which 1 is honest": str(clients),
        "minutes": f"{seconds / 60:g}",
        "memory, MiB: before, most": f"{before}, {max(found['memory'])}",
        "disk, MiB: most, of allowed": f"{max(found['disk'])}, {DISK}",
        "open files: most": str(max(found["files"])),
        "honest calls: served, failed": f"{len(times)}, {len(failures)}",
        "told to ask again": str(refusals),
        "seconds of one alone": f"{np.median(alone):.1f}",
        "seconds of one that is as large as is taken": f"{Limits().work * np.median(alone):.0f}",
        "seconds to the layers: median, 95 %, most": _spread([whole for _, _, whole in times]),
        "of these, to the upload": _spread([upload for upload, _, _ in times]),
        "of these, to the call": _spread([call for _, call, _ in times]),
        "tracebacks in the log": str(log.count("Traceback")),
    }
    for name, figure in rows.items():
        table.add_row(name, figure)
    Console().print(table)
    print("\n".join(failures[:5]))
    if "Traceback" in log:
        print(log[log.index("Traceback") :][:4000])
    slowest = max((whole for _, _, whole in times), default=np.inf)
    is_bad = bool(failures) or "Traceback" in log or not is_alive or slowest > Limits().work * np.median(alone)
    return int(is_bad or max(found["disk"]) > DISK + RESULT or max(found["memory"]) > before + GROWTH)


def _asked(server: Server, seconds: float) -> tuple[list[list[float]], int, list[str]]:
    """The honest client's times, how often it had to ask again, and what failed."""
    until, times, refusals, failures = time.monotonic() + seconds, [], 0, []
    for number in itertools.count(3):
        if time.monotonic() > until or server.process.poll() is not None:
            break
        try:
            needed, again = honest(server, number)
            times, refusals = [*times, needed], refusals + again
        except (RuntimeError, httpx.HTTPError, OSError) as error:
            failures.append(f"{type(error).__name__}: {error}")
    return times, refusals, failures


def _spread(values: list[float]) -> str:
    return ", ".join(f"{np.quantile(values or [np.nan], q):.1f}" for q in (0.5, 0.95, 1))
