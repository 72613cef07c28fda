"""`qil evaluate` from the command line: what it measures, goes on with, and refuses before any compute.

What it measures is compared with values worked out by hand and with second implementations.
"""

import csv
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from evaluation.test_layers import layer, second_scores
from PIL import Image
from safetensors.numpy import save_file
from scipy.linalg import sqrtm

from qil_jax.cli import make_scenes
from qil_jax.cli.evaluate import main
from qil_jax.evaluation.reconstruction import BACKGROUNDS, as_jpeg, luma_ssim, truncated_blend
from qil_jax.export.result import write_result
from qil_jax.files import CONTENT, DRAFT, MARK
from qil_jax.inference.images import preprocess
from qil_jax.inference.pipeline import Pipeline
from qil_jax.inference.request import Request, Settings
from qil_jax.layers.compositing import composite_8bit
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.models.lpips import LPIPSNetwork, lpips, pooled_features, weight_shapes
from qil_jax.programs import ended
from qil_jax.records.sources import open_source
from tools.make_demo_checkpoint import write_checkpoint

pytestmark = pytest.mark.full

RED, BLUE = (255, 0, 0), (0, 0, 255)
GROUND = layer((0, 0, 16, 16), BLUE, side=16)
SQUARE = layer((4, 4, 8, 8), RED, side=16)
FAST = ["--resolution", "64", "--steps", "2", "--batch", "2"]


def save(layers: list[np.ndarray], folder: Path) -> None:
    LayeredImage(layers=np.stack(layers), names=tuple(f"Layer {i}" for i in range(len(layers)))).save(folder)


def table(out: Path) -> list[dict[str, str]]:
    return list(csv.DictReader((out / "samples.csv").read_text().splitlines()))


def refused(capsys, *arguments: object) -> str:
    """What a run that must not start says."""
    capsys.readouterr()
    try:
        status = ended(main, list(map(str, arguments)))
    except SystemExit as stop:  # argparse
        status = stop.code
    assert status == 2
    return capsys.readouterr().err


@pytest.fixture
def records(tmp_path) -> Path:
    """Three records of 16 pixels in plain folders, the last of which has one layer."""
    for name, layers in {"a": [GROUND, SQUARE], "b": [GROUND, SQUARE], "c": [GROUND]}.items():
        save(layers, tmp_path / "records" / "test" / name)
    return tmp_path / "records"


