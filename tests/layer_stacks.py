"""Small random stacks of layers, for tests of every room that handles them."""

import numpy as np
from hypothesis import strategies as st

from qil_jax.layers.boxed_layer import BoxedLayer

SIZE = (7, 6)


def box(left: int, top: int, right: int, bottom: int, alpha: int = 255, value: int = 9) -> BoxedLayer:
    pixels = np.full((bottom - top, right - left, 4), value, np.uint8)
    pixels[..., 3] = alpha
    return BoxedLayer(pixels=pixels, left=left, top=top, name=f"{left},{top}")


@st.composite
def stacks(draw, most: int = 20):
    seed, count = draw(st.integers(0, 2**32 - 1)), draw(st.integers(1, most))
    levels = draw(st.sampled_from([(0, 255), (0, 1, 128, 255), tuple(range(256)), (0, 1, 2, 3)]))
    random = np.random.default_rng(seed)
    layers = []
    for i in range(count):
        left, top = random.integers(0, SIZE[0]), random.integers(0, SIZE[1])
        width, height = random.integers(1, SIZE[0] - left + 1), random.integers(1, SIZE[1] - top + 1)
        pixels = random.integers(0, 256, (height, width, 4), np.uint8)
        pixels[..., 3] = random.choice(levels, (height, width))
        layers.append(BoxedLayer(pixels=pixels, left=int(left), top=int(top), name=str(i)))
    if draw(st.booleans()):
        layers.insert(0, box(0, 0, *SIZE, value=draw(st.integers(0, 255))))
    return layers
