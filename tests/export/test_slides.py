"""Presentations: as LibreOffice draws them, and with the words of text layers as text."""

import json
import os
import re
import shutil
import subprocess

import numpy as np
import pytest
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from pptx import Presentation
from pptx.enum.shapes import MSO_SHAPE_TYPE
from waiting import HANGS

from qil_jax.export import formats
from qil_jax.export.format import Format
from qil_jax.export.letters import letters_of
from qil_jax.layers.compositing import over_white
from qil_jax.layers.layered_image import LayeredImage
from qil_jax.scenes.scene import SceneConfig, make_scene

OFFICE = shutil.which("soffice")
needs_office = pytest.mark.skipif(OFFICE is None, reason="needs LibreOffice: apt-get install libreoffice-impress")
SCENES = int(os.environ.get("QIL_SLIDES", "4"))
"""Scenes with text; a full run has 50."""
SIDE = 256


def ssim(first: np.ndarray, second: np.ndarray) -> float:
    """Mean SSIM of two RGB pictures with a Gaussian window of 11 pixels (Wang et al. 2004)."""
    a, b = (x.astype(np.float64) / 255 for x in (first, second))
    line = np.exp(-((np.arange(11) - 5) ** 2) / (2 * 1.5**2))
    line /= line.sum()
    mean = lambda x: sliding_window_view(sliding_window_view(x, 11, axis=0) @ line, 11, axis=1) @ line
    ma, mb = mean(a), mean(b)
    va, vb, cov = mean(a * a) - ma**2, mean(b * b) - mb**2, mean(a * b) - ma * mb
    return float(((2 * ma * mb + 1e-4) * (2 * cov + 9e-4) / ((ma**2 + mb**2 + 1e-4) * (va + vb + 9e-4))).mean())


def drawn(files, folder, size) -> list[np.ndarray]:
    """The first slides as LibreOffice draws them."""
    pixels = {f"Pixel{x}": {"type": "long", "value": str(n)} for x, n in zip(("Width", "Height"), size, strict=True)}
    profile = f"-env:UserInstallation={(folder / 'profile').as_uri()}"
    command = [OFFICE, "--headless", profile, "--convert-to", f"png:impress_png_Export:{json.dumps(pixels)}"]
    subprocess.run([*command, "--outdir", folder, *files], check=True, capture_output=True, timeout=HANGS)
    return [np.asarray(Image.open(folder / f"{file.stem}.png").convert("RGB")) for file in files]


def scenes(count: int, text: float) -> list[LayeredImage]:
    """Scenes of which each has at least one text."""
    found, seed = [], 0
    while len(found) < count:
        scene = make_scene(seed, SceneConfig(side=SIDE, text=text)).to_layered_image()
        found += [scene] if words(scene) else []
        seed += 1
    return found


def words(scene: LayeredImage) -> list[str]:
    return [word for name in scene.names for text in re.findall(r"the text '(.*)'", name) for word in text.split()]


def text_boxes(shapes) -> list[str]:
    groups = [x for shape in shapes if shape.shape_type == MSO_SHAPE_TYPE.GROUP for x in text_boxes(shape.shapes)]
    return groups + [shape.text_frame.text for shape in shapes if shape.shape_type == MSO_SHAPE_TYPE.TEXT_BOX]


@needs_office
@pytest.mark.full
def test_libreoffice_draws_the_composite(tmp_path):
    contents = scenes(4, text=0.3)
    files = [tmp_path / f"{i}.pptx" for i in range(len(contents))]
    for content, file in zip(contents, files, strict=True):
        formats.write(content, file, Format.PPTX)
    for content, shown in zip(contents, drawn(files, tmp_path, (SIDE, SIDE)), strict=True):
        assert ssim(shown, over_white(content.composite_8bit())[..., :3]) >= 0.98


@pytest.mark.full
def test_text_becomes_text(tmp_path):
    pytest.importorskip("rapidocr", reason="needs an OCR engine: pip install -e '.[ocr]'")
    contents, files, found, every = scenes(SCENES, text=0.25), [], 0, 0
    for number, content in enumerate(contents):
        files.append(tmp_path / f"{number}.pptx")
        formats.write(content, files[-1], Format.PPTX, native_text=True)
        slide, hidden = Presentation(str(files[-1])).slides
        assert (slide._element.get("show"), hidden._element.get("show")) == ("1", "0")
        boxes = [word for text in text_boxes(slide.shapes) for word in text.split()]
        found += sum(word in boxes for word in words(content))
        every += len(words(content))
        assert {x.shape_type for x in hidden.shapes} == {MSO_SHAPE_TYPE.PICTURE}
        got = formats.read(files[-1]).layered
        np.testing.assert_array_equal(got.layers, content.layers)  # colour under alpha 0 is 0 in scenes
    print(f"{found} of {every} words")
    assert found >= 0.9 * every
    if OFFICE is not None:
        pairs = zip(contents, drawn(files, tmp_path, (SIDE, SIDE)), strict=True)
        likeness = [ssim(shown, over_white(content.composite_8bit())[..., :3]) for content, shown in pairs]
        print(f"SSIM {np.mean(likeness):.3f}, lowest {min(likeness):.3f}")
        assert np.mean(likeness) >= 0.9


def test_letters_outline_and_shadow_are_told_apart():
    cv2 = pytest.importorskip("cv2", reason="needs the extra [ocr]")
    shape = np.zeros((60, 160), np.uint8)
    cv2.putText(shape, "Words", (20, 40), cv2.FONT_HERSHEY_SIMPLEX, 1.2, 255, 5)
    rim = cv2.dilate(shape, np.ones((5, 5), np.uint8))
    cast = np.roll(cv2.GaussianBlur(rim.astype(np.float32), (0, 0), 4), (8, 8), axis=(0, 1)) * 0.5
    pixels = np.zeros((60, 160, 4), np.uint8)
    pixels[..., 3] = np.rint(cast)
    pixels[rim > 0] = (20, 60, 200, 255)
    pixels[shape > 0] = (240, 200, 30, 255)
    found = letters_of(pixels)
    assert found.colour == (240, 200, 30) and found.opacity == 1
    np.testing.assert_array_equal(found.shape, shape > 0)
    assert found.outline is not None
    np.testing.assert_array_equal(found.outline[..., 3] > 0, (rim > 0) & (shape == 0))
    assert np.unique(found.outline[found.outline[..., 3] > 0], axis=0).tolist() == [[20, 60, 200, 255]]
    assert found.shadow is not None and found.shadow.colour == (0, 0, 0)
    assert abs(found.shadow.right - 8) <= 3 and abs(found.shadow.down - 8) <= 3 and 0.3 <= found.shadow.opacity <= 0.7
    pixels[shape == 0] = 0
    alone = letters_of(pixels)
    assert alone.outline is None and alone.shadow is None
