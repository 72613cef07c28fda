"""The campaign of requests to the app: its real server and page, whose decompositions paint two layers at once.

A request must be answered as docs/app.md says: by its outcome, or by a status below 500 and words. What is accepted is
compared with a reading of the table of parameters there (`documented`).
"""

import contextlib
import dataclasses
import io
import json
import logging
import random
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from tools.fuzz.cases import Case, mutate
from tools.fuzz.edits import ODD

BUSY = (503, 507)
"""Statuses from 500 on that are no faults: the queue or the folder is full."""
PATIENCE = 120.0
"""Seconds after which a request counts as hanging."""
WHOLE = {
    "layers": ("1", "7", "20", "auto", 3),
    "steps": (1, 12, 100, 5.0),
    "guidance": (1, 2.5, 4, 0.0),
    "seed": (0, 777, 4294967295, 7.0),
    "prompt": ("", "a kite", "\u0663 \u202e", "x" * 4000),
    "exact": (True, False),
    "depth": (1, 2),
    "formats": ([], ["zip"], ["psd", "ora"], ["pptx", "zip", "zip"]),
}
"""Values of the parameters, all of which can be had."""
STRANGE = (*ODD, "00000000019", "21", "AUTO", 4294967296, 101, 1e17, ["exe"], [["zip"]], "/etc/passwd", {"path": "/"})
PATHS = ("call/v2/decompose", "call/decompose", "queue/join", "run/decompose", "call/v2/nosuch", "call/\x00", "cancel")
PATHS += ("reset", "upload", "api/decompose", "call/v2/%F0%28", "queue/data", "component_server", "../config")
PATHS += ("x" * 3000,)
ADDRESSES = ("", "config", "gradio_api/info", "gradio_api/file=/etc/passwd", "gradio_api/call/decompose/x", "theme.css")
ADDRESSES += ("gradio_api/queue/data?session_hash=x", "gradio_api/file=", "gradio_api/file=%00", "assets/%2e%2e/x")
ADDRESSES += (
    "gradio_api/upload_progress?upload_id=x",
    "static/../../x",
    "svelte/x",
    "gradio_api/%E2%28",
    "monitoring/x",
)
ADDRESSES += ("pwa_icon/x", "pwa_icon/5", "robots.txt", "gradio_api/queue/status", "gradio_api/token", "?__theme=x")
ADDRESSES += ("gradio_api/heartbeat/%FF", "monitoring/x")
NAMES = ("x.png", "", " ", "..", "../../x", "a" * 5000, "a\x00b.png", "\ud800.png", "CON", "\u202egnp.x", '"')
NAMES += ("x.png\r\nA: b",)
HEADERS = (
    ("content-type", "text/plain"),
    ("content-type", "application/json; charset=utf-7"),
    ("content-type", "\xff"),
    ("content-length", "-1"),
    ("content-length", "9" * 30),
    ("content-length", "1, 2"),
    ("transfer-encoding", "chunked"),
    ("transfer-encoding", "gzip, chunked"),
    ("host", ""),
    ("host", "a b"),
    ("x-forwarded-host", "\xe9"),
    ("x-forwarded-host", "a,b"),
    ("x-forwarded-proto", "ftp"),
    ("accept-encoding", "br;q=x"),
    ("range", "bytes=9-1"),
    ("cookie", "a" * 9000),
    ("authorization", "Basic ///"),
    ("origin", "null"),
    ("expect", "100-continue"),
    ("upgrade", "websocket"),
    ("x", "y" * 70000),
)


@dataclasses.dataclass
class Stub:
    """What decomposes: the options that it was last asked for."""

    asked: tuple[Any, ...] = ()

    def decompose(self, upload: Path, folder: Path, options: Any, settings: Any, **_: Any) -> Path:
        """Two small layers, whatever the picture is."""
        from qil_jax.export.result import write_result
        from qil_jax.layers.layered_image import LayeredImage

        self.asked = options, settings
        layers = LayeredImage(layers=np.full((2, 4, 4, 4), 200, np.uint8), names=("ground", "figure"))
        record = {"settings": {"prompt": options.prompt}, "batch_seconds": {"denoise": 0.0}}
        write_result(folder / "result", layers, layers.layers[0], record, exports=options.exports)
        return folder / "result"


