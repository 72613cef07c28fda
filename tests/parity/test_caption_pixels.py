"""Patches of pictures against transformers' processor, bit for bit; what it refuses is refused with a reason."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil, smart_resize

from qil_jax.encoders.caption_pixels import FILE, CaptionPixelsError, PixelConfig, caption_grid, caption_patches
from qil_jax.inference.images import decode_image, preprocess
from qil_jax.models.config import ConfigError

RELEASED = {
    "min_pixels": 3136,
    "max_pixels": 12845056,
    "patch_size": 14,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
    "image_processor_type": "Qwen2VLImageProcessor",
    "processor_class": "Qwen2_5_VLProcessor",
}
"""processor/preprocessor_config.json of Qwen2.5-VL."""


def noise(width: int, height: int, channels: int = 4) -> np.ndarray:
    return np.random.default_rng(width).integers(0, 256, (height, width, channels), np.uint8)


def clear_palette() -> Image.Image:
    """A palette picture with a transparent colour, as a GIF has it."""
    image = Image.fromarray(noise(60, 90, 3)).quantize(16)
    image.info["transparency"] = 3
    return image


RGBA = Image.fromarray(noise(200, 120))
PICTURES = {
    "RGB": RGBA.convert("RGB"),
    "RGBA": RGBA,
    "L": RGBA.convert("L"),
    "LA": RGBA.convert("LA"),
    "P": RGBA.convert("RGB").quantize(16),
    "P with a transparent colour": clear_palette(),
    "PA": RGBA.convert("RGB").quantize(16).convert("PA"),
    "1": RGBA.convert("1"),
    "CMYK": RGBA.convert("RGB").convert("CMYK"),
    "16 bit": Image.fromarray(noise(70, 50, 1)[..., 0].astype(np.uint16) * 3),
    "flat": Image.fromarray(noise(2000, 10, 3)),
    "narrow": Image.fromarray(noise(3, 600, 3)),
    "one token": Image.fromarray(noise(28, 28, 3)),
    "two pixels": Image.fromarray(noise(2, 2, 3)),
    "halves between tokens": Image.fromarray(noise(70, 42, 3)),
}


def reference(values=RELEASED) -> Qwen2VLImageProcessorPil:
    return Qwen2VLImageProcessorPil(**{k: v for k, v in values.items() if not k.endswith(("_type", "_class"))})


def assert_same(image: Image.Image, ours: PixelConfig, theirs: Qwen2VLImageProcessorPil) -> tuple[int, int]:
    patches, grid = caption_patches(image, ours)
    wanted = theirs(images=[image], return_tensors="np")
    assert wanted["image_grid_thw"].tolist() == [[1, *grid]]
    assert patches.dtype == np.float32 and patches.std() > 0.01
    np.testing.assert_array_equal(patches, wanted["pixel_values"])
    return grid


def test_the_release_is_the_default():
    assert PixelConfig() == PixelConfig.from_json(RELEASED)
    assert PixelConfig().channels == 1176


@pytest.mark.parametrize("name", PICTURES)
def test_patches_equal_the_released_processors(name):
    assert_same(PICTURES[name], PixelConfig(), reference())


def test_sizes_equal_the_released_processors():
    random = np.random.default_rng(0)
    for width, high in [(6000, 5100), (16384, 90), *np.exp(random.uniform(0, 9.7, (500, 2))).astype(int).tolist()]:
        if max(width, high) <= 200 * min(width, high):
            rows, columns = caption_grid((width, high), PixelConfig())
            assert (rows * 14, columns * 14) == smart_resize(high, width, max_pixels=RELEASED["max_pixels"])


def test_transparency_shows_white():
    clear = Image.new("RGBA", (56, 56), (255, 0, 0, 0))
    white, _ = caption_patches(Image.new("RGB", (56, 56), "white"), PixelConfig())
    np.testing.assert_array_equal(caption_patches(clear, PixelConfig())[0], white)


def test_the_picture_that_the_pipeline_hands_over():
    """Files are turned upright and put into their bucket, and so into 8-bit RGBA, before they are shown."""
    turned, file = Image.Exif(), io.BytesIO()
    turned[0x0112] = 6
    RGBA.convert("RGB").save(file, "PNG", exif=turned)
    image = decode_image(file.getvalue(), "turned.png").in_srgb()
    assert image.size == (120, 200)
    bucket = Image.fromarray(preprocess(image, 64)[0])
    assert assert_same(bucket, PixelConfig(), reference()) == (6, 4)
    deep = Image.fromarray(noise(70, 50, 1)[..., 0].astype(np.uint16) * 257)
    shown = np.asarray(Image.fromarray(preprocess(deep, 64)[0]).convert("L"))
    assert len(np.unique(shown)) > 100  # scaled, where Pillow alone clips 16 bit at 255


@pytest.mark.parametrize("size", [(201, 1), (4, 801), (2010, 10)])
def test_what_the_processor_refuses_is_refused_with_a_reason(size):
    image = Image.new("RGB", size)
    with pytest.raises(ValueError, match="aspect ratio"):
        reference()(images=[image])
    with pytest.raises(CaptionPixelsError, match=rf"{size[0]}x{size[1]} pixels cannot be captioned.*give the picture"):
        caption_patches(image, PixelConfig())
    assert caption_grid((200, 1), PixelConfig()) and caption_grid((1, 200), PixelConfig())


@pytest.mark.parametrize(
    "limits",
    [
        {"min_pixels": 40000, "max_pixels": 60000},
        {"size": {"shortest_edge": 40000, "longest_edge": 60000}},
        {"size": {"shortest_edge": 3136, "longest_edge": 60000}, "min_pixels": 40000},
    ],
)
def test_limits_come_from_the_file_by_either_name(tmp_path, limits):
    values = {k: v for k, v in RELEASED.items() if not k.endswith("_pixels")} | limits
    (tmp_path / FILE.parent).mkdir()
    (tmp_path / FILE).write_text(json.dumps(values))
    config = PixelConfig.of(tmp_path)
    assert (config.min_pixels, config.max_pixels) == (40000, 60000)
    for size in ((100, 90), (210, 250), (700, 300)):
        assert_same(Image.fromarray(noise(*size, 3)), config, reference(values))


def test_other_sizes_of_patches():
    changes = {"patch_size": 16, "merge_size": 3, "temporal_patch_size": 1, "image_mean": [0.1, 0.2, 0.3]}
    assert_same(RGBA, PixelConfig.from_json(RELEASED | changes), reference(RELEASED | changes))


def test_files_without_limits_have_the_released_ones(tmp_path):
    assert PixelConfig.of(tmp_path) == PixelConfig()
    assert PixelConfig.from_json({"patch_size": 14, "size": None, "min_pixels": None}) == PixelConfig()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "preprocessor_config.json"),
        (
            '{"patch_size": "14", "image_std": [1, 2]}',
            r"patch_size = '14'(.|\n)*image_std = \[1, 2\]: must be a list of 3",
        ),
        ('{"resample": 2, "do_resize": false}', r"do_resize = False(.|\n)*resample = 2 is not supported \(only 3\)"),
        ('{"min_pixels": 9, "max_pixels": 8}', "min_pixels 9 is above max_pixels 8"),
        ('{"image_std": [1, 0, 1]}', "must be above 0"),
        ('{"size": 3}', "size = 3: must be an object"),
    ],
)
def test_a_damaged_file_is_told(tmp_path, text, says):
    (tmp_path / FILE.parent).mkdir()
    (tmp_path / FILE).write_text(text)
    with pytest.raises(ConfigError, match=says):
        PixelConfig.of(tmp_path)
