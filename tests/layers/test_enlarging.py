"""Stored layers at the size of their picture: which picture it may be, and groups that follow their layer."""

import numpy as np
import pytest
from PIL import Image

from qil_jax.choices import Edges
from qil_jax.inference.images import bucket_size
from qil_jax.layers.enlarging import require_picture_of, tree_at_size
from qil_jax.layers.layer_tree import Group, LayerTree
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.pictures import ImageError
from qil_jax.layers.refinement import at_size


def test_every_picture_fits_its_own_bucket():
    """Which is another shape by up to a third: 64 x 64 pixels for 79 x 64."""
    rng = np.random.default_rng(0)
    for resolution in (64, 128, 640, 1024):
        for _ in range(60):
            width, height = (int(side) for side in rng.integers(resolution // 2, 5 * resolution, 2))
            if (bucket := bucket_size(width, height, resolution)) != (width, height) and (
                width > bucket[0] or height > bucket[1]
            ):
                require_picture_of(bucket, (width, height), "a.png")


@pytest.mark.parametrize(
    ("layers", "picture"), [((300, 200), (3000, 2000)), ((333, 250), (4000, 3000)), ((1000, 3), (9000, 31))]
)
def test_what_was_scaled_by_other_programs_fits(layers, picture):
    require_picture_of(layers, picture, "a.png")


@pytest.mark.parametrize(
    ("layers", "picture", "words"),
    [
        ((640, 640), (4000, 3000), "a.png: 4000x3000 pixels, and the layers have 640x640, of another shape"),
        ((736, 544), (3000, 4000), "of another shape: give the whole picture"),
        ((300, 200), (3000, 1900), "of another shape"),
        ((300, 200), (150, 100), "150x100 pixels, and the layers have 300x200: give the larger picture"),
        ((64, 64), (64, 64), "give the larger picture"),
        ((64, 64), (60, 64), "give the larger picture"),
    ],
)
def test_other_pictures_are_refused(layers, picture, words):
    with pytest.raises(ImageError, match=words):
        require_picture_of(layers, picture, "a.png")


def nested() -> tuple[LayerTree, np.ndarray]:
    """A tree of 32 x 24 pixels whose second layer, a disc of two colours, is a group of halves; and its picture."""
    y, x = np.mgrid[:96, :128] + 0.5
    layers = np.zeros((3, 96, 128, 4), np.uint8)
    layers[0], inside = (30, 60, 120, 255), np.hypot(x - 60, y - 50) < 35
    layers[1][inside & (x < 61)], layers[2][inside & (x >= 61)] = (220, 120, 30, 255), (40, 200, 60, 255)
    flat = LayeredImage(layers=layers, names=("a", "b", "c"))
    low = [np.asarray(Image.fromarray(layer, "RGBA").resize((32, 24), Image.Resampling.BOX)) for layer in layers]
    parts = LayeredImage(layers=np.stack(low[1:]), names=("left", "right"))
    whole = LayeredImage(layers=np.stack([low[0], parts.composite_8bit()]), names=("ground", "disc"))
    box = (4, 2, 28, 23)
    cut = LayeredImage(layers=parts.layers[:, 2:23, 4:28], names=parts.names)
    tree = LayerTree(layered=whole, groups={1: Group(tree=LayerTree.of(cut), left=box[0], top=box[1])})
    return tree, flat.composite_8bit()


@pytest.mark.parametrize("edges", list(Edges))
def test_groups_follow_their_layer(edges):
    tree, picture = nested()
    found, report = tree_at_size(tree, picture, edges)
    assert (report is not None) == (edges is Edges.REFINED)
    np.testing.assert_array_equal(found.layered.layers, at_size(tree.layered, picture, edges)[0].layers)
    group = found.groups[1]
    assert group.box == (16, 8, 112, 92) and group.tree.layered.names == ("left", "right")
    difference = group.tree.layered.composite_8bit().astype(int) - group.cut(found.layered.layers[1])
    seen = group.cut(found.layered.layers[1])[..., 3] > 0
    assert np.abs(difference[seen]).max() <= 1, "the parts blend to the layer"


def test_parts_show_the_pictures_edges():
    tree, picture = nested()
    off = []
    for edges in (Edges.REFINED, Edges.PLAIN):
        blend = tree_at_size(tree, picture, edges)[0].leaves().composite_8bit()
        off.append(np.mean(np.abs(blend.astype(int) - picture).max(axis=-1) > 2))
    assert off[0] < 0.005 and off[0] < 0.1 * off[1], off