class Faults(logging.Handler):
    """What the server logs as errors."""

    def __init__(self):
        super().__init__(logging.ERROR)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep it, with the last line of its traceback."""
        error = record.exc_info[1] if record.exc_info else None
        self.found.append(f"{record.getMessage()[:200]} {error!r}"[:600])


@dataclasses.dataclass
class Target:
    """The running app.

    Attributes:
      url: address of its API.
      port: its port.
      stub: what decomposes.
      faults: what it logged.
      printed: what it printed.
      upload: an upload that calls may name.
    """

    url: str
    port: int
    stub: Stub
    faults: Faults
    printed: io.StringIO
    upload: str = ""

    def problem(self, answer: httpx.Response) -> str:
        """What is wrong with an answer, or with what was logged since the last."""
        found, printed = self.faults.found[:], self.printed.getvalue()
        self.faults.found.clear()
        self.printed.seek(0)
        self.printed.truncate()
        if "Traceback" in printed:
            found.append(printed.strip().splitlines()[-1])
        if answer.status_code >= 500 and answer.status_code not in BUSY:
            found.append(f"answered {answer.status_code}: {answer.text[:200]}")
        return "; ".join(found)


def app(seeds: range, folder: Path) -> Iterator[Case]:
    """One case per seed: a call, an upload, an address, or bytes that may be none of these."""
    with _served(folder) as target, httpx.Client(timeout=PATIENCE) as client:
        for number, seed in enumerate(seeds):
            if number % 100 == 0:  # uploads do not stay for ever
                target.upload = client.post(f"{target.url}upload", files={"files": ("x.png", b"x")}).json()[0]
            rng = random.Random(seed)
            kind = rng.choice([_call, _call, _call, _upload, _address, _raw])
            try:
                outcome, failure = kind(target, client, rng)
            except httpx.TimeoutException as error:
                outcome, failure = "hung", f"{kind.__name__} hung: {error!r}"
            except (httpx.InvalidURL, httpx.LocalProtocolError):
                outcome, failure = "nothing that can be sent", ""
            yield Case(seed=seed, outcome=outcome, failure=failure)


@contextlib.contextmanager
def _served(folder: Path) -> Iterator[Target]:
    from qil_jax.app.server import launched, work_folder

    with work_folder(folder) as work, socket.create_server(("127.0.0.1", 0)) as probe:
        from qil_jax.app.limits import Limits
        from qil_jax.app.page import Served
        from qil_jax.app.start import storage
        from qil_jax.inference.defaults import Defaults

        stub, limits, port = Stub(), Limits(megabytes=1, disk=1024, queue=8), probe.getsockname()[1]
        probe.close()
        faults, printed = Faults(), io.StringIO()
        logging.getLogger().addHandler(faults)
        for name in ("uvicorn.error", "asyncio"):
            logging.getLogger(name).addHandler(faults)
        served = Served(
            decompose=stub.decompose,
            defaults=Defaults(layers=4, steps=12, guidance=1.0),
            captions=False,
            limits=limits,
            storage=storage(work, limits),
        )
        page = launched(served, host="127.0.0.1", port=port)
        with contextlib.redirect_stderr(printed):
            yield Target(f"http://127.0.0.1:{port}/gradio_api/", port, stub, faults, printed)
        page.close(verbose=False)
        logging.getLogger().removeHandler(faults)


def documented(given: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What docs/app.md says that a call's values mean, and the parameters whose values cannot be had."""
    meant: dict[str, Any] = {"layers": 4, "steps": 12, "guidance": 1.0, "seed": 777, "prompt": "", "exact": False}
    meant |= {"depth": 1, "formats": ["zip", "psd"]}
    read = {name: value for name, value in given.items() if name != "picture"}
    read = {name: value for name, value in read.items() if value is not None or name in ("formats", "nope", "")}
    layers = read.get("layers")
    if isinstance(layers, str) and layers.isdecimal() and len(layers) <= 20:
        read["layers"] = int(layers)
    bad = [name for name, value in read.items() if not CAN_BE.get(name, lambda _: False)(value)]
    if not bad:
        meant |= read
        meant |= {"prompt": meant["prompt"].strip(), "formats": list(dict.fromkeys(meant["formats"]))}
    return meant, bad


