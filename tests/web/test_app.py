"""The app and its HTTP API: layers as the pipeline makes them, and a clear answer for everybody."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import gradio_client
import numpy as np
import pytest
from app_server import STEPS, Client, RefusedError, encoded, layers_in, noise, served
from PIL import Image
from waiting import until

from qil_jax import Pipeline, Request, Settings
from qil_jax.choices import Edges
from qil_jax.layers.refinement import at_size

pytestmark = pytest.mark.full

GROWTH = 500
"""MiB by which the app's memory may grow in the storm. Decoding and resizing one large picture takes up to 350."""
LARGE = 4900
"""Side of a picture that is just allowed: 92 MiB once decoded, and two of them come at once."""
FAULT = "The server made a mistake"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load()


@dataclasses.dataclass(frozen=True)
class Case:
    """A client: what it uploads and asks for, and the error that it must get; None: its own layers."""

    data: bytes
    error: str | None = None
    name: str = "picture.png"
    image: Image.Image | None = None
    asked: dict[str, Any] = dataclasses.field(default_factory=dict)


def good(number: int, size: tuple[int, int] = (64, 64), mode: str = "RGBA", **asked: Any) -> Case:
    image = noise(size, number, mode)
    return Case(encoded(image, compress_level=1), image=image, asked={"layers": "3", "seed": 7, **asked})


def refused(number: int) -> Case:
    """A picture that is decoded, but whose layers would be more than are made."""
    data = encoded(noise((LARGE, LARGE), number, "L"), compress_level=1)
    return Case(data, f"up to 3 layers of {LARGE}x{LARGE} pixels, 2,000,000 pixels at most", asked={"layers": "3"})


def storm() -> list[Case]:
    """Twenty clients."""
    animated = encoded(noise((9, 9), 0), "GIF", save_all=True, append_images=[noise((9, 9), 1)])
    small = encoded(noise((64, 64), 9))
    return [
        *[good(number) for number in (0, 1, 2, 7)],
        good(3, (96, 48)),
        good(4, prompt="a kite"),
        good(5, (200, 200), "RGB", seed=11),
        *[refused(number) for number in (6, 8)],
        Case(encoded(Image.new("1", (LARGE + 200, LARGE + 200))), "5100x5100 pixels, 25,000,000 at most", "bomb.png"),
        Case(encoded(Image.new("1", (60_000, 4_000))), "too many pixels", "larger.png"),
        Case(np.random.default_rng(0).bytes(2**20 + 2**17), "1 MB at most", "heavy.png"),
        Case(small[:-40], "cut.png: cannot be read as a picture", "cut.png"),
        Case(b"<html>no picture</html>", "text.png: cannot be read as a picture", "text.png"),
        Case(b"", "empty.png: cannot be read as a picture", "empty.png"),
        Case(animated, "animated", "moving.gif"),
        Case(encoded(Image.new("L", (3000, 2))), "thin.png: 3000x2 collapses", "thin.png"),
        Case(small, "steps must be at least 1, got 0", asked={"steps": 0}),
        Case(small, "layers must be from 1 to 20, got 99", asked={"layers": "99"}),
        Case(small, "formats must be a list of", asked={"formats": ["exe"]}),
    ]


def direct(pipeline: Pipeline, image: Image.Image, asked: dict[str, Any]) -> np.ndarray:
    options = {**asked, "layers": int(asked["layers"]), "prompt": asked.get("prompt", "")}
    layered = pipeline.decompose([Request(image=image, **options)], Settings(steps=STEPS))[0].layered
    return at_size(layered, np.asarray(image.convert("RGBA")), Edges.REFINED)[0].layers


def test_layers_are_the_pipelines_own(server, pipeline, tmp_path):
    """By the client that gradio brings, which downloads the files."""
    image, file = noise((64, 64), 1), tmp_path / "a kite.png"
    image.save(file)
    client = gradio_client.Client(server.url, download_files=str(tmp_path / "got"), verbose=False)
    asked = {"layers": "3", "seed": 5, "prompt": "a kite"}
    picture = gradio_client.handle_file(file)
    said, prompt, files, record = client.predict(picture=picture, steps=STEPS, **asked, api_name="/decompose")
    client.close()
    assert "3 layers of 64 x 64 pixels" in said and prompt == "a kite"
    assert record["settings"]["seed"] == 5 and len(record["layers"]) == 3
    by_suffix = {Path(name).suffix: Path(name) for name in files}
    assert {".psd", ".zip", ".json"} <= by_suffix.keys()
    np.testing.assert_array_equal(layers_in(by_suffix[".zip"].read_bytes()), direct(pipeline, image, asked))