def test_results_are_scored_as_worked_out_by_hand(records, tmp_path, capsys):
    shifted = np.roll(SQUARE, 1, axis=1)
    exact = LayeredImage(layers=np.stack([GROUND, SQUARE]), names=("Layer 1", "Layer 2"))
    write_result(tmp_path / "results" / "00000", exact, exact.composite_8bit(), {})  # as qil decompose does
    save([GROUND, shifted], tmp_path / "results" / "1")
    out = tmp_path / "out"
    assert main(["layers", str(records), "--results", str(tmp_path / "results"), "--out", str(out)]) == 0
    first, second = table(out)
    assert (first["name"], first["layers"], second["name"]) == ("00000", "2", "00001")
    assert all(float(first[f"l1_{k}"]) == 0 and float(first[f"iou_{k}"]) == 1 for k in range(6))
    assert float(first["recomposition_db"]) == 99
    # 12 of 20 pixels agree; 4 of the 16 red ones are black in the other: 1/3 each. Two pairs, the ground's is exact.
    assert float(second["iou_0"]) == pytest.approx((1 + 12 / 20) / 2)
    assert float(second["l1_0"]) == pytest.approx(4 / 3 / 16 / 2, abs=1e-5)
    # 8 of 256 pixels are red instead of blue or blue instead of red: two of three colours wrong.
    assert float(second["recomposition_db"]) == pytest.approx(10 * np.log10(256 / 8 * 3 / 2), abs=1e-3)
    # The picture as either layer: 16 wrong pixels of the ground's 256; alphas agree on 256 of 256 and 16 of 256.
    assert float(first["input_l1_0"]) == pytest.approx(16 / 256 * 2 / 3 / 2, abs=1e-5)
    assert float(first["input_iou_0"]) == pytest.approx((1 + 16 / 256) / 2, abs=1e-5)
    assert float(first["colours_iou_0"]) == 1 and float(first["colours_l1_0"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert (summary["records"], summary["skipped, fewer than two layers"]) == (3, 1)
    assert summary["groups"]["all"]["iou"] == [0.9] * 6
    assert "| all | 2 | 0.9000 |" in capsys.readouterr().out
    assert (out / "report.png").is_file() and not (out / "samples").exists()


def test_results_are_known_by_their_content(records, tmp_path, capsys):
    for name in ("0", "1"):
        save([GROUND, SQUARE], tmp_path / "results" / name)
    run = ["layers", str(records), "--out", str(tmp_path / "out"), "--results"]
    assert main([*run, str(tmp_path / "results")]) == 0
    (tmp_path / "results").rename(tmp_path / "moved")
    assert main([*run, str(tmp_path / "moved")]) == 0
    Image.fromarray(GROUND, "RGBA").save(tmp_path / "moved" / "1" / "001.png")
    assert ended(main, [*run, str(tmp_path / "moved")]) == 2
    assert "holds another evaluation" in capsys.readouterr().err


def test_it_equals_the_second_implementation(tmp_path):
    rng = np.random.default_rng(5)

    def stack() -> list[np.ndarray]:
        layers = [layer((0, 0, 8, 8), tuple(rng.integers(0, 256, 3).tolist()))]
        for _ in range(int(rng.integers(1, 4))):
            left, top, wide, high = (*rng.integers(0, 5, 2).tolist(), *rng.integers(2, 5, 2).tolist())
            colour = tuple(rng.integers(0, 256, 3).tolist())
            layers.append(layer((left, top, left + wide, top + high), colour, int(rng.choice([90, 180, 255]))))
        return layers

    pairs = [(stack(), stack()) for _ in range(6)]
    for i, (made, true) in enumerate(pairs):
        save(made, tmp_path / "results" / str(i))
        save(true, tmp_path / "records" / f"{i}")
    out = tmp_path / "out"
    arguments = ["--results", str(tmp_path / "results"), "--out", str(out)]
    assert main(["layers", str(tmp_path / "records"), *arguments]) == 0
    for row, (made, true) in zip(table(out), pairs, strict=True):
        expected = second_scores(made, true)
        for level in range(6):
            l1, iou, _ = expected[min(level, len(expected) - 1)]
            found = float(row[f"l1_{level}"]), float(row[f"iou_{level}"])
            assert found == pytest.approx((l1, iou), abs=4e-3)  # ours rounds to 8 bits at each merge


def test_results_that_do_not_match_are_refused_all_at_once(records, tmp_path, capsys):
    results = tmp_path / "results"
    save([GROUND], results / "00000")
    run = ["layers", records, "--results", results, "--out", tmp_path / "out"]
    save([GROUND, SQUARE], results / "holiday")
    save([GROUND, SQUARE], results / "7")
    said = refused(capsys, *run)
    assert "results do not match the records:" in said
    assert "00000: one layer: the protocol needs two or more" in said
    assert "00001: missing, the layers of" in said and "test/b" in said.replace("\\", "/")
    assert "holiday: its name is not the number of one of the 3 records" in said and "7: its name" in said
    for name in ("00000", "holiday", "7"):
        shutil.rmtree(results / name)
    save([np.zeros((24, 24, 4), np.uint8)] * 2, results / "0")
    save([GROUND, SQUARE], results / "00")
    (results / "1").mkdir()
    said = refused(capsys, *run)
    assert "000.png: 24 x 24 pixels, but its record has 16 x 16 or 640 x 640" in said
    assert "00: has the number of 0" in said or "0: has the number of 00" in said
    assert "1: no PNG: expected one PNG per layer, numbered bottom to top" in said
    Image.new("RGBA", (16, 16)).save(results / "1" / "sheet.png")
    (results / "0" / "000.png").write_text("no picture")
    said = refused(capsys, *run)
    assert "1: names without a number: sheet.png" in said and "cannot identify image file" in said
    assert not (tmp_path / "out").exists()


def test_bad_command_lines_are_refused_all_at_once(records, tmp_path, capsys):
    run = ["layers", records, "--out", tmp_path / "out"]
    wrong = ["--count", 0, "--steps", 0, "--layers", 1, "--resolution", 50, "--batch", 0]
    said = refused(capsys, *run, "--checkpoint", tmp_path / "none", *wrong)
    for name in ("count", "steps", "layers", "resolution", "batch"):
        assert f"--{name} must be" in said
    assert "argument --guidance: nan is no number" in refused(capsys, *run, "--guidance", "nan")
    assert "none: no such folder" in said
    verb = ["reconstruction", records, "--out", tmp_path / "out", "--checkpoint", tmp_path]
    assert "--size must be a multiple of 32, got 33" in refused(capsys, *verb, "--size", 33)
    assert "16 x 16 pixels: below 32, give --size" in refused(capsys, *verb)
    assert "no records" in refused(capsys, "layers", tmp_path / "empty", *run[2:], "--checkpoint", tmp_path)
    assert "is not a sound checkpoint" in refused(capsys, *run, "--checkpoint", tmp_path)
    assert "'rows' is no mesh axis" in refused(capsys, *run, "--checkpoint", tmp_path, "--mesh", "rows=2")
    shutil.rmtree(records / "test" / "a")
    shutil.rmtree(records / "test" / "b")
    assert "none of the first 1 records has the two layers" in refused(capsys, *run, "--checkpoint", tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Iterator[Path]:
    """A tiny random checkpoint and three scenes. A checkpoint is loaded, and its programs compiled, only once."""
    folder = tmp_path_factory.mktemp("world")
    write_checkpoint(folder / "checkpoint")
    scenes = ["--count", "3", "--preset", "simple", "--side", "64", "--format", "folders"]
    assert make_scenes.main([*scenes, "--out", str(folder / "scenes")]) == 0
    loaded = Pipeline.load(folder / "checkpoint")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pipeline, "load", lambda checkpoint, **_: {folder / "checkpoint": loaded}[checkpoint])
        yield folder


def evaluate(world: Path, out: Path, *more: str) -> int:
    checkpoint = ["--checkpoint", str(world / "checkpoint")]
    return ended(main, ["layers", str(world / "scenes"), *checkpoint, "--out", str(out), *FAST, *more])


def files_of(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_run_that_was_cut_gives_the_same_files(world, tmp_path, monkeypatch, capsys):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert evaluate(world, whole) == 0
    decompose = Pipeline.decompose
    calls = []

    def cut_off(self, requests, settings):
        calls.append(len(requests))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return decompose(self, requests, settings)

    with monkeypatch.context() as patch:
        patch.setattr(Pipeline, "decompose", cut_off)
        assert evaluate(world, cut) == 130
    assert calls == [2, 1] and len(list((cut / "samples").iterdir())) == 2
    assert "to go on: " in capsys.readouterr().err and not (cut / "summary.md").exists()
    # As if it had been killed between two samples of a batch, while the second was written.
    done = sorted((cut / "samples").iterdir())
    draft = cut / "samples" / f".{done[1].name}.cut{DRAFT}"
    draft.mkdir()
    (draft / MARK).write_text(json.dumps({"destination": done[1].name}))
    done[1].rename(draft / CONTENT)
    assert evaluate(world, cut) == 0
    assert files_of(cut) == files_of(whole)
    # What is done needs no model.
    monkeypatch.setattr(Pipeline, "of", None)
    (cut / "summary.md").unlink()
    assert evaluate(world, cut) == 0 and files_of(cut) == files_of(whole)
    # The samples are results like any other, and score the same.
    again = ["--results", str(whole / "samples"), "--out", str(tmp_path / "again"), "--resolution", "64"]
    assert main(["layers", str(world / "scenes"), *again]) == 0
    assert table(tmp_path / "again") == table(whole)
    said = refused(capsys, "layers", world / "scenes", "--checkpoint", world / "checkpoint", "--out", whole, *FAST[:2])
    assert "holds another evaluation" in said and "steps: 2 there, 50 here" in said and "seed" not in said
    other = tmp_path / "checkpoint"
    shutil.copytree(world / "checkpoint", other)
    config = other / "scheduler" / "scheduler_config.json"
    config.write_text(config.read_text().replace('"shift": 1.0', '"shift": 2.0'))
    said = refused(capsys, "layers", world / "scenes", "--checkpoint", other, "--out", whole, *FAST)
    assert said.count(" there, ") == 1 and "scheduler: " in said


def test_the_samples_are_what_the_pipeline_makes_of_the_composites(world, tmp_path):
    out = tmp_path / "out"
    assert evaluate(world, out, "--count", "1", "--layers", "3", "--captions", "--guidance", "2", "--seed", "5") == 0
    record = open_source(world / "scenes", "test")[0]
    image = Image.fromarray(composite_8bit(record.layers, record.size))
    request = Request(image=image, layers=3, prompt=record.caption, resolution=64, seed=5)
    (expected,) = Pipeline.load(world / "checkpoint").decompose([request], Settings(steps=2, guidance=2.0))
    found = LayeredImage.load(out / "samples" / "00000")
    assert np.array_equal(found.layers, expected.layered.layers) and found.caption == record.caption != ""


def test_reconstructions_are_scored_as_by_a_second_implementation(world, tmp_path):
    rng = np.random.default_rng(0)
    weights = {
        name: np.abs(rng.standard_normal(shape)).astype(np.float32) / 40
        if name.startswith("head")
        else (rng.standard_normal(shape) / np.sqrt(np.prod(shape[:-1]))).astype(np.float32)
        for name, shape in weight_shapes(LPIPSNetwork.ALEXNET).items()
    }
    save_file(weights, tmp_path / "alexnet.safetensors")
    weights = jax.tree.map(jnp.asarray, weights)
    out = tmp_path / "out"
    where = [
        "--checkpoint",
        str(world / "checkpoint"),
        "--out",
        str(out),
        "--lpips",
        str(tmp_path / "alexnet.safetensors"),
    ]
    assert main(["reconstruction", str(world / "scenes"), "--count", "7", "--batch", "3", *where]) == 0

    source = open_source(world / "scenes", "test")
    true = [(i, j, x) for i in range(len(source)) for j, x in enumerate(source[i].to_layered_image().layers)][:7]
    autoencoder = Pipeline.load(world / "checkpoint").autoencoder
    expected, features = [], {"ground": [], "upper": []}
    for i, j, pixels in true:
        _, scaled = preprocess(Image.fromarray(pixels), 64)
        made = autoencoder.decode(autoencoder.encode(scaled[None]))[0]
        sides = [np.stack([as_jpeg(truncated_blend(x, c)) for c in BACKGROUNDS.values()]) for x in (made, pixels)]
        errors = [np.mean((a / 255 - b / 255) ** 2) for a, b in zip(*sides, strict=True)]
        floats = [jnp.asarray(side, jnp.float32) / 127.5 - 1 for side in sides]
        category = "upper" if j else "ground"
        features[category].append([pooled_features(weights, LPIPSNetwork.ALEXNET, x) for x in floats])
        scores = {
            "psnr": np.mean([-10 * np.log10(e + 1e-8) for e in errors]),
            "ssim": np.mean([luma_ssim(a, b) for a, b in zip(*sides, strict=True)]),
            "lpips": float(jnp.mean(lpips(weights, LPIPSNetwork.ALEXNET, *floats))),
        }
        expected.append((f"{i:05d}/{j:03d}", category, scores))
    rows = table(out)
    for row, (name, category, scores) in zip(rows, expected, strict=True):
        assert (row["name"], row["category"]) == (name, category)
        assert {k: float(row[k]) for k in scores} == pytest.approx(scores, rel=1e-3)
    summary = json.loads((out / "summary.json").read_text())
    psnrs = {c: [s["psnr"] for _, k, s in expected if k == c] for c in features}
    assert summary["plain mean"]["psnr"] == pytest.approx(np.mean([p for ps in psnrs.values() for p in ps]), rel=1e-3)
    assert summary["macro average"]["psnr"] == pytest.approx(np.mean([np.mean(p) for p in psnrs.values()]), rel=1e-3)
    assert "not the paper's rFID" in (out / "summary.md").read_text()
    for category, found in features.items():
        both = np.asarray(found, np.float64)  # layer, side, background, feature
        distances = []
        for b in range(9):
            x, y = both[:, 0, b], both[:, 1, b]
            # Both vary within the span of a few differences, by whose basis the matrices are small.
            basis, _ = np.linalg.qr(np.concatenate([x - x.mean(0), y - y.mean(0)]).T)
            covariances = np.cov(x @ basis, rowvar=False), np.cov(y @ basis, rowvar=False)
            root = np.real(sqrtm(covariances[0] @ covariances[1] + 1e-12 * np.eye(len(covariances[0]))))
            distances.append(np.square(x.mean(0) - y.mean(0)).sum() + np.trace(sum(covariances) - 2 * root))
        assert summary[category]["frechet"] == pytest.approx(np.mean(distances), rel=2e-2)
