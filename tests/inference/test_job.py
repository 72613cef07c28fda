"""A run over pictures: what is read, what is written, what is kept, what is refused before any compute."""

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qil_jax import host_memory
from qil_jax.choices import OutputSize
from qil_jax.command_line import flag
from qil_jax.errors import QilError
from qil_jax.export.result import ResultError
from qil_jax.inference import pictures as pictures_module
from qil_jax.inference.defaults import Defaults
from qil_jax.inference.images import ImageError
from qil_jax.inference.job import JobError, PlannedResult, plan_results, results_left, run_job
from qil_jax.inference.pictures import find_pictures
from qil_jax.inference.request import Decomposition, JobOptions, Request, Settings, result_settings
from qil_jax.layers.filtering import resize_layers
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.programs import called

ROOT = Path(__file__).resolve().parents[2]


class Painter:
    """A decomposer that paints every layer in one colour, and may be cut off."""

    def __init__(self, *, fails_at: int | None = None):
        self.seen: list[str] = []
        self._fails_at = fails_at

    def decompose(self, requests, settings=Settings(), *, on_step=None):
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
            request=request.filled(Defaults()),
            sample=sample,
        )


OPTIONS = JobOptions(layers=2)
CHECKPOINT = {"folder": "checkpoint", "fingerprint": "0123456789abcdef"}
SETTINGS = {"layers": 2, "steps": 3}


def planned(inputs, out, options=OPTIONS, *, checkpoint=CHECKPOINT, settings=SETTINGS):
    found = find_pictures(inputs)
    assert not found.problems and not found.bad
    return plan_results(found.pictures, out, options.filled(Defaults()), checkpoint=checkpoint, settings=settings)


def settings_of(options: JobOptions) -> dict[str, Any]:
    return result_settings(options.filled(Defaults()), Settings().filled(Defaults()), None)


def run(results, painter, *, overwrite=False, batch=2):
    return list(run_job(results, painter, Settings(), batch=batch, overwrite=overwrite))


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


def test_files_beside_pictures_are_told_with_reasons(pictures, tmp_path):
    for i in range(7):
        (pictures / f"{i}.JXL").write_bytes(b"x")
    for name in ("b.txt", "poster.psd", "clip.mp4", "notes.pdf", "list.csv", ".hidden"):
        (pictures / name).write_bytes(b"x")
    found = find_pictures([pictures])
    assert list(found.pictures) == ["a", "b", "c"] and not found.bad and not found.problems
    assert found.beside == [
        f"{pictures}: skipped 0.JXL, 1.JXL, 2.JXL, 3.JXL, 4.JXL and 2 more (a format that is not read: save it as "
        "PNG or JPEG); clip.mp4 (a film: save a picture of it as PNG); list.csv (no picture by its name); notes.pdf "
        f"(no pixels: save it as PNG); poster.psd (layers, which {called('export')} reads: to decompose it, save it "
        "flat as PNG)"
    ]
    (tmp_path / "films").mkdir()
    (tmp_path / "films" / "a.mov").write_bytes(b"x")
    (problem,) = find_pictures([tmp_path / "films"]).problems
    assert problem.endswith(", but a.mov (a film: save a picture of it as PNG)")


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
    results = planned([pictures], out)
    with pytest.raises(KeyboardInterrupt):
        run(results, Painter(fails_at=2))
    left = results_left(results, out, overwrite=False)
    assert [t.picture.path.name for t in left] == ["c.jpg"]
    first = (out / "a" / "result.json").stat().st_mtime_ns
    painter = Painter()
    assert len(run(left, painter)) == 1 and len(painter.seen) == 1
    assert (out / "a" / "result.json").stat().st_mtime_ns == first
    assert results_left(results, out, overwrite=False) == []


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"settings": {"layers": 3, "steps": 3}}, "layers 2, now 3"),
        ({"settings": {"layers": 2, "steps": 3, "seed": 1}}, "seed None, now 1"),
        (
            {"checkpoint": {**CHECKPOINT, "fingerprint": "f" * 16}},
            "checkpoint of fingerprint '0123456789abcdef', now 'fff",
        ),
    ],
)
def test_results_of_anything_else_are_not_touched_unasked(pictures, tmp_path, change, says):
    out = tmp_path / "out"
    run(planned([pictures], out), Painter())
    moved = planned([pictures], out, checkpoint={**CHECKPOINT, "folder": "renamed"})
    assert results_left(moved, out, overwrite=False) == []
    with pytest.raises(JobError, match="was made with") as caught:
        results_left(planned([pictures], out, **change), out, overwrite=False)
    assert len(caught.value.problems) == 3 and says in str(caught.value)
    assert len(results_left(planned([pictures], out, **change), out, overwrite=True)) == 3


