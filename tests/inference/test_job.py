"""infer.py from the command line: what is written, what is kept, what is refused before any compute."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from qil_jax.export.result import ResultError
from qil_jax.inference import pictures as pictures_module
from qil_jax.inference.cli import parse_arguments
from qil_jax.inference.images import ImageError, resize_layers
from qil_jax.inference.job import JobError, JobOptions, plan_tasks, run_job, tasks_left
from qil_jax.inference.pictures import find_pictures
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


OPTIONS = JobOptions(layers=2)
CHECKPOINT = {"folder": "checkpoint", "digest": "0123456789abcdef"}
SETTINGS = {"layers": 2, "steps": 3}


def planned(inputs, out, options=OPTIONS, *, checkpoint=CHECKPOINT, settings=SETTINGS):
    found = find_pictures(inputs)
    assert not found.problems and not found.bad
    return plan_tasks(found.pictures, out, options, checkpoint=checkpoint, settings=settings)


def run(tasks, painter, *, overwrite=False, batch=2):
    return list(run_job(tasks, painter, Settings(), batch=batch, overwrite=overwrite))


def test_folders_are_read_in_order_and_names_never_clash(pictures, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Image.new("RGB", (64, 48)).save(other / "B.png")
    found = find_pictures([pictures, other / "B.png", pictures / "b.png"]).pictures
    assert [p.path.name for p in found.values()] == ["a.PNG", "b.png", "c.jpg", "B.png"]
    assert list(found) == ["a", "b", "c", "B_2"]


def test_hidden_files_are_no_pictures_and_avif_is_one(pictures):
    (pictures / "._b.png").write_bytes(b"made by a file manager")
    Image.new("RGB", (64, 48), "red").save(pictures / "d.avif")
    found = find_pictures([pictures])
    assert list(found.pictures) == ["a", "b", "c", "d"] and not found.bad
    assert find_pictures([pictures / "d.avif"]).pictures["d"].size == (64, 48)


def test_a_picture_is_decoded_once_while_memory_allows(pictures, tmp_path, monkeypatch):
    decoded = []
    decode = pictures_module.decode_image
    monkeypatch.setattr(pictures_module, "decode_image", lambda *a, **k: decoded.append(a[1]) or decode(*a, **k))
    run(planned([pictures], tmp_path / "out"), Painter())
    assert len(decoded) == 3
    monkeypatch.setattr(pictures_module, "KEPT_BYTES", 64 * 48 * 4)  # the first alone
    run(planned([pictures], tmp_path / "again"), Painter())
    assert len(decoded) == 3 + 3 + 2


def test_a_picture_that_changes_meanwhile_is_refused(pictures, monkeypatch):
    monkeypatch.setattr(pictures_module, "KEPT_BYTES", 0)
    picture = find_pictures([pictures / "b.png"]).pictures["b"]
    assert picture.image().size == (64, 48)
    Image.new("RGB", (64, 48), "blue").save(pictures / "b.png")
    with pytest.raises(ImageError, match=r"b\.png: was changed while the program ran"):
        picture.image()


def test_a_prompt_lies_beside_its_picture(pictures, tmp_path):
    (pictures / "b.txt").write_text("a red barn\n", encoding="utf-8")
    painter = Painter()
    run(planned([pictures], tmp_path / "out"), painter)
    assert painter.seen == ["", "a red barn", ""]
    painter = Painter()
    run(planned([pictures], tmp_path / "all", JobOptions(layers=2, prompt="all")), painter)
    assert painter.seen == ["all"] * 3
    (pictures / "b.txt").write_bytes(b"\xff\xfe\xff")
    assert "b.txt: the prompt of b.png is no UTF-8 text" in find_pictures([pictures]).bad[0]


def test_an_interrupted_run_continues_where_it_stopped(pictures, tmp_path):
    out = tmp_path / "out"
    tasks = planned([pictures], out)
    with pytest.raises(KeyboardInterrupt):
        run(tasks, Painter(fails_at=2))
    left = tasks_left(tasks, out, overwrite=False)
    assert [t.picture.path.name for t in left] == ["c.jpg"]
    first = (out / "a" / "result.json").stat().st_mtime_ns
    painter = Painter()
    assert len(run(left, painter)) == 1 and len(painter.seen) == 1
    assert (out / "a" / "result.json").stat().st_mtime_ns == first
    assert tasks_left(tasks, out, overwrite=False) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": {"layers": 3, "steps": 3}}, "layers 2, now 3"),
        ({"settings": {"layers": 2, "steps": 3, "seed": 1}}, "seed None, now 1"),
        ({"checkpoint": {**CHECKPOINT, "digest": "f" * 16}}, "checkpoint of digest '0123456789abcdef', now 'fff"),
    ],
)
def test_results_of_anything_else_are_not_touched_unasked(pictures, tmp_path, change, says):
    out = tmp_path / "out"
    run(planned([pictures], out), Painter())
    moved = planned([pictures], out, checkpoint={**CHECKPOINT, "folder": "renamed"})
    assert tasks_left(moved, out, overwrite=False) == []
    with pytest.raises(JobError, match="was made with") as caught:
        tasks_left(planned([pictures], out, **change), out, overwrite=False)
    assert len(caught.value.problems) == 3 and says in str(caught.value)
    assert len(tasks_left(planned([pictures], out, **change), out, overwrite=True)) == 3


def test_a_result_of_another_picture_of_the_same_name_is_not_its_own(pictures, tmp_path):
    out = tmp_path / "out"
    run(planned([pictures / "b.png"], out), Painter())
    Image.new("RGB", (64, 48), "blue").save(pictures / "b.png")
    with pytest.raises(JobError, match="a picture of sha256"):
        tasks_left(planned([pictures / "b.png"], out), out, overwrite=False)


@pytest.mark.parametrize("name", ["01_Layer_0.png", "layers.psd", "sheet.png", "result.json"])
def test_a_result_that_lacks_a_file_or_has_an_altered_one_is_not_finished(pictures, tmp_path, name):
    out = tmp_path / "out"
    tasks = planned([pictures / "b.png"], out)
    run(tasks, Painter())
    file = out / "b" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    with pytest.raises(JobError, match="was altered" if name != "result.json" else "is no result"):
        tasks_left(tasks, out, overwrite=False)
    file.unlink()
    with pytest.raises(JobError, match="is missing" if name != "result.json" else "is no result"):
        tasks_left(tasks, out, overwrite=False)
    if name != "result.json":
        run(tasks_left(tasks, out, overwrite=True), Painter(), overwrite=True)
        assert file.read_bytes() == whole


def test_overwriting_replaces_results_alone(pictures, tmp_path):
    out = tmp_path / "out"
    tasks = planned([pictures], out)
    run(tasks, Painter())
    (out / "b" / "notes.txt").write_text("mine")
    for name in "ac":
        shutil.rmtree(out / name)
    (out / "c").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (out / "a").symlink_to(tmp_path / "elsewhere")
    for overwrite in (False, True):
        with pytest.raises(JobError) as caught:
            tasks_left(tasks, out, overwrite=overwrite)
        assert [problem.rsplit(": ", 1)[1].split(" and")[0] for problem in caught.value.problems][-1] == "is a file"
        assert ("also holds notes.txt" in str(caught.value)) == overwrite
        assert "a: is a link and is left alone" in str(caught.value)
    with pytest.raises(ResultError, match=r"notes\.txt"):
        run(tasks[1:2], Painter(), overwrite=True)
    assert (out / "b" / "notes.txt").read_text() == "mine"


def test_samples_may_become_more_and_fewer(pictures, tmp_path):
    out = tmp_path / "out"
    Image.new("RGB", (64, 48)).save(pictures / "b_sample_2.png")
    plan = lambda samples: planned([pictures], out, JobOptions(layers=2, samples=samples))  # noqa: E731
    names = [task.folder.name for task in plan(2)]
    assert len(set(names)) == 8 and {"a", "a_sample_2", "b", "b_sample_2", "c"} <= set(names)
    run(plan(1), Painter())
    left = tasks_left(plan(2), out, overwrite=False)
    assert [task.sample for task in left] == [1] * 4
    run(left, Painter())
    for samples in (1, 2):
        assert tasks_left(plan(samples), out, overwrite=False) == []
    assert all(json.loads((out / name / "result.json").read_text())["sample"] == 1 for name in names[1::2])


def test_two_programs_that_make_the_same_result_agree(pictures, tmp_path):
    tasks = planned([pictures / "b.png"], tmp_path / "out")
    run(tasks, Painter())
    assert run(tasks, Painter())[0].psnr == pytest.approx(run(tasks, Painter())[0].psnr)
    with pytest.raises(ResultError, match="layers 2, now 3"):
        run(planned([pictures / "b.png"], tmp_path / "out", settings={"layers": 3, "steps": 3}), Painter())


def test_layers_at_the_size_of_the_picture(pictures, tmp_path):
    Image.effect_noise((200, 120), 90).save(pictures / "b.png")
    (outcome,) = run(planned([pictures / "b.png"], tmp_path / "out", JobOptions(layers=2, own_size=True)), Painter())
    folder = outcome.task.folder
    assert json.loads((folder / "result.json").read_text())["size"] == [200, 120]
    with Image.open(folder / "01_Layer_0.png") as layer:
        assert layer.size == (200, 120)


def test_resized_layers_take_no_colour_from_what_is_hidden():
    layers = np.zeros((1, 8, 8, 4), np.uint8)
    layers[..., :3] = (0, 255, 0)
    layers[:, :, 4:] = (255, 0, 0, 255)
    resized = resize_layers(layers, (40, 24))
    shown = resized[resized[..., 3] > 8]
    assert resized.shape == (1, 24, 40, 4) and shown[:, 0].min() > 240 and shown[:, 1].max() < 15
    assert resize_layers(layers, (8, 8)) is layers


def test_every_bad_input_is_told(pictures, tmp_path):
    (tmp_path / "empty").mkdir()
    (pictures / "broken.png").write_bytes(b"x")
    found = find_pictures([pictures, tmp_path / "empty", tmp_path / "nowhere.png"])
    assert "broken.png" in found.bad[0] and list(found.pictures) == ["a", "b", "c"]
    assert "holds no pictures" in found.problems[0] and "nowhere.png: no such file or folder" in found.problems[1]


def test_an_output_that_cannot_be_written(pictures, tmp_path, monkeypatch):
    tasks = planned([pictures], tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(JobError, match="is a file; give --out a folder"):
        tasks_left(tasks, tmp_path / "file" / "deeper", overwrite=False)
    monkeypatch.setattr(os, "access", lambda *a: False)  # permissions do not bind root, who may run this test
    with pytest.raises(JobError, match="not writable; give another --out"):
        tasks_left(tasks, tmp_path / "out", overwrite=False)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--layers", "0"], "--layers must be from 1 to 20, got 0"),
        (["--layers", "21"], "--max-layers N allows more"),
        (["--steps", "0"], "--steps must be at least 1"),
        (["--guidance", "nan"], "--guidance must be a finite number"),
        (["--samples", "0", "--batch", "0"], "--batch must be at least 1"),
        (["--resolution", "500"], "--resolution must be a multiple of 32"),
        (["--seed", "4294967296"], "--seed must be from 0 to 4294967295, got 4294967296"),
        (["--seed", "-1"], "--seed must be from 0 to 4294967295, got -1"),
        (["--seed", "9" * 23], "--seed must be from 0 to 4294967295"),
        (["--layers", "3000000", "--max-layers", "0"], "--max-layers must be at least 1"),
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
    for words_told in ("an empty prompt is used", "loading ", "compiling batch 1/2", "step 2/2", "batch's seconds"):
        assert words_told in done.stdout
    assert "b.png: 64x48 pixels, the model sees 736x544" in done.stdout
    for name in "abc":
        folder = tmp_path / "out" / name
        files = sorted(p.name for p in folder.iterdir())
        assert files == ["01_Layer_1.png", "02_Layer_2.png", "layers.psd", "result.json", "sheet.png"]
        record = json.loads((folder / "result.json").read_text())
        assert record["size"] == record["model_size"] == [736, 544] and record["settings"]["steps"] == 2
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
    assert refused.returncode == 2 and "was made with" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert "steps 2, now 3" in refused.stderr


def test_the_program_refuses_before_compute(checkpoint, pictures, tmp_path):
    words = [pictures / "b.png", "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    for extra, message in (
        (["--mesh", "data=3"], "devices"),
        (["--mesh", "banana=1"], "banana"),
        (["--checkpoint", pictures], "model_index.json"),
        (["--resolution", 1_000_000], "GB of memory"),
    ):
        refused = infer(*words, *extra)
        assert refused.returncode == 2, refused.stdout
        assert message in refused.stderr and "Traceback" not in refused.stderr
    assert not (tmp_path / "out").exists()


def test_bad_pictures_are_skipped_when_told(checkpoint, pictures, tmp_path):
    (pictures / "broken.png").write_bytes(b"x")
    words = [pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--steps", 1, "--batch", 3]
    words += ["--resolution", 64]
    refused = infer(*words)
    assert refused.returncode == 2 and "--skip-bad" in refused.stderr and not (tmp_path / "out").exists()
    done = infer(*words, "--skip-bad")
    assert done.returncode == 3 and "skipped: " in done.stdout and "broken.png" in done.stdout
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["a", "b", "c"]


def test_what_an_interrupt_leaves(checkpoint, pictures, tmp_path):
    """Ctrl-C in the compiled loop ends at once, in two lines; the command that they name goes on."""
    words = [pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--resolution", 64, "--steps", 5000]
    command = [sys.executable, ROOT / "infer.py", *map(str, words)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stderr is not None
        for line in process.stdout:
            if "step 500/" in line:
                break
        process.send_signal(signal.SIGINT)
        told = process.stderr.read().strip().splitlines()
        rest = process.stdout.read()
    assert process.returncode == 130 and "5000/5000" not in rest
    assert told[0] == "stopped" and told[1].startswith("0 of 3 results are finished; to go on: python ")
    assert str(tmp_path / "out") in told[1] and len(told) == 2


def test_a_full_disk_is_told(checkpoint, pictures, tmp_path, monkeypatch, capsys):
    from qil_jax.export import result
    from qil_jax.inference.__main__ import main

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(tmp_path / "out" / "b" / "sheet.png"))

    words = [pictures, "--checkpoint", checkpoint, "--out", tmp_path / "out", "--steps", 1, "--resolution", 64]
    write = result.write_sheet
    monkeypatch.setattr(result, "write_sheet", lambda *a: full() if (tmp_path / "out" / "a").exists() else write(*a))
    assert main([str(word) for word in words]) == 2
    told = capsys.readouterr().err
    assert "No space left on device" in told and "sheet.png" in told
    assert "1 of 3 results are finished; to go on: " in told
    assert [folder.name for folder in (tmp_path / "out").iterdir()] == ["a"]
    monkeypatch.undo()
    assert main([str(word) for word in words]) == 0
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir()) == ["a", "b", "c"]


WRONG_REQUESTS = """
import numpy as np
from PIL import Image
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
image = Image.new("RGB", (64, 64))
pipeline = Pipeline.load()
wrong = [
    Request(image=image, layers="3", seed=-1, samples=1.5, prompt=None, negative_prompt=7),
    Request(image="a.png", resolution=500, first_sample=-1),
    Request(image=image, latents=np.zeros((1, 4, 8, 8, 3), np.float32)),
]
for call in (
    lambda: pipeline.decompose(wrong, Settings(steps=True, guidance="4", rescale="norm")),
    lambda: pipeline.decompose([Request(image=image, resolution=640_000)]),
    lambda: Pipeline.load(dtype="float33"),
):
    try:
        call()
    except ValueError as error:
        print(type(error).__name__, error)
