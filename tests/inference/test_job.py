"""infer.py from the command line: what is written, what is kept, what is refused before any compute."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qil_jax.inference.cli import parse_arguments
from qil_jax.inference.job import JobError, JobOptions, check_output, find_tasks, run_job
from qil_jax.inference.request import Decomposition, Request, Settings
from qil_jax.layered_image import LayeredImage
from tools.make_demo_checkpoint import write_checkpoint

ROOT = Path(__file__).resolve().parents[2]


class Painter:
    """A decomposer that paints every layer in one colour, and may be cut off."""

    def __init__(self, *, fails_at: int | None = None):
        self.seen: list[str] = []
        self._fails_at = fails_at

    def decompose(self, requests, settings=Settings(), *, on_step=None):  # noqa: B008 (frozen)
        if self._fails_at is not None and len(self.seen) >= self._fails_at:
            raise KeyboardInterrupt
        self.seen += [request.prompt for request in requests]
        return [self._one(request, i) for request in requests for i in range(request.samples)]

    def _one(self, request: Request, sample: int) -> Decomposition:
        layers = np.full((request.layers, 8, 8, 4), 40 * sample, np.uint8)
        names = tuple(f"Layer {i}" for i in range(request.layers))
        return Decomposition(
            layered=LayeredImage(layers=layers, names=names),
            composite=layers[0],
            input=layers[0],
            latents=np.zeros((request.layers + 1, 1, 1, 2), np.float32),
            timings={"denoise": 1.0},
            request=request,
            sample=sample,
        )


@pytest.fixture
def pictures(tmp_path) -> Path:
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name in ("b.png", "a.PNG", "c.jpg", "notes.txt"):
        if name.endswith("txt"):
            (folder / name).write_text("no picture")
        else:
            Image.new("RGB", (64, 48), "red").save(folder / name)
    return folder


RECORD = {"layers": 2, "samples": 1}
OPTIONS = JobOptions(layers=2)


def run(tasks, painter, options=OPTIONS, *, overwrite=False, batch=2):
    record = {"settings": {**RECORD, "samples": options.samples}}
    return run_job(tasks, painter, options, Settings(), record=record, batch=batch, overwrite=overwrite)


def test_folders_are_read_in_order_and_names_never_clash(pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 48)).save(other / "B.png")
    tasks = find_tasks([pictures, other / "B.png", pictures / "b.png"], tmp_path / "out")
    assert [t.source.name for t in tasks] == ["a.PNG", "b.png", "c.jpg", "B.png"]
    assert [t.folder.name for t in tasks] == ["a", "b", "c", "B_2"]


def test_an_interrupted_run_continues_where_it_stopped(pictures, tmp_path):
    out = tmp_path / "out"
    tasks = find_tasks([pictures], out)
    with pytest.raises(KeyboardInterrupt):
        run(tasks, Painter(fails_at=2))
    left = check_output(out, tasks, RECORD, overwrite=False)
    assert [t.source.name for t in left] == ["c.jpg"]
    first = (out / "a" / "result.json").stat().st_mtime_ns
    painter = Painter()
    assert len(run(left, painter)) == 1 and len(painter.seen) == 1
    assert (out / "a" / "result.json").stat().st_mtime_ns == first
    assert check_output(out, tasks, RECORD, overwrite=False) == []


def test_results_of_other_settings_are_not_touched_unasked(pictures, tmp_path):
    out = tmp_path / "out"
    tasks = find_tasks([pictures], out)
    run(tasks, Painter())
    with pytest.raises(JobError, match="made with other settings") as caught:
        check_output(out, tasks, {**RECORD, "layers": 3}, overwrite=False)
    assert len(caught.value.problems) == 3
    (out / "b" / "result.json").unlink()
    with pytest.raises(JobError, match="is no finished result"):
        check_output(out, tasks, RECORD, overwrite=False)
    assert len(check_output(out, tasks, RECORD, overwrite=True)) == 3
    run(tasks, Painter(), overwrite=True)
    assert check_output(out, tasks, RECORD, overwrite=False) == []


def test_samples_get_folders_of_their_own(pictures, tmp_path):
    tasks = find_tasks([pictures / "b.png"], tmp_path / "out")
    run(tasks, Painter(), JobOptions(layers=2, samples=3))
    assert sorted(p.name for p in (tmp_path / "out" / "b").iterdir()) == ["sample_01", "sample_02", "sample_03"]
    left = check_output(tmp_path / "out", tasks, {"layers": 2, "samples": 3}, overwrite=False)
    assert left == []


def test_every_bad_input_is_in_one_report(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    (pictures / "broken.png").write_bytes(b"x")
    with pytest.raises(JobError) as caught:
        find_tasks([pictures, tmp_path / "empty", tmp_path / "nowhere.png"], tmp_path / "out")
    report = str(caught.value)
    for words in ("broken.png", "holds no pictures", "nowhere.png: no such file or folder"):
        assert words in report


def test_an_output_that_cannot_be_written(pictures, tmp_path, monkeypatch):
    tasks = find_tasks([pictures], tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(JobError, match="is a file; give --out a folder"):
        check_output(tmp_path / "file" / "deeper", tasks, RECORD, overwrite=False)
    monkeypatch.setattr(os, "access", lambda *a: False)  # permissions do not bind root, who may run this test
    with pytest.raises(JobError, match="not writable; give another --out"):
        check_output(tmp_path / "out", tasks, RECORD, overwrite=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "0"], "--layers must be from 1 to 20, got 0"),
        (["--layers", "21"], "--max-layers N allows more"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--guidance", "nan"], "--guidance must be a finite number"),
        (["--samples", "0", "--batch", "0"], "--batch must be at least 1"),
        (["--resolution", "500"], "--resolution must be a multiple of 32"),
    ],
)
def test_arguments_are_refused(words, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        parse_arguments(["a.png", "--checkpoint", str(tmp_path), "--out", "x", *words])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


def test_more_layers_with_an_override(tmp_path):
    words = ["a.png", "--checkpoint", str(tmp_path), "--out", "x", "--layers", "25", "--max-layers", "30"]
    arguments = parse_arguments(words)
    assert arguments.options().layers == 25
    request = Request(image=Image.new("RGB", (64, 64)), layers=25, max_layers=30)
    assert request.problems() == []
    assert Request(image=request.image, layers=21).problems() and Request(image=request.image, layers=0).problems()
    assert Settings(guidance=float("nan")).problems() and Settings(steps=0).problems()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("demo") / "checkpoint"
    write_checkpoint(folder)
    return folder


def infer(*words) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, ROOT / "infer.py", *map(str, words)], capture_output=True, text=True)


def test_the_program(checkpoint, pictures, tmp_path):
    words = [pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--layers", 2, "--steps", 2, "--batch", 2]
    done = infer(*words)
    assert done.returncode == 0, done.stderr
    assert "an empty prompt is used" in done.stdout and "step 2/2" in done.stdout
    for name in "abc":
        folder = tmp_path / "out" / name
        files = sorted(p.name for p in folder.iterdir())
        assert files == ["01_Layer_1.png", "02_Layer_2.png", "layers.psd", "result.json", "sheet.png"]
        record = json.loads((folder / "result.json").read_text())
        assert record["size"] == [736, 544] and record["settings"]["steps"] == 2
        assert record["recomposition_psnr_db"] > 0 and set(record["batch_seconds"]) == {
            "text",
            "encode",
            "denoise",
            "decode",
        }
        with Image.open(folder / "01_Layer_1.png") as layer:
            assert layer.size == (736, 544) and layer.mode == "RGBA"
    again = infer(*words)
    assert again.returncode == 0 and again.stdout.count("already finished") == 3
    refused = infer(*words[:-4], "--steps", 3)
    assert refused.returncode == 2 and "made with other settings" in refused.stderr
    assert "Traceback" not in refused.stderr


def test_the_program_refuses_before_compute(checkpoint, pictures, tmp_path):
    words = [pictures / "b.png", "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    for extra, message in (
        (["--mesh", "data=3"], "devices"),
        (["--mesh", "banana=1"], "banana"),
        (["--checkpoint", pictures], "model_index.json"),
    ):
        refused = infer(*words, *extra)
        assert refused.returncode == 2, refused.stdout
        assert message in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()
