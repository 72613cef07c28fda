"""Records keep all visible pixels, and broken ones are refused with the reason."""

import numpy as np
import pytest
from hypothesis import given
from layer_stacks import SIZE, stacks

from qil_jax.documents.prepare import from_bytes, to_bytes
from qil_jax.layers.compositing import composite
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.records.record import Record, decode, encode, from_layered_image


@given(stacks())
def test_round_trip(layers):
    record = Record(
        layers=tuple(layers), size=SIZE, caption="\u00e4 \U0001f600", category="poster", decisions=("a", "b")
    )
    for back in (decode(encode(record)), from_bytes(to_bytes(record))):
        assert (back.size, back.caption, back.category, back.decisions) == (SIZE, record.caption, "poster", ("a", "b"))
        assert [x.name for x in back.layers] == [x.name for x in layers]
        for now, was in zip(back.layers, layers, strict=True):
            assert now.window == was.window
            shows = was.pixels[..., 3:] > 0
            np.testing.assert_array_equal(now.pixels, np.where(shows, was.pixels, 0))


def test_bytes_are_text_too():
    record = Record(layers=(), size=(2, 2), caption="\u00e4")
    example = encode(record)
    assert decode({**example, "caption": example["caption"].encode()}).caption == "\u00e4"


def test_layered_images_come_back():
    pixels = np.random.default_rng(0).integers(0, 256, (3, 6, 7, 4), np.uint8)
    pixels[1] = 0
    pixels[2, :3, :, 3] = 0
    image = LayeredImage(layers=pixels, names=("a", "b", "c"), caption="x", source="s", licence="CC0-1.0")
    record = from_layered_image(image)
    assert [x.pixels.shape[:2] for x in record.layers] == [(6, 7), (1, 1), (3, 7)]
    back = decode(encode(record)).to_layered_image()
    np.testing.assert_array_equal(back.layers, np.where(pixels[..., 3:] > 0, pixels, 0))
    assert (back.names, back.caption, back.source, back.licence) == (image.names, "x", "s", "CC0-1.0")


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("pixels", np.zeros(5, np.uint8), "does not fit"),
        ("pixels", np.zeros(99, np.uint8), "83 bytes of pixels belong to no layer"),
        ("boxes", np.array([[1, 0, 2, 2]]), "does not fit 2 x 2"),
        ("boxes", np.array([[-1, 0, 2, 2]]), "does not fit"),
    ],
)
def test_broken_records(key, value, message):
    image = LayeredImage(layers=np.full((1, 2, 2, 4), 9, np.uint8), names=("a",))
    with pytest.raises(ValueError, match=message):
        decode({**encode(from_layered_image(image)), key: value})


def test_the_composite_of_a_record_is_that_of_the_picture():
    pixels = np.random.default_rng(1).integers(0, 256, (4, 5, 6, 4), np.uint8)
    image = LayeredImage(layers=pixels, names=tuple("abcd"))
    straight = composite(from_layered_image(image).layers, image.size)
    expected = image.composite()
    np.testing.assert_allclose(straight[..., :3], expected[..., :3] * expected[..., 3:], atol=1e-5)
