"""HEIC, which an optional package reads: named where it is missing, and as any other picture where it is not."""

import sys

import numpy as np
import pytest
from icc_profiles import P3, profile_of
from PIL import Image

from qil_jax.app.limits import Limits
from qil_jax.app.uploads import opened
from qil_jax.inference.pictures import find_pictures
from qil_jax.layers.pictures import ImageError, decoded

LIMITS = Limits(pixels=10_000, megabytes=1)


def head(*brands: bytes) -> bytes:
    """The beginning of a file that says by its brands what it is."""
    body = b"ftyp" + brands[0] + bytes(4) + b"".join(brands[1:])
    return (4 + len(body)).to_bytes(4, "big") + body + bytes(64)


@pytest.mark.parametrize("brands", [(b"heic", b"mif1", b"heic"), (b"mif1", b"miaf"), (b"heix",), (b"msf1", b"hevc")])
@pytest.mark.parametrize("name", ["a.heic", "b.HEIF", "c.jpg"])
def test_the_extra_is_named_where_it_is_missing(monkeypatch, tmp_path, brands, name):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    (tmp_path / name).write_bytes(head(*brands))
    said = f"{name}: HEIC needs pillow_heif: pip install 'qil_jax[heic]'"
    assert find_pictures([tmp_path]).bad == [f"{tmp_path}/{said}"]
    with pytest.raises(ImageError) as caught:
        opened(tmp_path / name, LIMITS, resolution=64)
    assert str(caught.value) == said


@pytest.mark.parametrize("data", [head(b"avif", b"mif1", b"miaf"), head(b"mif1", b"avif"), head(b"isom"), head(b"")])
def test_others_in_the_same_container_ask_for_nothing(monkeypatch, data):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for formats in (None, ("HEIF", "PNG"), ("PNG",)):
        with pytest.raises(ImageError, match="cannot be read as a picture"):
            decoded(data, "a.heic", formats=formats)
    with pytest.raises(ImageError, match="cannot be read as a picture"):
        decoded(head(b"heic"), "a.heic", formats=("PNG",))  # in a document, say


@pytest.mark.parametrize("name", ["photo.heic", "photo.HEIF", "photo.jpg"])
def test_a_phones_photo_is_its_first_picture(tmp_path, name):
    pillow_heif = pytest.importorskip("pillow_heif", reason="the extra [heic] is not installed")
    pillow_heif.register_heif_opener()
    pixels = np.random.default_rng(0).integers(60, 200, (5, 6, 3), np.uint8).repeat(8, axis=0).repeat(8, axis=1)
    first, second, profile = Image.fromarray(pixels), Image.new("RGB", (30, 20)), profile_of(P3)
    how = {"save_all": True, "append_images": [second], "quality": 95, "icc_profile": profile}
    first.save(tmp_path / name, "HEIF", **how)
    found = find_pictures([tmp_path], resolution=64)
    assert found.bad == [] and found.notes() == []
    for picture in (found.pictures["photo"], opened(tmp_path / name, LIMITS, resolution=64)):
        assert picture.profile == profile and picture.size == (48, 40)
        assert np.abs(np.asarray(picture.own().image, int)[..., :3] - pixels).mean() < 4
