"""Pictures of every kind: sizes and pixels as the reference prepares them, or one clear refusal."""

import struct
import warnings

import numpy as np
import pytest
from icc_profiles import ADOBE, profile_of
from PIL import Image

from qil_jax.inference.images import ImageError, bucket_size, open_image
from qil_jax.inference.pictures import find_pictures
from qil_jax.layers.pictures import DEEP


def noise(width: int, height: int, mode: str = "RGBA") -> Image.Image:
    pixels = np.random.default_rng(1).integers(0, 256, (height, width, 4), np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize(("width", "height"), [(2000, 1), (1, 2000), (4000, 2)])
def test_extreme_aspect_ratios_are_refused(width, height):
    with pytest.raises(ImageError, match="crop or pad"):
        bucket_size(width, height, 640)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_modes_are_converted(tmp_path, mode):
    image = noise(40, 30, "RGBA").convert(mode)
    suffix = "tif" if mode == "CMYK" else "png"
    image.save(tmp_path / f"a.{suffix}")
    opened = open_image(tmp_path / f"a.{suffix}")
    assert opened.mode == "RGBA" and opened.size == (40, 30)
    np.testing.assert_array_equal(np.asarray(opened), np.asarray(image.convert("RGBA")))


def test_palette_transparency_is_kept(tmp_path):
    image = Image.new("P", (8, 8), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((3, 3), 0)
    image.save(tmp_path / "a.png", transparency=0)
    opened = np.asarray(open_image(tmp_path / "a.png"))
    assert opened[3, 3, 3] == 0 and tuple(opened[0, 0]) == (255, 0, 0, 255)


def test_sixteen_bits_are_scaled_not_clipped(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "a.png")
    opened = np.asarray(open_image(tmp_path / "a.png"))
    assert np.abs(opened[..., 0].astype(float) - ramp / 257).max() <= 0.51
    assert opened[..., 3].min() == 255


def tiff_of_16_bits(values: np.ndarray) -> bytes:
    """An RGB TIFF, which Pillow cannot write."""
    high, wide, data = *values.shape[:2], values.astype("<u2").tobytes()
    tags = {256: wide, 257: high, 258: 8, 259: 1, 262: 2, 273: 14, 277: 3, 278: high, 279: len(data)}
    entries = [struct.pack("<HHII", tag, 3 if tag == 258 else 4, 1 + 2 * (tag == 258), x) for tag, x in tags.items()]
    start = 14 + len(data)
    body = b"II*\0" + struct.pack("<I3H", start, 16, 16, 16) + data
    return body + struct.pack("<H", len(entries)) + b"".join(entries) + bytes(4)


def test_bits_that_are_not_kept_are_said(tmp_path):
    ramp = np.linspace(0, 65535, 64 * 64).reshape(64, 64).astype(np.uint16)
    for suffix in ("png", "tif"):
        Image.fromarray(ramp).save(tmp_path / f"deep_grey.{suffix}")
        for mode in ("1", "L", "P", "RGBA"):
            noise(64, 64, mode).save(tmp_path / f"{mode}.{suffix}")
    colours = np.stack([ramp, ramp[::-1], ramp.T], axis=-1)
    (tmp_path / "deep_rgb.tif").write_bytes(tiff_of_16_bits(colours))
    found = find_pictures([tmp_path], resolution=64)
    assert found.bad == [] and found.notes() == [f"deep_grey.png, deep_grey.tif, deep_rgb.tif: {DEEP}"]
    for name, values in {"deep_grey_2": ramp[..., None], "deep_rgb": colours}.items():
        read = np.asarray(found.pictures[name].image(), float)
        assert np.abs(read[..., :3] - values / 257).max() <= 1  # of a picture with colours Pillow takes the upper byte


def test_a_large_picture_is_read_without_a_warning_of_others(tmp_path, monkeypatch):
    noise(40, 40).save(tmp_path / "a.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow warns from here, and refuses from twice as many
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(tmp_path / "a.png").size == (40, 40)
    noise(40, 60).save(tmp_path / "b.png")
    with pytest.raises(ImageError, match="too many pixels"):
        open_image(tmp_path / "b.png")


def test_cameras_rotate_pictures(tmp_path):
    image = Image.new("RGB", (40, 20))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert open_image(tmp_path / "a.jpg").size == (20, 40)


def test_refusals_name_file_reason_and_fix(tmp_path):
    def refusal(name: str) -> str:
        with pytest.raises(ImageError) as caught:
            open_image(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
        return str(caught.value)

    assert "no such file" in refusal("nowhere.png")
    (tmp_path / "text.png").write_text("not a picture")
    assert "open and save it again as PNG" in refusal("text.png")
    (tmp_path / "empty.png").write_bytes(b"")
    assert "cannot be read" in refusal("empty.png")
    noise(64, 64).save(tmp_path / "cut.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "cut.png").read_bytes()[:2000])
    assert "cannot be read" in refusal("cut.png")
    frames = [noise(16, 16), noise(16, 16).rotate(90)]
    for name in ("a.gif", "a.webp", "a.png", "a.tif"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        assert "animated or multi-page (2 pictures)" in refusal(name)
    noise(1, 1).save(tmp_path / "dot.png")
    assert "at least 2" in refusal("dot.png")
    Image.new("L", (30_000, 60)).save(tmp_path / "wide.png")
    assert "scale it down to at most 16384" in refusal("wide.png")
    Image.new("1", (16_000, 16_000)).save(tmp_path / "bomb.png")
    assert "too many pixels" in refusal("bomb.png")
    Image.new("L", (8000, 3)).save(tmp_path / "thin.png")
    assert "crop or pad" in refusal("thin.png")


@pytest.mark.parametrize("turned", [1, 6])
def test_the_first_picture_of_a_phones_jpeg_counts(tmp_path, turned):
    """A second one beside it, such as a map of depths, makes the file an MPO, whatever it is called."""
    exif = Image.Exif()
    exif[0x0112] = turned
    first, depths = Image.new("RGB", (60, 40), (200, 40, 90)), Image.new("RGB", (30, 20), (99, 99, 99))
    first.save(tmp_path / "photo.jpg", "MPO", save_all=True, append_images=[depths], exif=exif)
    with Image.open(tmp_path / "photo.jpg") as image:
        assert image.format == "MPO"
    found = find_pictures([tmp_path], resolution=64)
    assert found.problems == found.bad == [] and list(found.pictures) == ["photo"]
    picture = found.pictures["photo"].image()
    assert picture.size == ((60, 40) if turned == 1 else (40, 60))
    assert np.abs(np.asarray(picture, int)[..., :3] - (200, 40, 90)).max() < 8


@pytest.mark.parametrize("mode", ["RGB", "RGBA", "P", "L", "LA", "I;16"])
def test_colours_are_those_of_srgb(tmp_path, mode):
    """What a picture with a profile shows; and every bit of one without, with a broken one, or with another kind's."""
    shown = np.random.default_rng(0).integers(40, 216, (8, 8, 4)).repeat(3, axis=0)
    is_grey = mode in ("L", "LA", "I;16")
    if is_grey:
        shown[..., :3] = shown[..., :1]
    linear = ((shown[..., :3] / 255 + 0.055) / 1.055) ** 2.4
    if not is_grey:
        srgb = np.array([[0.4361, 0.3851, 0.1431], [0.2225, 0.7169, 0.0606], [0.0139, 0.0971, 0.7141]])
        linear = np.clip(linear @ (np.linalg.inv(np.array([*ADOBE.values()]).T) @ srgb).T, 0, 1)
    stored = np.rint(np.concatenate([255 * linear ** (256 / 563), shown[..., 3:]], axis=-1)).astype(np.uint8)
    image = Image.fromarray(stored, "RGBA")
    if mode == "I;16":
        image = Image.fromarray(stored[..., 0].astype(np.uint16) * 257)
    elif mode == "P":
        image = image.convert("RGB").quantize(64)
    else:
        image = image.convert(mode)
    profile = profile_of({}, "GRAY", "grey") if is_grey else profile_of(ADOBE)
    pictures, broken, no_space = {}, profile[:200] + bytes(len(profile) - 200), profile[:16] + b"\xff" + profile[17:]
    carriers = {"none": b"", "own": profile, "broken": broken, "no space": no_space, "other": profile_of(ADOBE, "CMYK")}
    for name, carried in carriers.items():
        image.save(tmp_path / f"{name}.png", icc_profile=carried)
        pictures[name] = np.asarray(open_image(tmp_path / f"{name}.png", resolution=32))
    for name in ("broken", "no space", "other"):
        np.testing.assert_array_equal(pictures[name], pictures["none"])
    np.testing.assert_array_equal(pictures["own"][..., 3], pictures["none"][..., 3])
    assert np.abs(pictures["own"][..., :3] - shown[..., :3]).max() <= (8 if mode == "P" else 2)
    assert np.abs(pictures["none"][..., :3] - shown[..., :3]).max() > 2
