"""Resizing and rotating against references in double precision: no fringe, no haze, nothing rounded twice."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from edits import disc, layer
from hypothesis import given
from hypothesis import strategies as st

from qil_jax.editing import geometry
from qil_jax.editing.geometry import Anchor, Fit
from qil_jax.editing.stack import Layer

GROUNDS = np.array([(0, 0, 0), (1, 1, 1), (1, 0, 1), (0, 1, 0)])[:, None, None]
ONCE_ROUNDED = 1.01 / 255
"""Half a level of colour, half a level of alpha, and fp32."""
FRINGE = 5 / 255
"""Bound of the difference from a scene that was drawn at the new place and size, whose edges are 8 pixels soft."""
MARGIN = 40
Point = Callable[[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]]
"""Coordinates of the edited layer to those of the layer that it was."""


def premultiplied(pixels: np.ndarray) -> np.ndarray:
    straight = pixels / 255.0
    return np.concatenate([straight[..., :3] * straight[..., 3:], straight[..., 3:]], -1)


def on_plane(x: Layer, side: int) -> np.ndarray:
    """The layer, premultiplied, on a plane that begins `MARGIN` pixels left of and above the canvas."""
    plane = np.zeros((side, side, 4))
    placed = geometry.moved(x, MARGIN, MARGIN)
    assert placed.within((side, side)) is placed
    plane[placed.window] = premultiplied(placed.pixels)
    return plane


def difference(got: np.ndarray, expected: np.ndarray) -> float:
    """The largest difference of two premultiplied planes over any of the grounds."""
    blends = [x[None, ..., :3] + (1 - x[None, ..., 3:]) * GROUNDS for x in (got, expected)]
    return float(np.abs(blends[0] - blends[1]).max())


def undone(box: tuple, degrees: float) -> Point:
    """The point from which a rotation about the centre of a box comes."""
    cx, cy = (box[0] + box[2]) / 2, (box[1] + box[3]) / 2
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    return lambda x, y: (cx + cos * (x - cx) + sin * (y - cy), cy - sin * (x - cx) + cos * (y - cy))


def shrunk(box: tuple, new: tuple) -> Point:
    """The point from which resizing of a box to another comes."""
    scale = [(box[i + 2] - box[i]) / (new[i + 2] - new[i]) for i in (0, 1)]
    return lambda x, y: (box[0] + (x - new[0]) * scale[0], box[1] + (y - new[1]) * scale[1])


def centres(side: int, samples: int = 1) -> tuple[np.ndarray, ...]:
    along = (np.arange(side * samples) + 0.5) / samples - MARGIN
    return tuple(np.meshgrid(along, along))


def bilinear(plane: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = x + MARGIN - 0.5, y + MARGIN - 0.5
    left, top = np.floor(x).astype(int), np.floor(y).astype(int)
    u, v = (x - left)[..., None], (y - top)[..., None]
    left, top = (np.clip(i, 0, len(plane) - 2) for i in (left, top))
    rows = [plane[top + i, left] * (1 - u) + plane[top + i, left + 1] * u for i in (0, 1)]
    return rows[0] * (1 - v) + rows[1] * v


def weights(side: int, source: np.ndarray, scale: float, kernel: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Weights of the plane's pixels for the points `source` of an axis, where a new pixel is `scale` old ones."""
    pixels = np.arange(side) + 0.5 - MARGIN
    found = kernel((pixels - source[:, None]) / max(1, scale))
    return found / found.sum(1, keepdims=True)


def triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(0, 1 - np.abs(x))


def hamming(x: np.ndarray) -> np.ndarray:
    return np.where(np.abs(x) < 1, np.sinc(x) * (0.54 + 0.46 * np.cos(np.pi * x)), 0)


