"""Recursion with a stand-in for the pipeline that cuts each picture along its middle and errs a little."""

import numpy as np
from halves import SIDE, Halves
from PIL import Image

from qil_jax.choices import Split
from qil_jax.inference.request import Decomposition, Request, Settings
from qil_jax.inference.tree import POLICIES, split_layers
from qil_jax.layers.exact import exact
from qil_jax.layers.layered_image import LayeredImage


def soft_picture(size: tuple[int, int], seed: int = 0) -> np.ndarray:
    """Soft colours of a soft shape on a clear ground."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (5, 6, 4), np.uint8), "RGBA")
    pixels = np.array(small.resize(size, Image.Resampling.BICUBIC))
    pixels[:, : size[0] // 8, 3] = 0
    return pixels


def decomposed(picture: np.ndarray, **options) -> tuple[LayeredImage, Request]:
    """The first level, at the picture's own size and exact, as `qil decompose` makes it."""
    layers = np.zeros((2, *picture.shape), np.uint8)
    layers[0], layers[1, 10:40, 20:50] = picture, picture[10:40, 20:50] // 2 + 60
    request = Request(image=Image.fromarray(picture, "RGBA"), prompt="all of it", layers=3, resolution=SIDE, **options)
    return exact(LayeredImage(layers=layers, names=("ground", "thing")), picture)[0], request


def apart(layers: np.ndarray, picture: np.ndarray) -> int:
    shown = (picture[..., 3] > 0) & (layers[..., 3] > 0)
    off = np.abs(layers.astype(int) - picture)
    return max(int(off[..., 3].max()), int(off[shown].max()))


def test_the_leaves_blend_to_the_picture_and_parts_to_their_layers():
    picture = soft_picture((90, 70))
    stack, request = decomposed(picture)
    tree = split_layers([stack], [request], Halves(), Settings(), depth=3, batch=4)[0]
    assert tree.depth == 3 and set(tree.groups) == {0, 1}
    for i, group in tree.groups.items():
        blend = group.put(group.tree.leaves().composite_8bit(), stack.size)
        assert apart(blend, stack.layers[i]) <= 2, i  # half a level for each of two levels of groups, and rounding
    fitted = tree.with_leaves(exact(tree.leaves(), picture)[0].layers)
    assert apart(fitted.leaves().composite_8bit(), picture) <= 1
    names = fitted.leaves().names
    assert names[0] == "ground / left / left" and len(names) == len(set(names)) == 8


def test_what_is_split_keeps_its_alpha():
    picture = soft_picture((90, 70))
    stack, request = decomposed(picture)
    halves = Halves()
    split_layers([stack], [request], halves, Settings(), depth=2, batch=8)
    (given,) = halves.batches
    assert [np.asarray(r.image)[..., 3].min() for r in given] == [0, 0]
    thing = np.asarray(given[1].image)
    assert (thing[2:-2, 2:-2] == stack.layers[1, 10:40, 20:50]).all() and not thing[:2].any()
    assert [(r.prompt, r.layers, r.resolution) for r in given] == [(None, 3, SIDE)] * 2


def test_a_level_is_one_batch_and_policies_choose():
    stacks, requests = zip(*(decomposed(soft_picture((90, 70), seed)) for seed in range(3)), strict=True)
    halves = Halves()
    split_layers(stacks, requests, halves, Settings(), depth=2, batch=16)
    assert [len(batch) for batch in halves.batches] == [6]
    halves = Halves()
    trees = split_layers(stacks, requests, halves, Settings(), depth=2, policy=POLICIES[Split.LARGEST], batch=2)
    assert [len(batch) for batch in halves.batches] == [2, 1] and [set(tree.groups) for tree in trees] == [{0}] * 3
    halves = Halves()
    trees = split_layers(stacks, requests, halves, Settings(), depth=2, policy=lambda stack: [1], batch=8)
    assert [set(tree.groups) for tree in trees] == [{1}] * 3


def test_empty_small_and_single_part_layers_are_not_split():
    layers = np.zeros((4, 64, 64, 4), np.uint8)
    layers[0] = (90, 120, 30, 255)
    layers[2, 5:9, 5:60] = (255, 0, 0, 255)  # four pixels high
    layers[3, :, :30] = (0, 0, 255, 255)  # lies in the left half of the canvas, but not of its own box
    request = Request(image=Image.new("RGBA", (64, 64)), layers=3, resolution=SIDE)

    class Copies(Halves):
        def _halves(self, request: Request) -> Decomposition:
            made = super()._halves(request)
            made.layered.layers[0] = made.input  # a copy of the picture, a part of it, nothing
            return made

    halves = Copies()
    stack = LayeredImage(layers=layers, names=("a", "b", "c", "d"))
    tree = split_layers([stack], [request], halves, Settings(), depth=4, batch=8)[0]
    assert [r.image.size for r in halves.batches[0]] == [(64, 64), (38, 72)]
    assert tree.depth == 1 or all(len(p.tree.layered.names) > 1 for p in tree.groups.values())