def test_twenty_clients_at_once_get_their_own_layers_or_a_clear_error(server, pipeline):
    cases = storm()
    assert len(cases) == 20
    call = lambda case: Client(server).decompose(case.data, case.name, **case.asked)
    for case in cases:  # all programs are compiled before memory is compared
        assert case.error is not None or call(case).error is None
    server.forget_peak()
    before = server.memory("VmRSS")
    with ThreadPoolExecutor(len(cases)) as clients:
        answers = list(clients.map(call, cases))
    for case, answer in zip(cases, answers, strict=True):
        if case.error is not None:
            assert answer.outputs is None and case.error in answer.error, (case.name, answer)
            assert str(server.work) not in answer.error and FAULT not in answer.error
            continue
        assert answer.error is None, (case.name, answer)
        np.testing.assert_array_equal(Client(server).layers(answer), direct(pipeline, case.image, case.asked))
    growth = server.memory("VmHWM") - before
    print(f"memory grew by {growth} MiB")
    assert growth < GROWTH
    assert Client(server).decompose(cases[0].data).error is None
    assert "Traceback" not in server.log.read_text()


@pytest.mark.parametrize("path", ["/etc/passwd", "../../etc/passwd", "http://127.0.0.1:1/x.png", "data:,x", None, 3])
def test_pictures_are_never_taken_from_elsewhere(server, path):
    with pytest.raises(RefusedError, match=r"400.*by the path that its upload returned"):
        Client(server).start(path)


@pytest.mark.parametrize("picture", [None, "picture.png", 7, {"url": "http://127.0.0.1:1/x.png"}, ["x"]])
def test_what_is_no_picture_is_named(server, picture):
    answer = Client(server).post("call/v2/decompose", json={"picture": picture, "steps": STEPS})
    assert answer.status_code == 400 and "picture" in answer.json()["detail"]


def test_no_file_but_own_uploads_and_results_is_served(server, tmp_path):
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    client = Client(server)
    upload = client.upload(encoded(noise((9, 9), 0)))
    assert client.get(f"/gradio_api/file={upload}").status_code == 200
    others = [secret, server.work, Path(upload).parent, Path(upload).parents[1], f"{upload}/../../../../log.txt"]
    others += ["/etc/passwd", "http://127.0.0.1:1/x", server.work / ".." / "log.txt"]
    assert {client.get(f"/gradio_api/file={path}").status_code for path in others} == {403}


def test_calls_past_the_queue_are_refused(server):
    answer = Client(server).post("run/decompose", json={"data": [None] * 9})
    assert answer.status_code == 404 and "join the queue" in answer.text


def steps_of(job: gradio_client.client.Job) -> int | None:
    """The number of steps, once the first is done."""
    progress = job.status().progress_data
    return progress[0].length if progress and progress[0].index is not None else None


def test_calls_end_when_nobody_waits_a_full_queue_says_so_and_the_end_leaves_nothing(tmp_path):
    picture, file = encoded(noise((64, 64), 20)), tmp_path / "sent.png"
    file.write_bytes(picture)
    with served(tmp_path, "--queue", "2") as small:
        client, calls = Client(small), []
        path = client.upload(picture)
        with small.holding():
            with pytest.raises(RefusedError, match=r"503.*Queue is full"):
                for _ in range(9):
                    calls.append(client.start(path, steps=100))
            for call in calls:
                client.leave(call)
            other = gradio_client.Client(small.url, verbose=False)
            job = other.submit(picture=gradio_client.handle_file(file), steps=100, api_name="/decompose")
            until(lambda: job.done() or steps_of(job))
            assert not job.done() and steps_of(job) == 100
            job.cancel()
        assert client.decompose(picture, seed=1).error is None
        other.close()
        assert len(small.results()) == 1, "what nobody waits for was finished"
    assert list(small.work.iterdir()) == []
    assert small.process.returncode == 130
