"""Reconstruction, baselines and reports against values worked out by hand and formulas written another way."""

import csv
import json
import math

import numpy as np
import pytest

from qil_jax.evaluation.baselines import Baseline, baseline_layers
from qil_jax.evaluation.layers import score_stacks
from qil_jax.evaluation.reconstruction import (
    BACKGROUNDS,
    SIGMA,
    WINDOW,
    as_jpeg,
    blended_pairs,
    luma_ssim,
    macro_average,
    plain_mean,
    psnr,
    score_pairs,
    truncated_blend,
)
from qil_jax.evaluation.report import write_layer_report, write_reconstruction_report
from qil_jax.evaluation.samples import TrueSample, flattened, sample_rows, scored


def picture(seed: int, high: int = 24, wide: int = 31) -> np.ndarray:
    """Smooth colours and alpha."""
    y, x = np.mgrid[:high, :wide] / high
    planes = [np.sin(3 * x + seed + k) * np.cos(2 * y - k) * 0.5 + 0.5 for k in range(4)]
    return np.rint(np.stack(planes, -1) * 255).astype(np.uint8)


def test_blending_cuts_and_does_not_round():
    pixel = np.array([[[255, 10, 0, 128]]], np.uint8)
    # 255 * 128/255 = 128; 10 * 128/255 = 5.0196; over white 127 is added.
    assert truncated_blend(pixel, (0, 0, 0)).tolist() == [[[128, 5, 0]]]
    assert truncated_blend(pixel, (255, 255, 255)).tolist() == [[[255, 132, 127]]]


def test_psnr_by_hand():
    dark = np.zeros((4, 4, 3), np.uint8)
    assert psnr(dark, dark) == pytest.approx(80)
    assert psnr(dark, np.full_like(dark, 51)) == pytest.approx(-20 * math.log10(0.2), abs=1e-5)


def test_ssim_equals_its_formula_window_by_window():
    x, y = (picture(seed)[..., :3] for seed in (0, 1))
    places = np.arange(WINDOW) - 5
    weights = np.exp(-(places[:, None] ** 2 + places[None] ** 2) / (2 * SIGMA**2))
    weights /= weights.sum()
    a, b = (np.rint(p @ np.array([0.299, 0.587, 0.114])) for p in (x, y))
    found = []
    for i in range(a.shape[0] - 10):
        for j in range(a.shape[1] - 10):
            p, q = a[i : i + 11, j : j + 11], b[i : i + 11, j : j + 11]
            mp, mq = (weights * p).sum(), (weights * q).sum()
            vp, vq = (weights * (p - mp) ** 2).sum(), (weights * (q - mq) ** 2).sum()
            both = (weights * (p - mp) * (q - mq)).sum()
            top = (2 * mp * mq + 6.5025) * (2 * both + 58.5225)
            found.append(top / ((mp**2 + mq**2 + 6.5025) * (vp + vq + 58.5225)))
    assert luma_ssim(x, y) == pytest.approx(np.mean(found), abs=1e-9)
    assert luma_ssim(x, x) == pytest.approx(1)
    with pytest.raises(ValueError, match="11 pixels"):
        luma_ssim(x[:10], y[:10])


def test_a_picture_is_scored_over_nine_backgrounds_after_jpeg():
    true, made = picture(0), picture(3)
    values = [psnr(as_jpeg(truncated_blend(made, c)), as_jpeg(truncated_blend(true, c))) for c in BACKGROUNDS.values()]
    scores = score_pairs(blended_pairs(made, true))
    assert len(values) == 9
    assert scores["psnr"] == pytest.approx(sum(values) / 9)
    assert score_pairs(blended_pairs(true, true))["psnr"] == pytest.approx(80)
    with pytest.raises(ValueError, match="cannot be compared"):
        blended_pairs(made[:-1], true)


def test_categories_count_alike_however_many_pictures_they_have():
    rows = [("hair", {"psnr": 10.0}), ("hair", {"psnr": 20.0}), ("glass", {"psnr": 35.0})]
    assert macro_average(rows) == {"psnr": 25.0}
    assert plain_mean([scores for _, scores in rows]) == {"psnr": pytest.approx(65 / 3)}