def test_a_result_of_another_picture_of_the_same_name_is_not_its_own(pictures, tmp_path):
    out = tmp_path / "out"
    run(planned([pictures / "b.png"], out), Painter())
    Image.new("RGB", (64, 48), "blue").save(pictures / "b.png")
    with pytest.raises(JobError, match="a picture of sha256"):
        results_left(planned([pictures / "b.png"], out), out, overwrite=False)


@pytest.mark.parametrize("name", ["01_Layer_0.png", "layers.psd", "sheet.png", "result.json"])
def test_a_result_that_lacks_a_file_or_has_an_altered_one_is_not_finished(pictures, tmp_path, name):
    out = tmp_path / "out"
    results = planned([pictures / "b.png"], out)
    run(results, Painter())
    file = out / "b" / name
    whole = file.read_bytes()
    file.write_bytes(whole[:-2])
    with pytest.raises(JobError, match="was altered" if name != "result.json" else "is no result"):
        results_left(results, out, overwrite=False)
    file.unlink()
    with pytest.raises(JobError, match="is missing" if name != "result.json" else "is no result"):
        results_left(results, out, overwrite=False)
    if name != "result.json":
        run(results_left(results, out, overwrite=True), Painter(), overwrite=True)
        assert file.read_bytes() == whole


def test_overwriting_replaces_results_alone(pictures, tmp_path):
    out = tmp_path / "out"
    results = planned([pictures], out)
    run(results, Painter())
    (out / "b" / "notes.txt").write_text("mine")
    for name in "ac":
        shutil.rmtree(out / name)
    (out / "c").write_text("mine")
    (tmp_path / "elsewhere").mkdir()
    (out / "a").symlink_to(tmp_path / "elsewhere")
    for overwrite in (False, True):
        with pytest.raises(JobError) as caught:
            results_left(results, out, overwrite=overwrite)
        assert [problem.rsplit(": ", 1)[1].split(" and")[0] for problem in caught.value.problems][-1] == "is a file"
        assert ("also holds notes.txt" in str(caught.value)) == overwrite
        assert "a: is a link and is left alone" in str(caught.value)
    with pytest.raises(ResultError, match=r"notes\.txt"):
        run(results[1:2], Painter(), overwrite=True)
    assert (out / "b" / "notes.txt").read_text() == "mine"


def test_samples_may_become_more_and_fewer(pictures, tmp_path):
    out = tmp_path / "out"
    Image.new("RGB", (64, 48)).save(pictures / "b_sample_2.png")

    def plan(samples: int) -> list[PlannedResult]:
        return planned([pictures], out, JobOptions(layers=2, samples=samples))

    names = [result.folder.name for result in plan(2)]
    assert len(set(names)) == 8 and {"a", "a_sample_2", "b", "b_sample_2", "c"} <= set(names)
    run(plan(1), Painter())
    left = results_left(plan(2), out, overwrite=False)
    assert [result.sample for result in left] == [1] * 4
    run(left, Painter())
    for samples in (1, 2):
        assert results_left(plan(samples), out, overwrite=False) == []
    assert all(json.loads((out / name / "result.json").read_text())["sample"] == 1 for name in names[1::2])


def test_two_programs_that_make_the_same_result_agree(pictures, tmp_path):
    results = planned([pictures / "b.png"], tmp_path / "out")
    run(results, Painter())
    assert run(results, Painter())[0].psnr == pytest.approx(run(results, Painter())[0].psnr)
    with pytest.raises(ResultError, match="layers 2, now 3"):
        run(planned([pictures / "b.png"], tmp_path / "out", settings={"layers": 3, "steps": 3}), Painter())


