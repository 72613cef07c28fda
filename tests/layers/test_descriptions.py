"""Descriptions find, name and order layers, and never change the picture."""

import numpy as np

from qil_jax.layers.descriptions import LayerDescription, apply_descriptions, described_prompt
from qil_jax.layers.layered_image import LayeredImage


def stack(*boxes: tuple[int, int, int, int]) -> LayeredImage:
    layers = np.zeros((len(boxes), 40, 50, 4), np.uint8)
    for i, (left, top, right, bottom) in enumerate(boxes):
        layers[i, top:bottom, left:right] = (40 * i, 200 - 30 * i, 90, 255)
    return LayeredImage(layers=layers, names=tuple(f"Layer {i + 1}" for i in range(len(boxes))))


GROUND, KITE, TREE = (0, 0, 50, 40), (5, 5, 15, 15), (30, 10, 45, 38)


def test_the_prompt_lists_what_is_said():
    said = [LayerDescription(), LayerDescription(text="a kite"), LayerDescription(text="a tree", box=TREE)]
    lines = "Layer 2 of 3, from the bottom: a kite\nLayer 3 of 3, from the bottom: a tree"
    assert described_prompt("a park", said) == "a park\n" + lines
    assert described_prompt(" ", said) == lines
    assert described_prompt(" ", [LayerDescription(box=TREE)]) == " "


def test_boxes_find_layers_and_put_them_in_order():
    layered = stack(GROUND, TREE, KITE)
    said = [
        LayerDescription(text="sky"),
        LayerDescription(text="kite", box=(4, 4, 16, 15)),
        LayerDescription(text="tree", box=(28, 12, 45, 40)),
    ]
    found = apply_descriptions(layered, said)
    assert found.names == ("sky", "kite", "tree") and found.decisions == ()
    assert (found.layers == layered.layers[[0, 2, 1]]).all()
    assert (found.composite_8bit() == layered.composite_8bit()).all()


def test_layers_that_overlap_keep_their_order():
    layered = stack(GROUND, (10, 10, 30, 30), (20, 20, 40, 38))
    said = [LayerDescription(), LayerDescription(text="b", box=(20, 20, 40, 38)), LayerDescription(text="a", box=KITE)]
    found = apply_descriptions(layered, said)
    assert found.names == ("Layer 1", "a", "b")
    assert found.decisions == ("a stays below b, which it overlaps",)
    assert (found.layers == layered.layers).all()


def test_more_descriptions_than_layers_and_fewer():
    layered = stack(GROUND, KITE)
    said = [LayerDescription(text=name) for name in ("sky", "kite", "moon")]
    found = apply_descriptions(layered, said)
    assert found.names == ("sky", "kite")
    assert found.decisions == ("description 3 (moon): no layer is left for it",)
    assert apply_descriptions(layered, said[:1]).names == ("sky", "Layer 2")
    nowhere = LayerDescription(box=(48, 38, 50, 40))
    assert apply_descriptions(stack(KITE, TREE), [nowhere]).names == ("Layer 1", "Layer 2")