def test_baselines_of_a_square_on_a_ground():
    canvas = np.full((16, 16, 4), (200, 40, 40, 255), np.uint8)
    canvas[4:10, 4:10] = (20, 60, 220, 255)
    assert [layer.tolist() for layer in baseline_layers(canvas, 3, Baseline.INPUT)] == [canvas.tolist()] * 3
    ground, square = baseline_layers(canvas, 2, Baseline.COLOURS)
    assert (ground == (200, 40, 40, 255)).all()
    assert square[..., 3].sum() == 36 * 255
    assert (square[4:10, 4:10] == (20, 60, 220, 255)).all()
    assert score_stacks([ground, square], [ground, square])[0].iou == 1


def test_a_picture_of_one_colour_gets_clear_layers_that_change_no_score():
    plain = np.full((16, 16, 4), (200, 40, 40, 255), np.uint8)
    layers = baseline_layers(plain, 3, Baseline.COLOURS)
    assert [int(layer[..., 3].max()) for layer in layers] == [255, 0, 0]
    assert score_stacks(layers, [plain, plain]) == score_stacks(layers[:2], [plain, plain])


def test_reports_hold_every_sample_and_the_means(tmp_path):
    ground = np.full((16, 16, 4), (200, 40, 40, 255), np.uint8)
    square = np.zeros_like(ground)
    square[4:10, 4:10] = (20, 60, 220, 255)
    shifted = np.roll(square, 3, axis=1)
    true = TrueSample(picture=flattened([ground, square]), layers=[ground, square])
    made = {"exact": [ground, square], "shifted": [ground, shifted]}
    results = [scored(name, true, layers) for name, layers in made.items()]
    shown = []

    def show(name: str):
        shown.append(name)
        return sample_rows(true, made[name])

    text = write_layer_report(tmp_path / "layers", "A title", results, show, {"count": "given"})
    # Halves of 36 pixels agree: 18 of 54. Two pairs of layers, two samples: (1 + 1 + 1 + 1/3) / 4.
    summary = json.loads((tmp_path / "layers" / "summary.json").read_text())
    assert summary["groups"]["all"]["iou"][0] == pytest.approx(5 / 6, abs=1e-4)
    assert summary["groups"]["2 layers"]["samples"] == 2
    assert "| all | 2 | 0.8333 |" in text
    assert "0.8705" in text  # the paper's row
    assert "| 0.8923 |  |  |  |  | 0.9424 |" in text and "read off a picture" in text  # of which two levels are known
    assert "| made | 0.0000 | 0.0000 | 0.0000 | 0.0000 |" in text
    # The picture twice: the ground's alpha agrees wholly, the square's 36 of 256 pixels: (1 + 36 / 256) / 2.
    assert summary["groups"]["all"]["baselines"]["input"]["iou"][0] == pytest.approx(0.5703, abs=1e-4)
    rows = list(csv.DictReader((tmp_path / "layers" / "samples.csv").read_text().splitlines()))
    assert [row["name"] for row in rows] == ["exact", "shifted"]
    assert [float(row["input_iou_0"]) for row in rows] == [0.57031, 0.57031]
    assert all((tmp_path / "layers" / f"{place}.png").is_file() for place in ("best", "median", "worst", "report"))
    assert shown == ["exact", "shifted", "shifted"]  # best, median, worst
    with pytest.raises(ValueError, match="no sample"):
        write_layer_report(tmp_path / "none", "A title", [], show, {})


def test_reconstructions_are_told_by_category_and_over_all(tmp_path):
    rows = [("a", "hair", {"psnr": 10.0, "ssim": 0.5}), ("b", "glass", {"psnr": 30.0, "ssim": 1.0})]
    rows.append(("c", "glass", {"psnr": 30.0, "ssim": 1.0}))
    text = write_reconstruction_report(tmp_path, "A title", rows, {"pictures": 3}, {"hair": 1.0, "glass": 3.0})
    assert "| macro average | 20.0000 | 0.7500 | 2.0000 |" in text
    assert "| plain mean | 23.3333 | 0.8333 |  |" in text
    assert "| hair | 10.0000 | 0.5000 | 1.0000 |" in text
    assert "| RGBA-VAE, Qwen-Image (paper), on AIM-500 | 38.8252 | 0.9802 |  |" in text
    assert len(list(csv.DictReader((tmp_path / "samples.csv").read_text().splitlines()))) == 3
    text = write_reconstruction_report(tmp_path, "A title", rows, {}, {"glass": 3.0})
    assert "| macro average | 20.0000 | 0.7500 |  |" in text  # no mean over what is not all
    with pytest.raises(ValueError, match="no picture"):
        write_reconstruction_report(tmp_path, "A title", [], {})