def _whole(value: Any, least: int, most: int) -> bool:
    is_number = not isinstance(value, bool) and isinstance(value, int | float)
    return is_number and value == value // 1 and least <= value <= most


CAN_BE = {
    "layers": lambda value: value == "auto" or _whole(value, 1, 20),
    "steps": lambda value: _whole(value, 1, 100),
    "seed": lambda value: _whole(value, 0, 4294967295),
    "depth": lambda value: _whole(value, 1, 3),
    "guidance": lambda value: isinstance(value, int | float) and not isinstance(value, bool),
    "prompt": lambda value: isinstance(value, str) and len(value) <= 4000,
    "exact": lambda value: isinstance(value, bool),
    "formats": lambda value: isinstance(value, list) and all(x in ("zip", "psd", "ora", "pptx") for x in value),
}
"""Parameter to whether it can have a value, by the table of docs/app.md."""


def _call(target: Target, client: httpx.Client, rng: random.Random) -> tuple[str, str]:
    names = rng.sample(list(WHOLE), rng.randint(0, len(WHOLE)))
    body: Any = {"picture": {"path": target.upload, "meta": {"_type": "gradio.FileData"}}}
    body |= {name: rng.choice(WHOLE[name]) for name in names}
    for _ in range(rng.choice([0, 0, 1, 1, 2])):
        body[rng.choice([*WHOLE, *WHOLE, "picture", "nope", "", "\ud800"])] = rng.choice(STRANGE)
    path, values = PATHS[0], body
    if rng.random() < 0.25:
        path = rng.choice(PATHS)
        listed = [body.get(name) for name in ("picture", *WHOLE)]
        body = {"data": listed[: rng.choice([9, 9, 9, 3, 0])], "fn_index": rng.choice([0, 1, 99, *ODD[:9]])}
        body |= {"session_hash": rng.choice(["s", *ODD])}
        body = rng.choice([body, body, values, *ODD])
    text = json.dumps(body).encode()
    text = mutate(text, rng) if rng.random() < 0.15 else text
    target.stub.asked = ()
    headers = {"content-type": "application/json"} | (dict([rng.choice(HEADERS[:3])]) if rng.random() < 0.05 else {})
    answer = client.post(target.url + path, content=text, headers=_encoded(headers))
    failure, is_call = target.problem(answer), path == PATHS[0] and answer.status_code == 200
    if failure or not is_call:
        return f"call {answer.status_code}", failure
    stream = client.get(f"{target.url}call/decompose/{answer.json()['event_id']}")
    failure = target.problem(stream) or _unlike(target.stub, json.loads(text), stream.text)
    return "call done", failure and f"{text[:500]!r}: {failure}"


def _unlike(stub: Stub, given: dict[str, Any], stream: str) -> str:
    """How what was decomposed differs from what was asked for."""
    if "event: complete" not in stream:
        return f"accepted, and then {stream[-300:]!r}"
    meant, bad = documented(given)
    if bad:
        return f"accepted {bad[0]}={given[bad[0]]!r}"
    options, settings = stub.asked
    done = {name: getattr(options, name) for name in ("seed", "exact", "depth")}
    done |= {"steps": settings.steps, "guidance": settings.guidance, "prompt": options.prompt or ""}
    done |= {"formats": [str(x) for x in options.exports], "layers": "auto" if options.auto else options.layers}
    unlike = [f"{name} {done[name]!r}, not {meant[name]!r}" for name in done if done[name] != meant[name]]
    return ", ".join(unlike)