"""


def test_what_is_no_request_is_told_at_once():
    """In a process of its own, because in these tests constructors check types, and for users they do not."""
    done = subprocess.run([sys.executable, "-c", WRONG_REQUESTS], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    for words in (
        "ValueError cannot decompose:",
        "request 0: layers must be an integer, got '3'",
        "seed must be from 0 to 4294967295, got -1",
        "samples must be an integer, got 1.5",
        "prompt must be text, got None",
        "negative_prompt must be text or None, got 7",
        "request 1: image must be a PIL image, got str",
        "first_sample must be at least 0",
        "request 2: latents have shape (1, 4, 8, 8, 3), 1 of this picture need (1, 4, 8, 8, 16)",
        "steps must be an integer, got True",
        "guidance must be a finite number, got '4'",
        "rescale must be one of none, norm of qil_jax.flow, got 'norm'",
        "GB to denoise 8,000,000,000 tokens",
        "dtype must be one of float32, bfloat16",
    ):
        assert words in done.stdout, (words, done.stdout)


def test_samples_have_noise_of_their_own():
    from qil_jax.inference.pipeline import Pipeline

    image = Image.effect_noise((64, 64), 80).convert("RGB")
    pipeline = Pipeline.load()
    both = pipeline.decompose([Request(image=image, samples=2)], Settings(steps=1))
    second = pipeline.decompose([Request(image=image, first_sample=1)], Settings(steps=1))
    assert [made.sample for made in (*both, *second)] == [0, 1, 1]
    same = np.abs(second[0].latents - both[1].latents).mean()
    assert same < 0.1 * np.abs(both[0].latents - both[1].latents).mean()
