"""Refinement: who owns a pixel, what stays soft, what blends to the picture, at every size, count and part."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from qil_jax.choices import Edges
from qil_jax.inference.images import bucket_size
from qil_jax.layers import refinement
from qil_jax.layers.filtering import resampled, resize_layers
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.refinement import at_size, refine
from qil_jax.layers.shares import shares_of
from qil_jax.scenes.scene import SceneConfig, make_scene


def stack_of(layers: np.ndarray) -> LayeredImage:
    return LayeredImage(layers=layers, names=tuple(str(i) for i in range(len(layers))))


def reduced(layers: np.ndarray, times: int) -> LayeredImage:
    """Layers at a fraction of their size."""
    size = layers.shape[2] // times, layers.shape[1] // times
    return stack_of(
        np.stack([np.asarray(Image.fromarray(x, "RGBA").resize(size, Image.Resampling.BOX)) for x in layers])
    )


def shares(layers: np.ndarray) -> np.ndarray:
    return shares_of(layers[..., 3].astype(np.float32) / 255)


def levels_apart(layered: LayeredImage, picture: np.ndarray) -> int:
    """The largest difference of the blend over black."""
    blends = [x[..., :3] * (x[..., 3:] / 255.0) for x in (layered.composite_8bit(), picture)]
    return int(np.abs(blends[0] - blends[1]).max().round())


def disc(size: int, *, soft: float = 1.0, texture: float = 20.0) -> np.ndarray:
    """A textured disc on a textured ground, an edge of `soft` pixels between them."""
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:size, :size] - size / 2 + 0.5
    layers = np.zeros((2, size, size, 4), np.uint8)
    layers[0, ..., :3] = np.clip((40, 90, 160) + texture * rng.standard_normal((size, size, 1)), 0, 255)
    layers[1, ..., :3] = np.clip((220, 120, 30) + texture * rng.standard_normal((size, size, 1)), 0, 255)
    layers[0, ..., 3] = 255
    layers[1, ..., 3] = np.rint(255 * np.clip((size / 3 - np.hypot(x, y)) / soft + 0.5, 0, 1))
    return layers


@pytest.mark.parametrize(("times", "least"), [(4, 6), (8, 5)])
def test_edges_are_the_pictures(times, least):
    """Shares near an edge, and colours where they show, against interpolation."""
    scenes = [make_scene(seed, SceneConfig(side=256)).to_layered_image().layers for seed in range(3)]
    errors = np.zeros(4)
    for layers in [*scenes, disc(256)]:
        low, picture, truth = reduced(layers, times), stack_of(layers).composite_8bit(), shares(layers)
        plain, (found, report) = resize_layers(low.layers, (256, 256)), refine(low, picture)
        seen = truth[:-1, ..., None]
        for i, ours in enumerate((plain, found.layers)):
            colours = np.abs(ours[..., :3].astype(float) - layers[..., :3]) * seen
            errors[2 * i : 2 * i + 2] += np.abs(shares(ours) - truth).mean(), colours.mean()
        assert report.scale == (times, times) and 0 < report.edges < 1
        assert levels_apart(found, picture) <= 1
    assert errors[0] > least * errors[2] and errors[1] > 3 * errors[3], errors


def test_what_is_soft_stays_soft():
    """A glow of 48 pixels over a faint texture: no worse than interpolated, and no step that the truth lacks."""
    layers = disc(128, soft=48, texture=5)
    low, picture = reduced(layers, 8), stack_of(layers).composite_8bit()
    truth = layers[1, ..., 3].astype(float)
    plain, (found, _) = resize_layers(low.layers, (128, 128)), refine(low, picture)
    assert np.abs(found.layers[1, ..., 3] - truth).mean() < np.abs(plain[1, ..., 3] - truth).mean()
    steps = np.abs(np.diff(found.layers[1, ..., 3].astype(int), axis=0))
    assert steps.max() < 20  # of 255, where the truth's are 6 and the texture's noise is 9 when read as alpha


def test_a_soft_layer_over_a_plain_ground_is_interpolated():
    """No edge in the picture: nothing to take from it."""
    layers = np.zeros((2, 16, 16, 4), np.uint8)
    layers[0], layers[1, ..., :3] = 128, 128
    layers[0, ..., 3], layers[1, ..., 3] = 255, np.linspace(0, 255, 16).astype(np.uint8)
    found, _ = refine(stack_of(layers), np.full((128, 128, 4), (128, 128, 128, 255), np.uint8))
    alpha = found.layers[1, ..., 3].astype(int)
    assert np.abs(np.diff(alpha, axis=1)).max() <= 4 and np.abs(np.diff(alpha, axis=0)).max() <= 1


@pytest.mark.parametrize("texture", [20, 100, None])
def test_sure_pixels_keep_their_owner(texture):
    """Those of the ground as far as the picture shows ground there: noise (None) may be anybody's near an edge."""
    layers = disc(16)
    layers[1, ..., 3] = np.where(layers[1, ..., 3] > 127, 255, 0)
    noise = np.random.default_rng(1).integers(0, 256, (128, 128, 4), np.uint8)
    shown = stack_of(np.kron(layers, np.ones((1, 8, 8, 1), np.uint8))).composite_8bit()
    picture = noise if texture is None else np.clip(shown + (noise / 255.0 - 0.5) * texture, 0, 255).astype(np.uint8)
    picture[..., 3] = 255
    found, report = refine(stack_of(layers), picture)
    low = np.pad(layers[1, ..., 3] > 0, 2, mode="edge")
    windows = np.lib.stride_tricks.sliding_window_view(low, (5, 5))
    grounds = [] if texture is None else [(~windows.any((2, 3)), 0)]
    for is_owner, wanted in ((windows.all((2, 3)), 255), *grounds):
        at = np.kron(is_owner, np.ones((8, 8), bool))
        assert at.any() and (found.layers[1, ..., 3][at] == wanted).all()
    assert report.edges < (1 if texture is None else 0.5) and (found.layers[0, ..., 3] == 255).all()