def _upload(target: Target, client: httpx.Client, rng: random.Random) -> tuple[str, str]:
    name, data = rng.choice(NAMES), rng.randbytes(rng.choice([0, 1, 1000, 2**20, 2**20 + 1]))
    part = f'--B\r\nContent-Disposition: form-data; name="files"; filename="{name}"\r\n\r\n'
    form = part.encode("utf-8", "surrogatepass") + data + b"\r\n--B--\r\n"
    form = mutate(form, rng) if rng.random() < 0.4 else form
    form *= rng.choice([1, 1, 1, 2])
    kind = rng.choice(
        ["multipart/form-data; boundary=B"] * 6 + ["multipart/form-data", "x", "multipart/form-data; boundary="]
    )
    query = rng.choice(["", "", "", "?upload_id=x", "?upload_id=", "?x"])
    answer = client.post(f"{target.url}upload{query}", content=form, headers={"content-type": kind})
    failure = target.problem(answer)
    if not failure and answer.status_code == 200:
        for path in answer.json():
            file = client.get(f"{target.url}file={path}")
            failure = failure or target.problem(file)
            if not Path(path).resolve().is_relative_to(target_folder(target)):
                failure = f"was stored as {path}"
    return f"upload {answer.status_code}", failure and f"{form[:200]!r}: {failure}"


def target_folder(target: Target) -> Path:
    """The folder of uploads, by the one that is known."""
    return Path(target.upload).resolve().parents[1]


def _address(target: Target, client: httpx.Client, rng: random.Random) -> tuple[str, str]:
    address = rng.choice(ADDRESSES)
    if rng.random() < 0.3:
        at = rng.randrange(len(address) + 1)
        address = (
            address[:at] + rng.choice(["%00", "%FF", "//", "..", "\u0663", "?", "&", "=", "%", "#"]) + address[at:]
        )
    headers = dict([rng.choice(HEADERS[8:])]) if rng.random() < 0.4 else {}
    method = rng.choice(["GET", "GET", "HEAD", "OPTIONS", "DELETE", "PUT", "X"])
    url = target.url.removesuffix("gradio_api/") + address
    try:
        with client.stream(method, url, headers=_encoded(headers)) as answer:
            if "event-stream" not in answer.headers.get("content-type", ""):
                answer.read()
            else:
                answer._content = b""
    except httpx.RemoteProtocolError:
        return "address unanswered", target.problem(httpx.Response(400))
    failure = target.problem(answer)
    return f"address {answer.status_code}", failure and f"{method} {address!r} {headers!r}: {failure}"


def _raw(target: Target, _: httpx.Client, rng: random.Random) -> tuple[str, str]:
    """Bytes on a connection: a request with odd headers, mutated."""
    body = rng.choice([b"", b"{}", b'{"data": []}', rng.randbytes(50)])
    method, version = rng.choice(["POST", "GET", "get", "PRI"]), rng.choice(["1.1", "1.0", "2"])
    lines = [f"{method} /gradio_api/{rng.choice(PATHS[:9])} HTTP/{version}"]
    lines += [f"{name}: {value}" for name, value in rng.sample(HEADERS, rng.choice([0, 1, 2]))]
    lines += [f"Content-Length: {len(body)}"] if rng.random() < 0.8 else []
    lines += ["Host: x", "Connection: close", "", ""]
    data = "\r\n".join(lines).encode("latin-1") + body
    data = mutate(data, rng) if rng.random() < 0.5 else data
    with socket.create_connection(("127.0.0.1", target.port), PATIENCE) as stream:
        answer = b""
        with contextlib.suppress(ConnectionError):
            stream.sendall(data)
            stream.shutdown(socket.SHUT_WR)
            while piece := stream.recv(2**16):
                answer += piece
    status = answer[9:12].decode("latin-1") if answer.startswith(b"HTTP/1.1 ") else ""
    found = target.problem(httpx.Response(int(status) if status.isdecimal() else 400))
    return f"bytes {status or 'unanswered'}", found and f"{data[:300]!r}: {found}"


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