def random_layer(seed: int) -> Layer:
    """Random pixels with hard edges; every side shows, and each is nearly clear at one end."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (rng.integers(2, 12), rng.integers(2, 12), 4), np.uint8)
    pixels[rng.random(pixels.shape[:2]) < 0.3, 3] = 0
    pixels[[0, 0, -1, -1], [0, -1, 0, -1], 3] = 1, 250, 250, 1
    return layer(pixels, *map(int, rng.integers(-3, 4, 2)))


@given(st.integers(0, 2**32), st.floats(-360, 360))
def test_rotating_is_bilinear_and_rounded_once(seed, degrees):
    given_layer = random_layer(seed)
    expected = bilinear(on_plane(given_layer, 96), *undone(given_layer.box, degrees)(*centres(96)))
    got = on_plane(geometry.turned(given_layer, degrees + 1e-9), 96)  # never a multiple of 90
    assert difference(got, expected) <= ONCE_ROUNDED


@given(st.integers(0, 2**32), st.integers(1, 30), st.integers(1, 30))
def test_resizing_filters_premultiplied_colour_and_rounds_once(seed, width, height):
    given_layer = random_layer(seed)
    old = given_layer.box
    got = geometry.resized(given_layer, width, height, Anchor.TOP_LEFT)
    if (width, height) == (old[2] - old[0], old[3] - old[1]):
        return
    x, y = shrunk(old, (old[0], old[1], old[0] + width, old[1] + height))(*centres(96))
    scales = (old[2] - old[0]) / width, (old[3] - old[1]) / height
    kernel = triangle if min(scales) < 1 else hamming
    points = x[0], y[:, 0]
    inside = [(p > -MARGIN + 12) & (p < 96 - MARGIN - 12) for p in points]
    expected = np.zeros((96, 96, 4))
    columns, rows = (weights(96, p[i], scale, kernel) for p, i, scale in zip(points, inside, scales, strict=True))
    stretched = np.einsum("yi,ijc->yjc", rows, on_plane(given_layer, 96))
    expected[np.ix_(inside[1], inside[0])] = np.einsum("xj,yjc->yxc", columns, stretched)
    assert difference(on_plane(got, 96), expected) <= ONCE_ROUNDED


def scene(seed: int) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    """A blob with an edge of 8 pixels or more and colours that vary: premultiplied RGBA at any point."""
    rng = np.random.default_rng(seed)
    (cx, cy), radius, soft = rng.uniform(30, 34, 2), rng.uniform(14, 16), rng.uniform(8, 12)
    phase, waves, lobes = rng.uniform(0, 6, 3), rng.uniform(-0.1, 0.1, (3, 2)), rng.integers(2, 5)

    def at(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        reach = radius * (1 + 0.15 * np.cos(lobes * np.arctan2(y - cy, x - cx)))
        t = np.clip((reach - np.hypot(x - cx, y - cy)) / soft + 0.5, 0, 1)
        alpha = (t * t * (3 - 2 * t))[..., None]
        colour = 0.5 + 0.45 * np.sin(phase + waves[:, 0] * x[..., None] + waves[:, 1] * y[..., None])
        return np.concatenate([colour * alpha, alpha], -1)

    return at


def drawn(at: Callable, back: Point, side: int) -> np.ndarray:
    """A scene on the plane, 4 x 4 samples per pixel."""
    return at(*back(*centres(side, 4))).reshape(side, 4, side, 4, 4).mean((1, 3))


def as_layer(plane: np.ndarray, hidden: np.ndarray) -> Layer:
    """A premultiplied plane in 8 bits, with another colour under alpha 0."""
    alpha = plane[..., 3:]
    straight = np.divide(plane[..., :3], alpha, out=np.zeros_like(plane[..., :3]), where=alpha > 0)
    pixels = np.rint(np.concatenate([straight, alpha], -1) * 255).astype(np.uint8)
    pixels[pixels[..., 3] == 0, :3] = hidden
    return layer(pixels, -MARGIN, -MARGIN)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.full
def test_soft_edges_are_as_if_drawn_at_the_new_place_and_size(seed):
    rng = np.random.default_rng(seed)
    at, hidden = scene(seed), rng.integers(0, 256, 3)
    same = as_layer(drawn(at, lambda x, y: (x, y), 144), hidden)
    box = same.visible or ()
    degrees = float(rng.uniform(-180, 180))
    turned = on_plane(geometry.turned(same, degrees), 144)
    assert difference(turned, drawn(at, undone(box, degrees), 144)) <= FRINGE

    width, height = round((box[2] - box[0]) * rng.uniform(1.1, 1.6)), round((box[3] - box[1]) * rng.uniform(0.9, 1.6))
    large = on_plane(geometry.resized(same, width, height, Anchor.TOP_LEFT), 144)
    new = box[0], box[1], box[0] + width, box[1] + height
    assert difference(large, drawn(at, shrunk(box, new), 144)) <= FRINGE

    twice = as_layer(drawn(at, lambda x, y: (x / 2, y / 2), 184), hidden)
    left, top, right, bottom = twice.visible or ()
    new = left, top, left + (right - left) // 2, top + (bottom - top) // 2
    small = on_plane(geometry.resized(twice, new[2] - new[0], new[3] - new[1], Anchor.TOP_LEFT), 144)
    back = shrunk((left, top, right, bottom), new)
    expected = drawn(lambda x, y: at(x / 2, y / 2), back, 144)
    assert difference(small, expected) <= FRINGE


EDITS = {
    "turned": lambda x: geometry.turned(x, 33.0),
    "turned often": lambda x: geometry.turned(geometry.turned(geometry.turned(x, 12.5), -200.0), 1.0),
    "smaller": lambda x: geometry.scaled(x, 0.37, Anchor.CENTRE),
    "larger": lambda x: geometry.scaled(x, 2.3, Anchor.CENTRE),
    "wider": lambda x: geometry.resized(x, 50, 11, Anchor.CENTRE),
}


@pytest.mark.parametrize("edit", EDITS)
@pytest.mark.parametrize("soft", [1, 9])
def test_a_layer_of_one_colour_keeps_it_and_has_no_haze(edit, soft):
    """Whatever lies hidden under alpha 0; and nothing shows farther out than one pixel, old or new, from the disc."""
    given_layer = layer(disc(40, 14, (200, 30, 90), hidden=77, soft=soft))
    got = EDITS[edit](given_layer)
    shows = got.pixels[..., 3] > 0
    assert (got.pixels[shows][:, :3] == (200, 30, 90)).all() and not got.pixels[~shows].any()
    before, after = given_layer.visible or (), got.visible or ()
    x = got.left + np.arange(got.pixels.shape[1]) + 0.5
    y = got.top + np.arange(got.pixels.shape[0])[:, None] + 0.5
    wide = 50 / (before[2] - before[0]), 11 / (before[3] - before[1])
    stretch = {"smaller": (0.37, 0.37), "larger": (2.3, 2.3), "wider": wide}
    across, down = stretch.get(edit, (1, 1))
    cx, cy = (after[0] + after[2]) / 2, (after[1] + after[3]) / 2
    reach = 14 + soft / 2
    away = np.hypot((x - cx) / (reach * across + 1.5 * max(1, across)), (y - cy) / (reach * down + 1.5 * max(1, down)))
    assert away[shows].max() <= (1 if "often" not in edit else 1.2)


@given(st.integers(1, 9), st.integers(1, 9), st.floats(0.1, 4), st.sampled_from([1, 128, 255]))
def test_the_sides_of_a_picture_or_a_panel_stay_sharp(width, height, scale, alpha):
    pixels = np.full((height, width, 4), (9, 100, 200, alpha), np.uint8)
    got = geometry.scaled(layer(pixels), scale, Anchor.TOP_LEFT)
    assert got.pixels.shape == (max(1, round(height * scale)), max(1, round(width * scale)), 4)
    assert (got.pixels == (9, 100, 200, alpha)).all() and (got.left, got.top) == (0, 0)


def test_a_ground_that_is_almost_opaque_fills_its_canvas_when_enlarged():
    """As those that a decoder paints."""
    pixels = np.random.default_rng(0).integers(250, 256, (8, 9, 4), np.uint8)
    got = geometry.scaled(layer(pixels), 2.5, Anchor.CENTRE)
    assert got.pixels.shape == (20, 22, 4) and got.pixels.min() >= 250


@pytest.mark.parametrize(
    ("fit", "box"), [(Fit.CONTAIN, (10, 15, 30, 25)), (Fit.COVER, (10, 10, 30, 30)), (Fit.STRETCH, (10, 10, 30, 30))]
)
def test_a_picture_fills_the_box_of_the_layer(fit, box):
    """A picture twice as wide as high, red with a blue rim of an eighth on the left and on the right."""
    picture = np.full((40, 80, 4), (255, 0, 0, 255), np.uint8)
    picture[:, :10] = picture[:, -10:] = (0, 0, 255, 255)
    got = geometry.replaced(layer(disc(40, 10, (1, 2, 3))), picture, fit, (40, 40))
    assert got.visible == box and (got.pixels[..., 3] == 255).all()
    blue = (got.pixels[..., 2] > 200).mean()
    assert blue == pytest.approx(0 if fit is Fit.COVER else 0.25, abs=0.06)
    empty = layer(np.zeros((1, 1, 4), np.uint8))
    assert geometry.replaced(empty, picture, Fit.STRETCH, (40, 30)).visible == (0, 0, 40, 30)


@pytest.mark.parametrize("edit", [*EDITS.values(), lambda x: geometry.cropped(x, (50, 50, 60, 60))])
def test_an_empty_layer_stays_empty(edit):
    got = edit(layer(np.full((3, 4, 4), (9, 9, 9, 0), np.uint8)))
    assert got.visible is None
