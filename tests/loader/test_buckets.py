"""The sizes of buckets, and the bucket of a record."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from qil_jax.loader.buckets import ASPECT_RATIOS, BucketConfig, assign, bucket

LENGTHS = st.integers(16, 4000)


def one(width: int, height: int, pictures: int, config: BucketConfig, least: int = 3):
    return assign(np.array([[width, height]]), np.array([pictures]), config, least=least)[0]


@pytest.mark.parametrize(
    ("size", "expected"),
    [((640, 640), (640, 640)), ((3000, 2000), (768, 512)), ((100, 900), (384, 1120)), ((90, 160), (480, 864))],
)
def test_the_nearest_aspect_ratio(size, expected):
    found = one(*size, 6, BucketConfig())
    assert (found.width, found.height) == expected


@pytest.mark.parametrize(
    ("side", "pictures", "expected"),
    [(640, 6, 640), (900, 6, 640), (1000, 6, 1024), (2000, 6, 1024), (2000, 9, 1024), (2000, 10, 640), (99, 6, 640)],
)
def test_the_largest_resolution_that_enlarges_nothing_and_has_room(side, pictures, expected):
    config = BucketConfig(resolutions=(1024, 640))
    assert bucket((1, 1), 1024, config).room == 9
    assert one(side, side, pictures, config).width == expected


@given(LENGTHS, LENGTHS, st.integers(3, 22), st.sampled_from([16, 32, 64]))
def test_every_bucket_keeps_the_budget(width, height, pictures, multiple):
    config = BucketConfig(resolutions=(256, 640), multiple=multiple)
    found = one(width, height, pictures, config)
    assert found.width % multiple == 0 and found.height % multiple == 0
    assert found.room * (found.width // 16) * (found.height // 16) <= config.row_tokens
    nearest = min(ASPECT_RATIOS, key=lambda r: abs(np.log(r[0] / r[1]) - np.log(width / height)))
    assert found in [bucket(nearest, resolution, config) for resolution in (256, 640)]


def test_no_room_is_said():
    with pytest.raises(ValueError, match="3200 hold 2 pictures of 640 x 640, but a sample of one layer has 3"):
        one(640, 640, 6, BucketConfig(row_tokens=3200))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"resolutions": ()}, "must not be empty"),
        ({"aspect_ratios": ((1, 0),)}, "positive"),
        ({"multiple": 24}, "multiple of 16"),
        ({"resolutions": (32,), "aspect_ratios": ((50, 1),)}, "50:1"),
    ],
)
def test_bad_configs_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        BucketConfig(**change)