def test_layers_at_the_size_of_the_picture(pictures, tmp_path):
    Image.effect_noise((200, 120), 90).save(pictures / "b.png")
    (written,) = run(
        planned([pictures / "b.png"], tmp_path / "out", JobOptions(layers=2, output_size=OutputSize.INPUT)), Painter()
    )
    folder = written.planned.folder
    assert json.loads((folder / "result.json").read_text())["size"] == [200, 120]
    with Image.open(folder / "01_Layer_0.png") as layer:
        assert layer.size == (200, 120)


class Coverer(Painter):
    """Opaque layers with the picture's colours: the lowest is hidden by the half that the next one covers."""

    def _one(self, request: Request, sample: int) -> Decomposition:
        made = super()._one(request, sample)
        layers = np.zeros_like(made.layered.layers)
        layers[..., :3] = np.asarray(request.image.convert("RGB").resize((8, 8)))
        layers[0, ..., 3], layers[1, :, :4, 3] = 255, 255
        return dataclasses.replace(made, layered=dataclasses.replace(made.layered, layers=layers))


def test_masks_of_hidden_pixels_belong_to_the_result(pictures, tmp_path):
    """Listed, checked when a run is resumed, and at the layers' size; a result without them is another one."""
    out, plain = tmp_path / "out", JobOptions(layers=2, output_size=OutputSize.INPUT)
    options = dataclasses.replace(plain, hidden_masks=True)
    assert not options.problems() and "hidden_masks" not in settings_of(plain)

    def plan(options: JobOptions) -> list[PlannedResult]:
        return planned([pictures / "b.png"], out, options, settings=settings_of(options))

    run(plan(options), Coverer())
    record = json.loads((out / "b" / "result.json").read_text())
    entries = record["layers"]
    assert entries[0]["hidden"] == {"file": "01_Layer_0.hidden.png", "share": pytest.approx(0.5, abs=0.05)}
    assert entries[1]["hidden"]["share"] == 0 and entries[1]["hidden"]["file"] in record["files"]
    mask = np.asarray(Image.open(out / "b" / entries[0]["hidden"]["file"]))
    assert mask.shape == tuple(reversed(record["size"])) == (48, 64) and mask[:, :28].all() and not mask[:, 36:].any()
    assert results_left(plan(options), out, overwrite=False) == []
    with pytest.raises(JobError, match="was made with hidden_masks True, now None"):
        results_left(plan(plain), out, overwrite=False)
    (out / "b" / entries[0]["hidden"]["file"]).unlink()
    with pytest.raises(JobError, match=r"01_Layer_0\.hidden\.png is missing"):
        results_left(plan(options), out, overwrite=False)
    run(results_left(plan(plain), out, overwrite=True), Coverer(), overwrite=True)
    assert not [*(out / "b").glob("*.hidden.png")] and results_left(plan(plain), out, overwrite=False) == []


def test_results_beyond_memory_are_refused_before_any_compute(pictures, tmp_path, monkeypatch):
    """Sixteen layers of 64 x 48 pixels, at 8 bytes each."""
    monkeypatch.setattr(host_memory, "host_bytes", lambda: 16 * 64 * 48 * 8 - 1)
    options = JobOptions(layers=4, depth=2, output_size=OutputSize.INPUT)
    with pytest.raises(QilError, match=r"b\.png: up to 16 layers of its 64x48 pixels needs .* --output-size model"):
        planned([pictures / "b.png"], tmp_path / "out", options)
    assert planned([pictures / "b.png"], tmp_path / "out", dataclasses.replace(options, layers=3))
    assert planned([pictures / "b.png"], tmp_path / "out", dataclasses.replace(options, output_size=OutputSize.MODEL))


def test_masks_of_trees_are_refused_in_a_sentence():
    (problem,) = JobOptions(hidden_masks=True, depth=2).problems(flag)
    assert problem.startswith("--hidden-masks goes with --depth 1: ")


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
    results = planned([pictures], tmp_path / "out")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(JobError, match="is a file; give --out a folder"):
        results_left(results, tmp_path / "file" / "deeper", overwrite=False)
    monkeypatch.setattr(os, "access", lambda *a: False)  # permissions do not bind root, who may run this test
    with pytest.raises(JobError, match="not writable; give another --out"):
        results_left(results, tmp_path / "out", overwrite=False)
