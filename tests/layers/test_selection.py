"""Automatic count on generated scenes with planted faults: exactly these go."""

import dataclasses

import numpy as np
import pytest

from qil_jax.layers.layered_image import LayeredImage
from qil_jax.layers.selection import select_layers
from qil_jax.scenes.scene import SIMPLE, SceneConfig, make_scene


def true_scene(seed: int) -> LayeredImage:
    """Half of the scenes are of simple things, half also have text, shadows and glass."""
    scene = make_scene(seed, SIMPLE if seed % 2 else SceneConfig(side=96)).to_layered_image()
    return dataclasses.replace(scene, names=tuple(f"{i} {name}" for i, name in enumerate(scene.names)))


def planted(true: LayeredImage, seed: int) -> LayeredImage:
    """The scene with up to four more layers: empty, nearly empty, a copy of one of its layers, the whole picture."""
    rng = np.random.default_rng(seed)
    layers, names = list(true.layers), list(true.names)
    speck = np.zeros_like(layers[0])
    speck[0, 0] = (255, 0, 0, 255)
    i = int(rng.integers(len(true.layers)))
    extra = {
        "empty": np.zeros_like(layers[0]),
        "speck": speck,
        "copy": true.layers[i],
        "picture": true.composite_8bit(),
    }
    for name in rng.permutation(list(extra))[: rng.integers(1, 5)]:
        # A copy lies right above its layer, as nothing else leaves the picture as it is.
        at = 1 + next(k for k, n in enumerate(names) if n == true.names[i]) if name == "copy" else None
        at = int(rng.integers(len(layers) + 1)) if at is None else at
        layers.insert(at, extra[name])
        names.insert(at, f"planted {name}")
    return LayeredImage(layers=np.stack(layers), names=tuple(names))


@pytest.mark.parametrize("first", range(0, 100, 25))
@pytest.mark.full
def test_exactly_what_was_planted_goes(first):
    for seed in range(first, first + 25):
        true = true_scene(seed)
        found = select_layers(planted(true, seed), true.composite_8bit())
        assert found.names == true.names, (seed, found.decisions)
        assert (found.layers == true.layers).all(), seed


def test_copies_as_a_decoder_makes_them_go_too():
    """Values a few levels off, alpha included."""
    for seed in range(1, 20, 2):
        true = true_scene(seed)
        noise = np.random.default_rng(seed).integers(-4, 5, (2, *true.layers.shape[1:]))
        thing = np.where(true.layers[-1, ..., 3:] > 0, true.layers[-1] + noise[0], 0).clip(0, 255).astype(np.uint8)
        picture = (true.composite_8bit() + noise[1]).clip(0, 255).astype(np.uint8)
        layers = np.stack([picture, *true.layers, thing])
        names = ("planted picture", *true.names, "planted copy")
        found = select_layers(LayeredImage(layers=layers, names=names), true.composite_8bit())
        assert len(found.names) == len(true.names) and "planted copy" not in found.names, (seed, found.decisions)


def test_layers_of_one_name_become_one_where_they_never_overlap():
    layers = np.zeros((4, 10, 10, 4), np.uint8)
    layers[0] = (0, 0, 255, 255)
    layers[1, :4, :4] = (255, 0, 0, 255)
    layers[2, :4, 6:] = (0, 255, 0, 255)
    layers[3, 6:, :4] = (255, 255, 0, 255)
    stack = LayeredImage(layers=layers, names=("ground", "tree", "house", "tree"))
    found = select_layers(stack, stack.composite_8bit())
    assert found.names == ("ground", "tree", "house")
    assert found.decisions == ("two layers named tree, which never overlap, became one",)
    assert (found.layers[1] == layers[1] + layers[3]).all() and (found.composite_8bit() == stack.composite_8bit()).all()
    layers[2, 5:7, 3:] = (0, 255, 0, 255)  # the house now stands between the trees
    apart = select_layers(dataclasses.replace(stack, layers=layers), stack.composite_8bit())
    assert apart.names == stack.names


def test_one_layer_always_stays():
    stack = LayeredImage(layers=np.zeros((3, 8, 8, 4), np.uint8), names=("a", "b", "c"))
    assert select_layers(stack, np.zeros((8, 8, 4), np.uint8)).names == ("c",)
