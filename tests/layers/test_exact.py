"""Exact recomposition of random stacks: what comes back, what stays, and how much changes."""

import numpy as np
import pytest

from qil_jax.errors import QilError
from qil_jax.layers.exact import exact
from qil_jax.layers.layered_image import LayeredImage


def random_case(seed: int) -> tuple[LayeredImage, np.ndarray]:
    """A stack of 1 to 20 layers of clear, soft and opaque pixels, and a picture that has nothing to do with it."""
    rng = np.random.default_rng(seed)
    count, height, width = rng.integers(1, 21), *rng.integers(3, 32, 2)
    layers = rng.integers(0, 256, (count, height, width, 4), np.uint8)
    kind = rng.integers(0, 3, layers.shape[:3])
    layers[..., 3][kind == 0] = 0
    layers[..., 3][kind == 1] = 255
    picture = rng.integers(0, 256, (height, width, 4), np.uint8)
    if seed % 2:
        picture[..., 3] = 255
    if seed % 4 == 0:
        picture[rng.random((height, width)) < 0.2] = 0
    return stack_of(layers), picture


def stack_of(layers: np.ndarray) -> LayeredImage:
    return LayeredImage(layers=layers, names=tuple(str(i) for i in range(len(layers))))


def levels_apart(layered: LayeredImage, picture: np.ndarray) -> int:
    """The largest difference of the blend, in straight colour where it shows and in alpha everywhere."""
    blend = layered.composite_8bit()
    apart = np.abs(blend.astype(int) - picture)
    colour = apart[(blend[..., 3] > 0) & (picture[..., 3] > 0)][:, :3]
    return max(int(apart[..., 3].max()), int(colour.max(initial=0)))


def painted_on_top(layered: LayeredImage, picture: np.ndarray) -> np.ndarray:
    """The colour changes of the plain way: what is missing goes into the topmost layer that shows at each pixel."""
    blend, changes = layered.composite(), np.zeros(layered.layers[..., :3].shape)
    left = np.ones(picture.shape[:2])
    for i in reversed(range(len(layered.layers))):
        alpha = layered.layers[i, ..., 3] / 255
        here = (alpha > 0) & (left == 1)
        weight = np.where(here, alpha / np.maximum(blend[..., 3], 1e-9), 1)
        changes[i][here] = ((picture[..., :3] - 255 * blend[..., :3]) / weight[..., None])[here]
        left *= 1 - alpha
    return changes


@pytest.mark.parametrize("first", range(0, 200, 50))
def test_random_stacks_return_the_picture(first):
    for seed in range(first, first + 50):
        layered, picture = random_case(seed)
        found, report = exact(layered, picture)
        assert levels_apart(found, picture) <= 1, seed
        clear = found.layers[..., 3] == 0
        assert (found.layers[clear][:, :3] == layered.layers[clear][:, :3]).all(), seed
        kept_clear = (layered.layers[..., 3] == 0)[1:]
        assert (found.layers[1:][kept_clear] == layered.layers[1:][kept_clear]).all(), seed
        assert report.psnr_after > max(45, report.psnr_before), seed


def test_the_change_is_smaller_than_painting_what_is_missing_on_top():
    for seed in range(1, 200, 2):
        layered, picture = random_case(seed)
        if len(layered.layers) == 1:
            continue  # there both are the same
        layered.layers[0, ..., 3] = 255  # so that alpha stays and only colours are compared
        found, report = exact(layered, picture)
        plain = np.abs(painted_on_top(layered, picture))[layered.layers[..., 3] > 0]
        change = np.abs(found.layers[..., :3].astype(int) - layered.layers[..., :3])[layered.layers[..., 3] > 0]
        assert report.alpha_repaired == 0 and change.mean() == pytest.approx(report.mean_change)
        assert report.mean_change < plain.mean(), seed


def test_a_stack_that_is_exact_keeps_every_byte():
    layered, _ = random_case(3)
    found, report = exact(layered, layered.composite_8bit())
    assert (found.layers == layered.layers).all()
    assert (report.mean_change, report.alpha_repaired, report.psnr_before, report.psnr_after) == (0, 0, 99, 99)


def test_one_pixel_by_hand():
    """Shares of about a half, 40 levels short in red: both layers rise by 40; the upper takes what blue lacks below."""
    layers = np.zeros((2, 1, 1, 4), np.uint8)
    layers[0, 0, 0] = (100, 50, 250, 255)
    layers[1, 0, 0] = (100, 50, 100, 128)
    weight = 128 / 255
    picture = np.array([[[140, 50, 200, 255]]], np.uint8)
    found, _ = exact(stack_of(layers), picture)
    short = 200 - (weight * 100 + (1 - weight) * 250)
    raised = 100 + (short - (1 - weight) * 5) / weight  # the lower layer has only 5 levels left
    assert found.layers[0, 0, 0].tolist() == [140, 50, 255, 255]
    assert found.layers[1, 0, 0].tolist() == [140, 50, round(raised), 128]


def test_what_is_hidden_stays():
    layered, picture = random_case(5)
    layered.layers[-1, ..., 3] = 255
    found, _ = exact(layered, picture)
    assert (picture[..., 3] == 255).all() and len(layered.layers) > 1
    assert (found.layers[:-1] == layered.layers[:-1]).all() and (found.layers[-1] == picture).all()


def test_alpha_rises_at_the_bottom_and_is_cut_from_the_top():
    layers = np.full((3, 1, 3, 4), 90, np.uint8)
    layers[..., 3] = [[[0, 100, 255]], [[0, 0, 255]], [[0, 0, 255]]]
    picture = np.full((1, 3, 4), 90, np.uint8)
    picture[..., 3] = [255, 255, 51]
    found, report = exact(stack_of(layers), picture)
    assert found.layers[..., 3].tolist() == [[[255, 255, 0]], [[0, 0, 0]], [[0, 0, 51]]]
    assert report.alpha_repaired == 1


def test_sizes_that_differ_are_refused():
    layered, _ = random_case(0)
    with pytest.raises(QilError, match=r"cannot return a picture of 50x40: resize one of them"):
        exact(layered, np.zeros((40, 50, 4), np.uint8))