def test_hidden_colours_are_the_stacks():
    """A ground below an opaque thing has no other colours than the stack's; they are not the thing's."""
    layers = disc(16, texture=0)
    found, _ = refine(stack_of(layers), stack_of(resize_layers(layers, (128, 128))).composite_8bit())
    hidden = found.layers[0][found.layers[1, ..., 3] == 255]
    assert len(hidden) > 1000 and np.abs(hidden[:, :3].astype(int) - (40, 90, 160)).max() <= 8


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.sampled_from([1, 2, 5, 20]),
    low=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    kind=st.sampled_from(["noise", "constant", "clear", "lines"]),
    is_opaque=st.booleans(),
)
def test_any_stack_fits_any_picture(seed, count, low, size, kind, is_opaque):
    """Sizes that do not divide one another, one layer to 20, constant and clear ones, things of one pixel."""
    rng = np.random.default_rng(seed)
    layers = rng.integers(0, 256, (count, low[1], low[0], 4), np.uint8)
    if kind == "constant":
        layers[:] = layers[:, :1, :1]
    if kind == "clear":
        layers[..., 3] = 0
    if kind == "lines":
        layers[..., 3] = 255 * (rng.random(layers.shape[:3]) < 0.2)
    picture = rng.integers(0, 256, (size[1], size[0], 4), np.uint8)
    if is_opaque:
        layers[0, ..., 3] = picture[..., 3] = 255
    with np.errstate(all="raise", under="ignore"):
        found, report = refine(stack_of(layers), picture)
    assert found.layers.shape == (count, *picture.shape) and np.isfinite(report.edges)
    np.testing.assert_allclose(shares(found.layers).sum(axis=0), 1, atol=1e-5)
    if is_opaque:
        assert levels_apart(found, picture) <= 1


def test_a_picture_of_the_stacks_size_keeps_its_shares():
    layers = disc(48)
    picture = stack_of(disc(48, texture=24)).composite_8bit()
    found, _ = refine(stack_of(layers), picture)
    assert np.abs(found.layers[..., 3].astype(int) - layers[..., 3]).max() <= 2
    assert ((found.layers[..., 3] == layers[..., 3]) | ~np.isin(layers[..., 3], (0, 255))).all()
    assert levels_apart(found, picture) <= 1


@pytest.mark.parametrize("size", [(160, 120), (97, 203)])
def test_parts_and_threads_change_nothing(monkeypatch, size):
    haze = np.full((1, 256, 256, 4), (90, 200, 90, 1), np.uint8)
    haze[:, 200:, :40, 3] = 255
    layers = np.concatenate([disc(256), haze])
    low, picture = reduced(layers, 4), resampled(stack_of(layers).composite_8bit(), size)
    found, _ = refine(low, picture)
    for part, threads in ((1, 1), (1 << 14, 3)):
        monkeypatch.setattr(refinement, "PART", part)
        monkeypatch.setattr(refinement.os, "cpu_count", lambda threads=threads: threads)
        assert (refine(low, picture)[0].layers == found.layers).all()


def test_layers_that_share_no_pixel_share_none_afterwards():
    """Two things side by side: their order is not known, and need not be."""
    layers = np.zeros((3, 128, 128, 4), np.uint8)
    layers[0] = (40, 90, 160, 255)
    layers[1, 16:112, 16:64] = (220, 120, 30, 255)
    layers[2, 16:112, 64:112] = (120, 220, 30, 255)
    low, picture = reduced(layers, 8), stack_of(layers).composite_8bit()
    found, _ = refine(low, picture)
    assert not ((found.layers[1, ..., 3] > 0) & (found.layers[2, ..., 3] > 0)).any()
    assert np.abs(found.layers[..., 3].astype(int) - layers[..., 3]).mean() < 1
    resized = resize_layers(low.layers, (128, 128))
    assert ((resized[1, ..., 3] > 0) & (resized[2, ..., 3] > 0)).any()


def test_a_cut_out_keeps_the_pictures_outline():
    """A picture with transparency: what shows through all layers is found as the layers are."""
    layers = disc(128)[1:]
    low, picture = reduced(layers, 8), layers[0]
    found, _ = refine(low, picture)
    plain = resize_layers(low.layers, (128, 128))
    apart = [np.abs(x[..., 3].astype(float) - picture[..., 3]).mean() for x in (found.layers[0], plain[0])]
    assert apart[0] < apart[1] / 4


def test_smaller_pictures_and_plain_edges_are_interpolated():
    layered = stack_of(disc(32))
    for size, edges in (((24, 16), Edges.REFINED), ((32, 32), Edges.REFINED), ((64, 48), Edges.PLAIN)):
        found, report = at_size(layered, np.zeros((size[1], size[0], 4), np.uint8), edges)
        assert report is None and (found.layers == resize_layers(layered.layers, size)).all()
    assert bucket_size(64, 48, 32) == (32, 32)
    assert at_size(layered, np.zeros((48, 64, 4), np.uint8), Edges.REFINED)[1] is not None
